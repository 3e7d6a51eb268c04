"""From samples to the spectrogram that the network reads: inside the graph, and causal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.tasks.speech_recognition.corpus import RATE_HZ

HOP = 160
"""Samples from one column of the spectrogram to the next, 10 ms."""
WINDOW = 3 * HOP
CONTEXT = WINDOW - HOP
"""Samples before the first, which a window reaches back to."""
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7600.0
_FLOOR = 1e-6
"""Power that is taken for silence, 60 dB below a full-scale sine in one frequency."""


class LogMel(nn.Module):
    """The logarithm of the power in bands that the ear tells apart, normalised for each band.

    The Fourier transform is a convolution with sines and cosines, so that every engine has it.
    """

    waves: Tensor
    bands: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        # They follow from constants and from the config, so they are not weights.
        self.register_buffer("waves", _waves(), persistent=False)
        self.register_buffer("bands", _bands(len(mean)), persistent=False)
        scale = 1.0 / torch.tensor(std, dtype=torch.float32)[:, None]
        self.register_buffer("scale", scale, persistent=False)
        offset = -torch.tensor(mean, dtype=torch.float32)[:, None] * scale
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """From [batch, CONTEXT + column × HOP] to [batch, band, column]."""
        hops = samples.reshape(samples.shape[0], -1, HOP).transpose(1, 2)
        real, imaginary = functional.conv1d(hops, self.waves).chunk(2, dim=1)
        power = functional.conv1d(real.square() + imaginary.square(), self.bands)
        return torch.log(power + _FLOOR) * self.scale + self.offset


def _frequencies() -> npt.NDArray[np.float64]:
    """Those of the Fourier transform that any band looks at, in Hz."""
    frequencies = np.arange(WINDOW // 2 + 1) * RATE_HZ / WINDOW
    return frequencies[(frequencies > _LOWEST_HZ) & (frequencies < _HIGHEST_HZ)]


def _waves() -> Tensor:
    """Cosines, then sines, under Hann's window: [2 × frequency, HOP, hop of the window]."""
    time = np.arange(WINDOW)
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * (time + 0.5) / WINDOW)
    angles = 2.0 * np.pi * np.outer(_frequencies() / RATE_HZ, time)
    waves = np.concatenate([np.cos(angles), np.sin(angles)]) * window * (2.0 / window.sum())
    hops = waves.reshape(len(waves), -1, HOP).transpose(0, 2, 1)
    return torch.from_numpy(hops.astype(np.float32))


def _bands(count: int) -> Tensor:
    """Triangles that overlap by half, equally wide in mel: [band, frequency, 1].

    S. S. Stevens and others' scale by O'Shaughnessy's formula, 2595 log10(1 + f / 700).
    """
    low, high = (2595.0 * math.log10(1.0 + hz / 700.0) for hz in (_LOWEST_HZ, _HIGHEST_HZ))
    corners = 700.0 * (10.0 ** (np.linspace(low, high, count + 2) / 2595.0) - 1.0)
    # Where frequencies are sparse, a band is widened until it reaches two of them.
    spacing = RATE_HZ / WINDOW
    left = np.maximum(np.diff(corners)[:-1], spacing)[:, None]
    right = np.maximum(np.diff(corners)[1:], spacing)[:, None]
    distance = _frequencies() - corners[1:-1, None]
    triangles = np.minimum(1.0 + distance / left, 1.0 - distance / right).clip(min=0.0)
    return torch.from_numpy(triangles[:, :, None].astype(np.float32))
