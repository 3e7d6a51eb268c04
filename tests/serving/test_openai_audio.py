"""POST /v1/audio/transcriptions as the unmodified `openai` client asks for it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openai
import pytest
from openai import OpenAI

from serving.fronts.subtitles import srt, vtt
from serving.speech.transcript import Transcript, Word
from tests.serving.recordings import encoded, spoken
from tests.serving.speech_models import write_recognizer
from tests.serving.test_speech_recognition import mixed
from tests.support import RunningServer, call, metric, serving, write_fake

TEXT = "forty two and one"
LONG = " ".join(["seven eight", "nine", "ten"] * 8)
"""Longer than two of the model's windows."""


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    write_recognizer(repository, "tones", language="en")
    write_fake(repository, "echo")
    with serving(repository) as running:
        yield running


@pytest.fixture(scope="module")
def client(speech: RunningServer) -> Iterator[OpenAI]:
    with connected(speech) as connection:
        yield connection


def connected(server: RunningServer, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"http://{server.http}/v1", api_key=key, max_retries=0)


def recording(text: str = TEXT, kind: str = "wav") -> tuple[str, bytes]:
    return f"recording.{kind}", encoded(spoken(text), kind=kind)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
def test_json(client: OpenAI, kind: str, tmp_path: Path) -> None:
    name, body = recording(kind=kind)
    (tmp_path / name).write_bytes(body)
    with (tmp_path / name).open("rb") as file:
        answer = client.audio.transcriptions.create(file=file, model="tones")
    assert answer.text == TEXT
    assert answer.usage is not None
    assert answer.usage.to_dict() == {"type": "duration", "seconds": 5}


def test_text(client: OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        file=recording(), model="tones", response_format="text"
    )
    assert answer == TEXT + "\n"


def test_verbose_json_has_segments(client: OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        file=recording(LONG), model="tones", response_format="verbose_json"
    )
    assert (answer.text, answer.language, answer.words) == (LONG, "en", None)
    assert answer.duration == pytest.approx(0.12 + 0.24 * len(LONG), abs=0.001)
    segments = answer.segments or []
    assert len(segments) > 3
    assert [segment.id for segment in segments] == list(range(len(segments)))
    assert " ".join(segment.text for segment in segments) == LONG
    for segment in segments:
        assert 0 < segment.end - segment.start <= 7
        assert -0.1 < segment.avg_logprob <= 0
        assert len(segment.tokens) == len(segment.text.replace(" ", ""))
    for before, after in itertools.pairwise(segments):
        assert before.end <= after.start


@pytest.mark.parametrize("granularities", [["word"], ["segment"], ["word", "segment"]])
def test_verbose_json_has_the_granularities_asked_for(
    client: OpenAI, granularities: list[Literal["word", "segment"]]
) -> None:
    answer = client.audio.transcriptions.create(
        file=recording(),
        model="tones",
        response_format="verbose_json",
        timestamp_granularities=granularities,
    )
    assert (answer.words is not None) == ("word" in granularities)
    assert (answer.segments is not None) == ("segment" in granularities)
    if answer.words is not None:
        assert [word.word for word in answer.words] == TEXT.split()
        starts = [word.start for word in answer.words]
        assert starts == pytest.approx([0.12, 1.56, 2.52, 3.48], abs=0.041)


def seconds(time: str) -> float:
    hours, minutes, rest = time.replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def cues(blocks: list[str], times: str) -> list[tuple[float, float, str]]:
    """Start, end and text of each block of subtitles, which must look like one."""
    parsed = []
    for block in blocks:
        found = re.fullmatch(rf"({times}) --> ({times})\n(.+)", block)
        assert found, block
        parsed.append((seconds(found[1]), seconds(found[2]), found[3]))
    assert all(start < end for start, end, _ in parsed)
    return parsed


