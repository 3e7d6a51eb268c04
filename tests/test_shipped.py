"""The models in the repository say to their own examples what their cards say."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Iterator

import pytest

from serving.speech.recognizer import RecognizerSettings
from tests.conftest import SHIPPED
from tests.support import RunningServer, call, serving


@pytest.fixture(scope="module")
def shipped() -> Iterator[RunningServer]:
    with serving(SHIPPED) as server:
        yield server


def test_a_digit_that_is_drawn_is_read_as_what_was_asked_for(shipped: RunningServer) -> None:
    json_type = {"Content-Type": "application/json"}
    for number in range(10):
        wish = {"inputs": str(number), "parameters": {"seed": number}}
        status, picture = call(
            shipped.http_port,
            "POST",
            "/models/digits-diffusion",
            json.dumps(wish).encode(),
            json_type,
        )
        assert status == 200
        _, answer = call(shipped.http_port, "POST", "/models/digits", picture)
        assert json.loads(answer)[0]["label"] == str(number)


def example(model: str) -> tuple[bytes, str]:
    version = SHIPPED / model / "1"
    answer: str = json.loads((version / "example.json").read_text())["answer"]
    return (version / "example.wav").read_bytes(), answer


@pytest.mark.parametrize("model", ["spoken-numbers", "spoken-numbers-live"])
def test_a_recogniser_hears_its_example(shipped: RunningServer, model: str) -> None:
    recording, expected = example(model)
    status, body = call(shipped.http_port, "POST", f"/models/{model}", recording)
    assert (status, json.loads(body)["text"]) == (200, expected)
    card = (SHIPPED / model / "1" / "README.md").read_text()
    assert set(expected.split()) <= set(RecognizerSettings.load(SHIPPED / model / "1").words)
    assert f'{{"text": "{expected}"' in card


def test_a_recogniser_that_writes_hears_its_example_and_when(shipped: RunningServer) -> None:
    model = "spoken-numbers-whisper"
    recording, expected = example(model)
    plain = json.dumps(
        {
            "inputs": base64.b64encode(recording).decode(),
            "parameters": {"return_timestamps": False},
        }
    )
    status, body = call(
        shipped.http_port,
        "POST",
        f"/models/{model}",
        plain.encode(),
        {"Content-Type": "application/json"},
    )
    assert (status, json.loads(body)["text"]) == (200, expected)
    _, body = call(shipped.http_port, "POST", f"/models/{model}", recording)
    chunks = json.loads(body)["chunks"]
    with wave.open(io.BytesIO(recording)) as file:
        duration_s = file.getnframes() / file.getframerate()
    times = [second for chunk in chunks for second in chunk["timestamp"]]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= duration_s + 0.1
    assert f'{{"text": "{expected}"' in (SHIPPED / model / "1" / "README.md").read_text()
