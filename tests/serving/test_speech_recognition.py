"""Recordings in, words out, over the routes of Hugging Face and of the v2 protocol."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.http
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from pydantic import ValidationError
from tritonclient.utils import InferenceServerException

from serving.errors import InferenceFailed, ModelLoadError
from serving.tasks import LongTask, load_task
from serving.tasks.speech_recognition import SpeechRecognition
from tests.serving.recordings import CASES, FRAME, RATE_HZ, encoded, spoken
from tests.serving.speech_models import settings, write_recognizer
from tests.support import RunningServer, call, metric, serving

TEXT = "forty two and one"
WORDS = ("and", "five", "forty", "one", "two")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    write_recognizer(repository, "tones")
    write_recognizer(repository, "worded", words=WORDS)
    with serving(repository) as running:
        yield running


def ask(
    server: RunningServer,
    body: bytes,
    parameters: dict[str, Any] | None = None,
    model: str = "tones",
) -> tuple[int, Any]:
    headers = {"Content-Type": "audio/wav"}
    if parameters is not None:
        document = {"inputs": base64.b64encode(body).decode(), "parameters": parameters}
        body, headers = json.dumps(document).encode(), {"Content-Type": "application/json"}
    status, answer = call(server.http_port, "POST", f"/models/{model}", body, headers)
    return status, json.loads(answer)


@pytest.mark.parametrize(("kind", "rate_hz", "channels"), CASES)
def test_every_format_rate_and_channel_count_is_understood(
    speech: RunningServer, kind: str, rate_hz: int, channels: int
) -> None:
    body = encoded(spoken(TEXT, rate_hz), rate_hz, kind, channels)
    status, answer = ask(speech, body)
    assert (status, answer["text"]) == (200, TEXT)


@pytest.mark.usefixtures("both_ways")
def test_words_have_their_times(speech: RunningServer) -> None:
    status, answer = ask(speech, encoded(spoken("on off")))
    assert status == 200
    assert answer["text"] == "on off"
    assert [chunk["text"] for chunk in answer["chunks"]] == ["on", "off"]
    # A character sounds for 0.12 s and is silent for as long, and so is the beginning.
    expected = [[0.12, 0.48], [0.84, 1.44]]
    for chunk, span in zip(answer["chunks"], expected, strict=True):
        assert chunk["timestamp"] == pytest.approx(span, abs=0.041)


def test_settings_come_as_json(speech: RunningServer) -> None:
    body = encoded(spoken("on off"))
    assert ask(speech, body, {})[1] == ask(speech, body)[1]
    assert ask(speech, body, {"return_timestamps": False})[1] == {"text": "on off"}
    characters = ask(speech, body, {"return_timestamps": "char"})[1]["chunks"]
    assert "".join(chunk["text"] for chunk in characters) == "onoff"
    beams = {"generation_parameters": {"num_beams": 4}}
    assert ask(speech, body, beams)[1]["text"] == "on off"


def mixed(first: str, second: str, share: float) -> npt.NDArray[np.float32]:
    """Both texts at once, the first louder."""
    loud: npt.NDArray[np.float32] = share * spoken(first) + (1 - share) * spoken(second)
    return loud


def test_hot_words_are_heard_where_the_recording_is_in_doubt(speech: RunningServer) -> None:
    body = encoded(mixed("cat", "cut", 0.51))
    assert ask(speech, body)[1]["text"] == "cat"
    assert ask(speech, body, {"hot_words": ["Cut"]})[1]["text"] == "cut"
    assert ask(speech, body, {"hot_words": ["cut"], "hot_word_weight": 0.01})[1]["text"] == "cat"


def test_a_model_with_words_of_its_own_writes_no_others(speech: RunningServer) -> None:
    misspelt = encoded(spoken("fortty twwo an one"))
    assert ask(speech, misspelt)[1]["text"] == "fortty twwo an one"
    status, answer = ask(speech, misspelt, model="worded")
    assert (status, answer["text"]) == (200, TEXT)
    assert [chunk["text"] for chunk in answer["chunks"]] == TEXT.split()
    assert ask(speech, encoded(spoken(TEXT)), model="worded") == ask(speech, encoded(spoken(TEXT)))


def test_hot_words_are_heard_beside_a_models_own(speech: RunningServer) -> None:
    body = encoded(spoken("fifty two"))
    assert "fifty" not in ask(speech, body, model="worded")[1]["text"]
    assert ask(speech, body, {"hot_words": ["Fifty two"]}, "worded")[1]["text"] == "fifty two"
    beams = {"generation_parameters": {"num_beams": 4}}
    assert ask(speech, body, beams, "worded")[1]["text"] == "fifty two"


def test_words_that_cannot_be_kept_apart_are_refused() -> None:
    vocabulary = ("", "a", "b")
    with pytest.raises(ValidationError, match="words need a vocabulary with a space"):
        settings(vocabulary=vocabulary, words=("ab",))
    with pytest.raises(ValidationError, match="cannot spell 'né', which is one of the words"):
        settings(words=("no", "né"))
    with pytest.raises(ValidationError, match="differ in more than case"):
        settings(vocabulary=("", " ", "a", "A"), words=("a",))
    with pytest.raises(ValidationError, match="there are 2001 words; expected at most 2000"):
        settings(words=("a",) * 2001)


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_ten_minutes_are_windowed_and_stitched(speech: RunningServer, kind: str) -> None:
    random = np.random.default_rng(5)
    words = ["".join(random.choice(list("abcdefgh"), 4)) for _ in range(500)]
    text = " ".join(words)
    recording = spoken(text)
    assert len(recording) > 590 * RATE_HZ
    status, answer = ask(speech, encoded(recording, kind=kind))
    assert (status, answer["text"]) == (200, text)
    starts = [chunk["timestamp"][0] for chunk in answer["chunks"]]
    assert starts == pytest.approx([0.12 + 5 * 0.24 * at for at in range(500)], abs=0.041)


@pytest.mark.usefixtures("both_ways")
def test_windows_of_one_recording_share_batches(speech: RunningServer) -> None:
    def counts() -> tuple[float, float]:
        return (
            metric(speech, "nv_inference_count", model="tones"),
            metric(speech, "nv_inference_exec_count", model="tones"),
        )

    before = counts()
    assert ask(speech, encoded(np.zeros(160 * RATE_HZ, np.int16)))[0] == 200
    rows, runs = np.subtract(counts(), before)
    assert (rows, runs < rows / 2) == (20, True)


def test_short_and_silent_recordings(speech: RunningServer) -> None:
    assert ask(speech, encoded(np.zeros(800, np.int16))) == (200, {"text": "", "chunks": []})
    short = spoken("a")[int(0.12 * RATE_HZ) :][: RATE_HZ // 20]
    assert ask(speech, encoded(short))[1]["text"] == "a"


def test_the_huggingface_hub_client(speech: RunningServer, tmp_path: Path) -> None:
    client = InferenceClient(model=f"http://{speech.http}/models/tones")
    for kind in ("wav", "flac", "mp3"):
        path = tmp_path / f"recording.{kind}"
        path.write_bytes(encoded(spoken(TEXT), kind=kind))
        for audio in (path, str(path), path.read_bytes()):
            answer = client.automatic_speech_recognition(audio)
            assert answer.text == TEXT
            assert answer.chunks is not None
            assert [chunk.text for chunk in answer.chunks] == TEXT.split()
    body = encoded(mixed("cat", "cut", 0.51))
    hot = client.automatic_speech_recognition(body, extra_body={"hot_words": ["cut"]})
    assert hot.text == "cut"
    with pytest.raises(HfHubHTTPError, match="the recording is of no known format"):
        client.automatic_speech_recognition(b"a letter, and no recording")


LYING = bytearray(encoded(spoken(TEXT)))
LYING[40:44] = (2_000_000_000).to_bytes(4, "little")
NAN = encoded(np.array([0.0] * 500 + [np.nan] * 500), kind="wav of floats")


@pytest.mark.usefixtures("both_ways")
@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the recording is empty"),
        (b"Dear server,\nplease transcribe this letter.\n", "the recording is of no known format"),
        (encoded(spoken(TEXT))[:5000], "the recording is cut short"),
        (encoded(spoken(TEXT), kind="mp3")[:5000], "the recording is damaged or cut short"),
        (bytes(LYING), "its header says 2000000000 bytes of samples, and"),
        (NAN, "sample 500 of the recording is not a finite number"),
        (encoded(np.zeros(99)), "the recording has 6.2 ms; expected at least 10"),
    ],
)
def test_mistakes_are_named(speech: RunningServer, body: bytes, message: str) -> None:
    status, answer = ask(speech, body)
    assert status == 400
    assert message in answer["error"]
    assert "/" not in answer["error"]
    assert "object at" not in answer["error"]


def test_a_recording_that_is_too_long_is_refused(speech: RunningServer) -> None:
    status, answer = ask(speech, encoded(np.zeros(1801 * 4000, np.int16), 4000, "flac"))
    assert (status, "the limit is 30 minutes" in answer["error"]) == (413, True)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"return_timestamps": "line"}, "parameters.return_timestamps"),
        ({"generation_parameters": {"num_beams": 0}}, "num_beams: Input should be greater"),
        ({"generation_parameters": {"top_k": 5}}, "parameters.generation_parameters.top_k"),
        ({"hot_words": ["a" * 101]}, "parameters.hot_words.0: String should have at most 100"),
        ({"hot_words": ["a"] * 201}, "parameters.hot_words: Tuple should have at most 200"),
        ({"hot_word_weight": 0}, "parameters.hot_word_weight: Input should be greater than 0"),
        ({"language": "en"}, "parameters.language: Extra inputs are not permitted"),
    ],
)
def test_settings_that_make_no_sense(
    speech: RunningServer, parameters: dict[str, Any], message: str
) -> None:
    status, answer = ask(speech, encoded(spoken("a")), parameters)
    assert status == 400
    assert message in answer["error"]


def infer(server: RunningServer, waveform: npt.NDArray[np.float32]) -> dict[str, Any]:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        given = tritonclient.http.InferInput("waveform", list(waveform.shape), "FP32")
        given.set_data_from_numpy(waveform)
        result = client.infer("tones", [given])
        return {name: result.as_numpy(name) for name in ("logits", "frames")}


def test_batched_equals_alone_on_clips_of_any_length(speech: RunningServer) -> None:
    random = np.random.default_rng(3)
    clips = [
        random.normal(0, 0.2, (1, int(size))).astype(np.float32)
        for size in random.integers(400, 6 * RATE_HZ, 200)
    ]
    alone = [infer(speech, clip) for clip in clips]
    runs = metric(speech, "nv_inference_exec_count", model="tones")
    with ThreadPoolExecutor(32) as threads:
        together = list(threads.map(lambda clip: infer(speech, clip), clips))
    assert metric(speech, "nv_inference_exec_count", model="tones") - runs < 150
    for clip, one, other in zip(clips, alone, together, strict=True):
        frames = -(-clip.shape[1] // FRAME)
        assert one["logits"].shape == other["logits"].shape == (1, frames, 28)
        assert one["frames"].tolist() == other["frames"].tolist() == [[frames]]
        np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-4)


def test_nan_is_padding_over_v2(speech: RunningServer) -> None:
    long, short = spoken("forty"), spoken("two")
    padded = np.full((2, len(long)), np.nan, np.float32)
    padded[0], padded[1, : len(short)] = long, short
    both = infer(speech, padded)
    counts = [-(-len(waveform) // FRAME) for waveform in (long, short)]
    assert both["frames"].ravel().tolist() == counts
    for row, waveform, count in zip(both["logits"], (long, short), counts, strict=True):
        alone = infer(speech, waveform[np.newaxis])["logits"][0]
        np.testing.assert_allclose(row[:count], alone, atol=1e-4)


def test_a_waveform_without_samples_is_refused(speech: RunningServer) -> None:
    with pytest.raises(InferenceServerException, match=r"'waveform' is empty: .* shape \[1, 0\]"):
        infer(speech, np.zeros((1, 0), np.float32))


def test_without_its_packages_a_model_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recognizer(tmp_path, "tones")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.delitem(sys.modules, "serving.speech.audio", raising=False)
    message = r"needs the package 'soundfile': pip install 'slipway\[audio\]'$"
    with pytest.raises(ModelLoadError, match=message):
        load_task("automatic-speech-recognition", tmp_path / "tones" / "1")


def test_a_model_that_answers_nonsense_has_failed() -> None:
    task = SpeechRecognition(settings(), lambda body, rate_hz: np.zeros(rate_hz, np.float32))
    assert isinstance(task, LongTask)
    question = task.preprocess(b"recording", task.Parameters())
    frames = {"frames": np.array([[25]])}
    for logits in (np.zeros((1, 25, 27), np.float32), np.full((1, 25, 28), np.nan, np.float32)):
        with pytest.raises(InferenceFailed, match="where the vocabulary has 28 classes"):
            task.postprocess({"logits": logits, **frames}, question)
