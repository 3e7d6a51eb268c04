"""The plainest host of the graphs: ONNX Runtime, and for a live one a chunk at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor
from torch.nn import functional

from serving.speech.recognizer import RecognizerSettings
from training.tasks.speech_recognition.graphs import (
    CHUNK_FILE,
    CHUNK_SAMPLES,
    FRAMES,
    LOGITS,
    NEXT_STATE,
    STATE,
    WAVEFORM,
)
from training.tasks.speech_recognition.network import CHUNK_FRAMES, SAMPLES_PER_FRAME


class Host:
    """Called as the network is: see `Recognizer.forward`."""

    def __init__(self, graph: Path):
        """Of a live one, recognizer.json lies beside the graph."""
        self.live = graph.name == CHUNK_FILE
        self._delay = RecognizerSettings.load(graph.parent).delay_frames if self.live else 0
        self.session = open_session(graph)
        self._outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        if self.live:
            return self._chunk_by_chunk(waveform)
        outputs = self.run({WAVEFORM: waveform.numpy()})
        return torch.from_numpy(outputs[LOGITS]), torch.from_numpy(outputs[FRAMES])

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self._outputs, self.session.run(self._outputs, inputs), strict=True))

    def _chunk_by_chunk(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that have ended hear silence until the longest has."""
        lengths = (~waveform.isnan()).sum(dim=1, keepdim=True)
        frames = -(-lengths // SAMPLES_PER_FRAME)
        most = int(frames.max()) + self._delay
        missing = -(-most // CHUNK_FRAMES) * CHUNK_SAMPLES - waveform.shape[1]
        samples = functional.pad(waveform.nan_to_num(0.0), (0, missing)).numpy()
        states = {
            node.name: np.zeros((len(samples), *node.shape[1:]), np.float32)
            for node in self.session.get_inputs()
            if node.name != WAVEFORM
        }
        logits = []
        for start in range(0, samples.shape[1], CHUNK_SAMPLES):
            chunk = samples[:, start : start + CHUNK_SAMPLES]
            outputs = self.run({WAVEFORM: chunk, **states})
            logits.append(outputs[LOGITS])
            states = {name: outputs[name.replace(STATE, NEXT_STATE, 1)] for name in states}
        return torch.from_numpy(np.concatenate(logits, axis=1)[:, self._delay : most]), frames


def open_session(graph: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
