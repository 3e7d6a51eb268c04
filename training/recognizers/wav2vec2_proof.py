"""The proof that a graph over padded batches computes what torch does of each row alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from training.graphs.reference import open_session
from training.parity import Check, ParityReport, at_most, equal, hash_files
from training.recognizers.clips import Waveform, clips
from training.recognizers.wav2vec2 import (
    FRAMES,
    LOGITS,
    MAX_BATCH_SIZE,
    WAVEFORM,
    Preprocessing,
    receptive_field,
)
from training.runs import FLOAT32, GRAPH_FILE

TOLERANCE = 1e-5
"""Largest difference of a log-probability, relative to the largest, or to 1 if that is less."""

_CLIPS = 24
_LONGEST_S = 3.0

LogProbs = npt.NDArray[np.float32]


def prove(directory: Path, model: Wav2Vec2ForCTC, preprocessing: Preprocessing) -> ParityReport:
    """Compare the graph in `directory` with the model it was exported from."""
    session = open_session(directory / GRAPH_FILE)
    checks = [*_interface(session, model)]
    if all(check.passed for check in checks):
        waveforms = _waveforms(model, preprocessing)
        expected = [_by_torch(model, waveform, preprocessing) for waveform in waveforms]
        served = {size: _by_batches(session, waveforms, size) for size in (1, 2, MAX_BATCH_SIZE)}
        scale = max(1.0, *(float(np.abs(rows).max()) for rows in expected))
        checks += [
            at_most(
                f"difference from torch, batch of {size}",
                _difference(rows, expected) / scale,
                TOLERANCE,
            )
            for size, rows in served.items()
        ]
        checks.append(
            at_most(
                f"difference between batched and alone, {len(waveforms)} clips",
                _difference(served[MAX_BATCH_SIZE], served[1]) / scale,
                TOLERANCE,
            )
        )
    return ParityReport(
        precision=FLOAT32, checks=tuple(checks), measurements={}, files=hash_files(directory)
    )


def _interface(session: ort.InferenceSession, model: Wav2Vec2ForCTC) -> tuple[Check, Check]:
    def text(nodes: Sequence[ort.NodeArg]) -> str:
        return ", ".join(f"{node.name} {node.type} {_shape(node.shape)}" for node in nodes)

    return (
        equal("inputs", text(session.get_inputs()), f"{WAVEFORM} tensor(float) [batch, samples]"),
        equal(
            "outputs",
            text(session.get_outputs()),
            f"{LOGITS} tensor(float) [batch, any, {model.lm_head.out_features}],"
            f" {FRAMES} tensor(int64) [batch, 1]",
        ),
    )


def _shape(shape: Sequence[int | str]) -> str:
    """The number of frames is an axis without a name of its own: a term of samples."""
    known = ("batch", "samples")
    axes = [axis if isinstance(axis, int) or axis in known else "any" for axis in shape]
    return f"[{', '.join(map(str, axes))}]"


def _waveforms(model: Wav2Vec2ForCTC, preprocessing: Preprocessing) -> list[Waveform]:
    """Of as many samples as one frame needs, of one less than a second frame needs, and more."""
    shortest, stride = receptive_field(model.config)
    longest = max(int(_LONGEST_S * preprocessing.sampling_rate), shortest + 10 * stride)
    chance = np.random.default_rng(1)
    lengths = [shortest, shortest + stride - 1, shortest + stride, longest]
    lengths += chance.integers(shortest, longest, _CLIPS - len(lengths)).tolist()
    return clips(chance.permutation(lengths).tolist(), preprocessing.sampling_rate)


def _by_torch(model: Wav2Vec2ForCTC, waveform: Waveform, preprocessing: Preprocessing) -> LogProbs:
    """[frame, class]"""
    # transformers does not annotate it.
    extractor = Wav2Vec2FeatureExtractor(  # type: ignore[no-untyped-call]
        sampling_rate=preprocessing.sampling_rate, do_normalize=preprocessing.normalizes
    )
    inputs = extractor(waveform, sampling_rate=preprocessing.sampling_rate, return_tensors="pt")
    with torch.no_grad():
        logits = model(inputs.input_values).logits[0]
    log_probs: LogProbs = logits.log_softmax(dim=-1).numpy()
    return log_probs


def _by_batches(
    session: ort.InferenceSession, waveforms: Sequence[Waveform], size: int
) -> list[LogProbs]:
    """The same of each, of as many frames as the graph says it has."""
    rows: list[LogProbs] = []
    for start in range(0, len(waveforms), size):
        batch = waveforms[start : start + size]
        padded = np.full((len(batch), max(map(len, batch))), np.nan, np.float32)
        for row, waveform in zip(padded, batch, strict=True):
            row[: len(waveform)] = waveform
        logits, frames = session.run([LOGITS, FRAMES], {WAVEFORM: padded})
        rows += [row[:end] for row, end in zip(logits, frames.ravel().tolist(), strict=True)]
    return rows


def _difference(one: Sequence[LogProbs], other: Sequence[LogProbs]) -> float:
    """The largest; infinite where one has more frames than the other."""
    if any(left.shape != right.shape for left, right in zip(one, other, strict=True)):
        return float("inf")
    return max(float(np.abs(left - right).max()) for left, right in zip(one, other, strict=True))
