"""From a checkpoint to the graph that is served, and what it is called there."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.export import Dim

from serving.speech.recognizer import RecognizerSettings
from training.graphs.trace import trace
from training.runs import GRAPH_FILE
from training.tasks.speech_recognition.corpus import RATE_HZ
from training.tasks.speech_recognition.middle import BothWays
from training.tasks.speech_recognition.network import (
    BLANK,
    CHUNK_FRAMES,
    SAMPLES_PER_FRAME,
    Recognizer,
    RecognizerConfig,
)
from training.tasks.speech_recognition.onnx_gru import OnnxBothWays

WAVEFORM = "waveform"
LOGITS = "logits"
FRAMES = "frames"
STATE = "state_"
NEXT_STATE = "next_state_"
"""Before the name of a state, as a live recogniser takes it and as it gives it back."""
CHUNK_FILE = "chunk.onnx"

CHUNK_SAMPLES = CHUNK_FRAMES * SAMPLES_PER_FRAME
_MAX_SECONDS = 20.0
_OVERLAP_SECONDS = 3.0
"""A longer recording is heard in windows, which have so much in common."""


class _Chunk(nn.Module):
    """`Recognizer.step`, with each state in an argument of its own."""

    def __init__(self, model: Recognizer):
        super().__init__()
        self.model = model

    def forward(self, waveform: Tensor, states: dict[str, Tensor]) -> tuple[Tensor, ...]:
        logits, after = self.model.step(waveform, states)
        return logits, *(after[name] for name in states)


def graph_file(config: RecognizerConfig) -> str:
    return CHUNK_FILE if config.architecture == "live" else GRAPH_FILE


def to_onnx(model: Recognizer) -> ModelProto:
    """Trace the network, for any batch size and, unless it is live, any number of samples."""
    # Two rows, because one would be taken for a constant.
    batch = Dim("batch")
    if model.config.architecture != "live":
        return trace(
            _exportable(model),
            {WAVEFORM: torch.zeros(2, 10 * SAMPLES_PER_FRAME + 1)},
            [WAVEFORM],
            [LOGITS, FRAMES],
            {WAVEFORM: {0: batch, 1: Dim("samples", min=1)}},
        )
    states = model.begin(2)
    return trace(
        _Chunk(model),
        {WAVEFORM: torch.zeros(2, CHUNK_SAMPLES), "states": states},
        [WAVEFORM, *(f"{STATE}{name}" for name in states)],
        [LOGITS, *(f"{NEXT_STATE}{name}" for name in states)],
        {WAVEFORM: {0: batch}, "states": {name: {0: batch} for name in states}},
    )


def _exportable(model: Recognizer) -> Recognizer:
    if not isinstance(model.middle, BothWays):
        return model
    twin = copy.copy(model)
    # A copy of the module shares the table of its parts, which must stay as it is.
    twin._modules = {**model._modules, "middle": OnnxBothWays(model.middle)}
    return twin


def features_to_onnx(model: Recognizer) -> ModelProto:
    """The spectrogram alone, by which it is compared."""
    return trace(
        model.features,
        {"samples": torch.zeros(2, 10 * SAMPLES_PER_FRAME)},
        ["samples"],
        ["features"],
        # As many columns as there are hops, and each hop is 160 samples.
        {"samples": {0: Dim("batch"), 1: 160 * Dim("hops", min=4)}},
    )


def save_settings(directory: Path, config: RecognizerConfig, language: str | None) -> None:
    """Write recognizer.json: what serving needs to know of the graph beside it."""
    live = config.architecture == "live"
    RecognizerSettings(
        type="ctc-live" if live else "ctc",
        sampling_rate=RATE_HZ,
        samples_per_frame=SAMPLES_PER_FRAME,
        blank=BLANK,
        vocabulary=tuple(config.vocabulary),
        language=language,
        words=config.words,
        max_seconds=None if live else _MAX_SECONDS,
        overlap_seconds=None if live else _OVERLAP_SECONDS,
        chunk_samples=CHUNK_SAMPLES if live else None,
        delay_frames=config.delay if live else 0,
    ).save(directory)
