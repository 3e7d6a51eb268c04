"""A model that hears live, asked with whole files and over the v2 protocol."""

from __future__ import annotations

import http.client
import json
import queue
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from openai import OpenAI

from serving.speech.chunks import Chunker
from serving.tasks.speech_recognition import SpeechRecognition
from tests.serving.recordings import FRAME, encoded, spoken
from tests.serving.speech_models import settings, write_live
from tests.support import RunningServer, call, metric, serving

TEXT = "forty two and one"
LIVE = settings(
    type="ctc-live",
    max_seconds=None,
    overlap_seconds=None,
    chunk_samples=4 * FRAME,
    delay_frames=1,
)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    write_live(repository, "live")
    config = write_live(repository, "single") / "config.pbtxt"
    config.write_text(config.read_text().replace("sequences: 1024", "sequences: 1"))
    with serving(repository) as running:
        yield running


@pytest.mark.parametrize("text", ["a", TEXT, "long " * 40 + "end"])
def test_whole_files_are_heard_as_if_live(live: RunningServer, text: str) -> None:
    status, answer = call(live.http_port, "POST", "/models/live", encoded(spoken(text)))
    transcript = json.loads(answer)
    assert (status, transcript["text"]) == (200, text)
    starts = [chunk["timestamp"][0] for chunk in transcript["chunks"]]
    words = text.split()
    before = [len(" ".join(words[:at])) + (at > 0) for at in range(len(words))]
    assert starts == pytest.approx([0.12 + 0.24 * count for count in before], abs=0.041)


def test_who_does_not_wait_for_the_answer_gives_the_slot_back(live: RunningServer) -> None:
    long = encoded(np.zeros(1500 * 16_000, np.int16), kind="flac")
    with closing(http.client.HTTPConnection(live.http)) as connection:
        connection.request("POST", "/models/single", long)
        before = metric(live, "nv_inference_count", model="single")
        while metric(live, "nv_inference_count", model="single") == before:
            time.sleep(0.05)
    began = time.monotonic()
    status, answer = call(live.http_port, "POST", "/models/single", encoded(spoken(TEXT)))
    assert (status, json.loads(answer)["text"]) == (200, TEXT)
    # The slot of one who is silent would be free after ten seconds.
    assert time.monotonic() - began < 5


def test_the_openai_client_streams_a_file(live: RunningServer) -> None:
    file = ("recording.wav", encoded(spoken(TEXT)))
    with OpenAI(base_url=f"http://{live.http}/v1", api_key="none") as client:
        stream = client.audio.transcriptions.create(file=file, model="live", stream=True)
        *deltas, done = stream
    assert len(deltas) == len(TEXT.replace(" ", ""))
    assert "".join(part.delta for part in deltas) == done.text == TEXT  # type: ignore[union-attr]


def test_sequences_over_model_stream_infer_share_steps(live: RunningServer) -> None:
    count = 40
    texts = [TEXT[at % 7 :].strip() for at in range(count)]
    task = SpeechRecognition(LIVE, lambda body, rate_hz: np.zeros(1, np.float32))
    chunks = []
    for text in texts:
        chunker = Chunker(LIVE)
        chunks.append([*chunker.push(spoken(text)), *chunker.finish()])
    runs = metric(live, "nv_inference_exec_count", model="live")
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(live.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for at in range(max(map(len, chunks))):
            for number, own in enumerate(chunks):
                if at < len(own):
                    given = tritonclient.grpc.InferInput("waveform", [1, 4 * FRAME], "FP32")
                    given.set_data_from_numpy(own[at][0][np.newaxis])
                    client.async_stream_infer(
                        "live",
                        [given],
                        request_id=f"{number}-{at}",
                        sequence_id=number + 1,
                        sequence_start=at == 0,
                        sequence_end=at == len(own) - 1,
                    )
        transcribers = [task.transcriber(task.Parameters()) for _ in texts]
        for _ in range(sum(map(len, chunks))):
            result, error = answers.get(timeout=20)
            assert error is None
            number, at = map(int, result.get_response().id.split("-"))
            transcribers[number].push(result.as_numpy("logits")[0], chunks[number][at][1])
    assert [transcriber.transcript(10).text for transcriber in transcribers] == texts
    steps = metric(live, "nv_inference_exec_count", model="live") - runs
    assert steps < sum(map(len, chunks)) / 4
