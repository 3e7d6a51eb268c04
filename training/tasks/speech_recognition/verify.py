"""The proof that what will be served is what was trained.

The graph runs in ONNX Runtime, on held-out recordings cut at random lengths, and is compared with
torch: its names and axes, the spectrogram, its numbers alone and in batches, and its word errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.parity import Check, ParityReport, at_most, equal, hash_files
from training.runs import FLOAT32
from training.tasks.speech_recognition.corpus import RATE_HZ
from training.tasks.speech_recognition.evaluate import (
    Model,
    heard_batches,
    pad,
    places,
    reader,
    score,
    transcribe,
)
from training.tasks.speech_recognition.features import HOP
from training.tasks.speech_recognition.graphs import (
    CHUNK_SAMPLES,
    FRAMES,
    LOGITS,
    NEXT_STATE,
    STATE,
    WAVEFORM,
    features_to_onnx,
    graph_file,
)
from training.tasks.speech_recognition.host import Host, open_session
from training.tasks.speech_recognition.network import CHUNK_FRAMES, Recognizer
from training.tasks.speech_recognition.report import JUDGED_IN
from training.tasks.speech_recognition.workload import SpeechWorkload

MAX_BATCH_SIZE = 32
"""The largest batch that is checked, and hence the largest that may be served."""
CLIPS = 200
_SHORTEST_SECONDS = 0.02
SERVED_WORD_ERRORS = "word error rate as served"


def verify(directory: Path, model: Recognizer, workload: SpeechWorkload) -> ParityReport:
    """Compare the graph in `directory` with the model it was exported from."""
    host = Host(directory / graph_file(model.config))
    checks = [*_interface(host, model)]
    measurements: dict[str, float] = {}
    if all(check.passed for check in checks):
        checks += _numbers(host, model, workload)
        words, measurements = _words(host, model, workload)
        checks += words
    return ParityReport(
        precision=FLOAT32,
        checks=tuple(checks),
        measurements=measurements,
        files=hash_files(directory),
    )


def tensors(model: Recognizer) -> tuple[dict[str, str], dict[str, str]]:
    """The inputs and outputs that the graph must have: name to type and shape."""
    config = model.config
    classes = len(config.vocabulary)
    if config.architecture != "live":
        return (
            {WAVEFORM: "tensor(float) ['batch', 'samples']"},
            {
                LOGITS: f"tensor(float) ['batch', any, {classes}]",
                FRAMES: "tensor(int64) ['batch', 1]",
            },
        )
    states = {
        name: f"tensor(float) ['batch', {', '.join(map(str, state.shape[1:]))}]"
        for name, state in model.begin(1).items()
    }
    return (
        {
            WAVEFORM: f"tensor(float) ['batch', {CHUNK_SAMPLES}]",
            **{f"{STATE}{name}": text for name, text in states.items()},
        },
        {
            LOGITS: f"tensor(float) ['batch', {CHUNK_FRAMES}, {classes}]",
            **{f"{NEXT_STATE}{name}": text for name, text in states.items()},
        },
    )


def _interface(host: Host, model: Recognizer) -> tuple[Check, ...]:
    inputs, outputs = tensors(model)
    return (
        equal("inputs", _text(host.session.get_inputs()), _listed(inputs)),
        equal("outputs", _text(host.session.get_outputs()), _listed(outputs)),
    )


def _text(nodes: Sequence[object]) -> str:
    return _listed({node.name: f"{node.type} {_shape(node.shape)}" for node in nodes})  # type: ignore[attr-defined]


def _shape(shape: Sequence[int | str]) -> str:
    """The number of frames is an axis without a name of its own: a term of samples."""
    known = ("batch", "samples")
    axes = [repr(axis) if isinstance(axis, int) or axis in known else "any" for axis in shape]
    return f"[{', '.join(axes)}]"


def _listed(named: dict[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in named.items())


@torch.no_grad()
def _numbers(host: Host, model: Recognizer, workload: SpeechWorkload) -> list[Check]:
    limit = workload.recipe.acceptance.parity
    clips = _clips(workload)
    expected = _by_batches(model, clips, 1)
    served = {size: _by_batches(host, clips, size) for size in (1, 2, MAX_BATCH_SIZE)}
    return [
        at_most("difference from torch in features", _features(model, clips), limit),
        *(
            at_most(f"difference from torch, batch of {size}", _difference(logits, expected), limit)
            for size, logits in served.items()
        ),
        at_most(
            f"difference between batched and alone, {len(clips)} clips",
            _difference(served[MAX_BATCH_SIZE], served[1]),
            limit,
        ),
    ]


def _words(
    host: Host, model: Recognizer, workload: SpeechWorkload
) -> tuple[list[Check], dict[str, float]]:
    checks: list[Check] = []
    measurements: dict[str, float] = {}
    cpu = torch.device("cpu")
    read = reader(model.config)
    for name in JUDGED_IN:
        place = places(workload.recipe.acoustics)[name]
        rates = []
        for judged in (host, model):
            texts = transcribe(judged, workload.corpus, workload.split.held_out, place, read, cpu)
            rates.append(score(workload.corpus, texts, name).word_errors)
        measurements[f"{SERVED_WORD_ERRORS}, {name}"] = rates[0]
        # Two classes can be as likely as each other to the last bit.
        checks.append(
            at_most(f"difference from torch in word errors, {name}", abs(rates[0] - rates[1]), 1e-3)
        )
    return checks, measurements


def _clips(workload: SpeechWorkload) -> list[Tensor]:
    """Held-out recordings in noise, each cut at random; and silence, noise and a square wave."""
    chance = np.random.default_rng(0)
    examples = np.resize(workload.split.held_out, CLIPS - 3)
    place = places(workload.recipe.acoustics)["noise at 20 dB"]
    heard = [
        waveform
        for _, waveforms in heard_batches(workload.corpus, examples, place, torch.device("cpu"))
        for waveform in waveforms
    ]
    shortest = int(_SHORTEST_SECONDS * RATE_HZ)
    cut = [waveform[: chance.integers(shortest, len(waveform) + 1)] for waveform in heard]
    second = torch.arange(RATE_HZ)
    extremes = [
        torch.zeros(RATE_HZ),
        torch.from_numpy(chance.uniform(-1.0, 1.0, RATE_HZ).astype(np.float32)),
        torch.where(second % 80 < 40, 1.0, -1.0),
    ]
    clips = [*cut, *extremes]
    return [clips[place] for place in chance.permutation(len(clips))]


def _by_batches(model: Model, clips: Sequence[Tensor], size: int) -> list[Tensor]:
    """Logits [frame, class] of each clip, of as many frames as it has."""
    rows = []
    for start in range(0, len(clips), size):
        logits, frames = model(pad(clips[start : start + size]))
        rows += [row[:end] for row, end in zip(logits, frames.flatten().tolist(), strict=True)]
    return rows


def _features(model: Recognizer, clips: Sequence[Tensor]) -> float:
    session = open_session(features_to_onnx(model).SerializeToString())
    largest = 0.0
    for clip in clips:
        samples = torch.nn.functional.pad(clip, (0, 5 * HOP - len(clip) % HOP))[None]
        [served] = session.run(None, {"samples": samples.numpy()})
        difference = (model.features(samples) - torch.from_numpy(served)).abs()
        largest = max(largest, float(difference.max()))
    return largest


def _difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest; infinite where one has more frames than the other."""
    largest = 0.0
    for left, right in zip(one, other, strict=True):
        if left.shape != right.shape:
            return float("inf")
        largest = max(largest, float((left - right).abs().max()))
    return largest