def test_srt(client: OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        file=recording(LONG), model="tones", response_format="srt"
    )
    blocks = answer.removesuffix("\n\n").split("\n\n")
    numbers, rest = zip(*(block.split("\n", 1) for block in blocks), strict=True)
    assert [int(number) for number in numbers] == list(range(1, len(blocks) + 1))
    parsed = cues(list(rest), r"\d\d:\d\d:\d\d,\d{3}")
    assert " ".join(text for _, _, text in parsed) == LONG


def test_vtt(client: OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        file=recording(LONG), model="tones", response_format="vtt"
    )
    head, *blocks = answer.removesuffix("\n\n").split("\n\n")
    assert head == "WEBVTT"
    parsed = cues(blocks, r"\d\d:\d\d:\d\d\.\d{3}")
    assert " ".join(text for _, _, text in parsed) == LONG


def test_subtitles_of_anything() -> None:
    odd = Transcript((Word("<b>", 3599.9996, 36_000.0, ()), Word("&", 36_001, 36_002, ())), (), 1)
    assert srt(odd) == (
        "1\n01:00:00,000 --> 10:00:00,000\n<b>\n\n2\n10:00:01,000 --> 10:00:02,000\n&\n\n"
    )
    assert "&lt;b&gt;\n\n10:00:01.000 --> 10:00:02.000\n&amp;\n\n" in vtt(odd)
    silence = Transcript((), (), 1)
    assert (srt(silence), vtt(silence)) == ("", "WEBVTT\n\n")


def test_silence_in_every_format(client: OpenAI) -> None:
    silence = ("silence.wav", encoded(np.zeros(16000, np.int16)))
    formats: list[Literal["text", "srt", "vtt"]] = ["text", "srt", "vtt"]
    answers = [
        client.audio.transcriptions.create(file=silence, model="tones", response_format=form)
        for form in formats
    ]
    assert answers == ["\n", "", "WEBVTT\n\n"]
    verbose = client.audio.transcriptions.create(
        file=silence, model="tones", response_format="verbose_json"
    )
    assert (verbose.text, verbose.segments) == ("", [])


@pytest.mark.parametrize("prompt", ["", "seven nine"])
def test_a_stream_has_the_text_window_by_window(client: OpenAI, prompt: str) -> None:
    with client.audio.transcriptions.create(
        file=recording(LONG), model="tones", prompt=prompt, stream=True
    ) as stream:
        *deltas, done = stream
    assert len(deltas) > 2
    said = ""
    for part in deltas:
        assert part.type == "transcript.text.delta"
        said += part.delta
    assert done.type == "transcript.text.done"
    assert said == done.text == LONG


def test_a_silent_stream_ends_at_once(client: OpenAI) -> None:
    silence = ("silence.wav", encoded(np.zeros(16000, np.int16)))
    with client.audio.transcriptions.create(file=silence, model="tones", stream=True) as stream:
        assert [part.type for part in stream] == ["transcript.text.done"]


@pytest.mark.parametrize(
    "wishes", [{"prompt": "a cut"}, {"prompt": "A (cut), please."}, {"keywords": ["Cut"]}]
)
def test_prompts_and_keywords_are_hot_words(client: OpenAI, wishes: dict[str, Any]) -> None:
    doubtful = ("cat.wav", encoded(mixed("cat", "cut", 0.51)))
    plain = client.audio.transcriptions.create(file=doubtful, model="tones")
    prompted = client.audio.transcriptions.create(file=doubtful, model="tones", **wishes)
    assert (plain.text, prompted.text) == ("cat", "cut")


def test_what_has_no_effect_is_taken(client: OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        file=recording(), model="tones", temperature=0.4, language="en-GB", chunking_strategy="auto"
    )
    assert answer.text == TEXT


