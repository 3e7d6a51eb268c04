"""Inputs to send, varied, and the same for every run: real ones, changed a little by chance.

Where it is known what the answer has to say, the sample tells it (`truth`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image
from texts import Writer

from loadreport import ROOT

SEED = 1
SHIPPED = ROOT / "model_repo"
_RATE_HZ = 16_000
_CODES = (">>de<<", ">>es<<", ">>fr<<")
_CHARACTERS_OF_A_TOKEN = 3


@dataclass(frozen=True)
class Sample:
    tensor: npt.NDArray[Any]
    """The input of protocol v2, with a batch axis of 1; texts as bytes objects."""
    payload: bytes
    """The body of POST /models/NAME."""
    media_type: str = "application/octet-stream"
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Of the request, in every protocol."""
    truth: str | None = None


def digits(number: int = 128) -> list[Sample]:
    """Handwritten digits, some fainter than others, with a little noise."""
    # It takes a second to import, which users of other models need not wait for.
    from sklearn.datasets import load_digits

    random = np.random.default_rng(SEED)
    pictures, labels = load_digits(return_X_y=True)
    samples = []
    for place in random.choice(len(pictures), number, replace=False):
        faint = pictures[place] * random.uniform(0.75, 1.0) + random.normal(0, 0.1, 64)
        pixels = np.clip(faint * 255 / 16, 0, 255).astype(np.uint8).reshape(8, 8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        samples.append(Sample(pixels[None, None], file.getvalue(), truth=str(int(labels[place]))))
    return samples


def phrases(number: int = 128) -> list[Sample]:
    """English of many lengths, into three languages. The first is the model's own example."""
    directory = SHIPPED / "translator/1"
    example = (directory / "example.txt").read_text().strip()
    answer = json.loads((directory / "example.json").read_text())["answer"]
    writer = Writer(lambda text: len(text) // _CHARACTERS_OF_A_TOKEN, _CODES, seed=SEED)
    written = [(text.text, None) for text in writer.mixed(number - 1)]
    return [_text(text, {}, truth) for text, truth in [(example, answer), *written]]


def recordings(model: str, number: int = 32) -> list[Sample]:
    """The model's example: after a pause, louder or fainter, with noise; or some of it only.

    What is said in the whole one is known.
    """
    random = np.random.default_rng(SEED)
    directory = SHIPPED / model / "1"
    spoken, rate_hz = soundfile.read(directory / "example.wav", dtype="float32")
    assert rate_hz == _RATE_HZ, "the shipped recognisers hear 16 kHz"
    answer = json.loads((directory / "example.json").read_text())["answer"]
    samples = []
    for place in range(number):
        is_whole = place % 2 == 0
        waveform = spoken if is_whole else _cut(spoken, random)
        pause = np.zeros(random.integers(0, _RATE_HZ // 4), np.float32)
        level = random.uniform(0.7, 1.2)
        heard = level * np.concatenate([pause, waveform])
        heard = heard + random.normal(0, 5e-4, len(heard))
        pcm = np.clip(np.round(heard * 32767), -32768, 32767).astype(np.int16)
        file = io.BytesIO()
        soundfile.write(file, pcm, _RATE_HZ, format="WAV")
        tensor = (pcm / np.float32(32768)).astype(np.float32)[None]
        samples.append(Sample(tensor, file.getvalue(), truth=answer if is_whole else None))
    return samples


def _cut(spoken: npt.NDArray[np.float32], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Its beginning: from a quarter to nearly all."""
    return spoken[: round(len(spoken) * random.uniform(0.25, 0.9))]


def prompts(number: int = 20) -> list[Sample]:
    """All ten digits, each with seeds of its own, so that each picture is always the same."""
    return [_text(str(place % 10), {"seed": place}, None) for place in range(number)]


def _text(text: str, parameters: Mapping[str, int], truth: str | None) -> Sample:
    tensor = np.empty((1, 1), np.object_)
    tensor[0, 0] = text.encode()
    payload = json.dumps({"inputs": text, "parameters": parameters}).encode()
    return Sample(tensor, payload, "application/json", parameters, truth)


POOLS: Mapping[str, Callable[[], list[Sample]]] = {
    "digits": digits,
    "translator": phrases,
    "spoken-numbers": partial(recordings, "spoken-numbers"),
    "spoken-numbers-live": partial(recordings, "spoken-numbers-live"),
    "spoken-numbers-whisper": partial(recordings, "spoken-numbers-whisper"),
    "digits-diffusion": prompts,
}