@pytest.mark.parametrize(
    ("wishes", "field", "message"),
    [
        ({"model": "echo"}, "model", "expected a model that recognises speech, got 'echo'"),
        ({"file": ("a.wav", b"")}, "file", "the recording is empty"),
        ({"file": ("a.wav", b"a letter")}, "file", "the recording is of no known format"),
        ({"language": "fr"}, "language", "expected 'en', got 'fr'"),
        ({"temperature": 2}, "temperature", "less than or equal to 1, got '2'"),
        ({"response_format": "diarized_json"}, "response_format", "Input should be 'json', 'text'"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities", "'verbose_json'"),
        (
            {"timestamp_granularities": ["line"], "response_format": "verbose_json"},
            "timestamp_granularities.0",
            "Input should be 'word' or 'segment'",
        ),
        ({"stream": True, "response_format": "srt"}, "stream", "with it, got 'srt'"),
        ({"stream": True, "file": ("a.wav", b"a letter")}, "file", "of no known format"),
        ({"include": ["logprobs"]}, "include", "Extra inputs are not permitted"),
        ({"prompt": "a " * 300}, None, None),
        ({"prompt": " ".join(map(str, range(300)))}, "prompt", "at most 200 items"),
        ({"keywords": ["a" * 101]}, "keywords", "at most 100 characters"),
    ],
)
def test_mistakes_are_named(
    client: OpenAI, wishes: dict[str, Any], field: str | None, message: str | None
) -> None:
    arguments = {"file": recording(), "model": "tones", **wishes}
    if message is None:
        assert client.audio.transcriptions.create(**arguments).text == TEXT
        return
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.audio.transcriptions.create(**arguments)
    error = caught.value
    assert (error.param, error.type) == (field, "invalid_request_error")
    assert error.code == "invalid_argument"


def test_too_long_and_unknown(client: OpenAI) -> None:
    long = ("long.flac", encoded(np.zeros(1801 * 4000, np.int16), 4000, "flac"))
    with pytest.raises(openai.APIStatusError, match="the limit is 30 minutes") as caught:
        client.audio.transcriptions.create(file=long, model="tones")
    assert (caught.value.status_code, caught.value.code) == (413, "too_large")
    with pytest.raises(openai.NotFoundError, match="'nobody' is not found") as missing:
        client.audio.transcriptions.create(file=recording(), model="nobody")
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("application/json", b"{}", "expected a body of multipart/form-data"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", "model: Field required"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\ntones\r\n--b--\r\n',
            "file: expected a file with the bytes of a recording, got none",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\n\xff\r\n--b--\r\n',
            "file: expected text in UTF-8, or a file with a filename",
        ),
    ],
)
def test_what_is_no_form_is_refused(
    speech: RunningServer, content_type: str, body: bytes, message: str
) -> None:
    status, answer = call(
        speech.http_port,
        "POST",
        "/v1/audio/transcriptions",
        body,
        {"Content-Type": content_type},
    )
    assert status == 400
    assert message in json.loads(answer)["error"]["message"]


def test_unknown_routes_answer_as_openai_does(speech: RunningServer) -> None:
    status, answer = call(speech.http_port, "GET", "/v1/nothing")
    assert (status, json.loads(answer)["error"]["type"]) == (404, "invalid_request_error")


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo", "tones"]
    assert client.models.retrieve("tones").owned_by == "slipway"
    with pytest.raises(openai.NotFoundError, match="'nobody' is not found"):
        client.models.retrieve("nobody")


def test_refused_recordings_are_counted(speech: RunningServer, client: OpenAI) -> None:
    def refused() -> float:
        return metric(speech, "slipway_requests_total", model="tones", outcome="invalid")

    before = refused()
    with pytest.raises(openai.BadRequestError):
        client.audio.transcriptions.create(file=("a.wav", b"a letter"), model="tones")
    assert refused() == before + 1


def test_a_key_is_asked_for_where_the_operator_wants_one(tmp_path: Path) -> None:
    write_recognizer(tmp_path, "tones")
    with serving(
        tmp_path, "--http-restricted-api", "inference:authorization=Bearer secret"
    ) as server:
        with connected(server, "secret") as client:
            assert client.audio.transcriptions.create(file=recording(), model="tones").text == TEXT
        with connected(server, "guess") as client, pytest.raises(openai.PermissionDeniedError):
            client.audio.transcriptions.create(file=recording(), model="tones")
