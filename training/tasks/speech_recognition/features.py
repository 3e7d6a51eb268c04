"""From samples to the spectrogram that the network reads: inside the graph, and causal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

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

    The Fourier transform is a product with sines and cosines, so that every engine has it. Around
    the middle of a window cosines are even and sines are odd, which halves the work. Training,
    which no engine sees, has the fast one: to the same numbers but for rounding.
    """

    window: Tensor
    cosines: Tensor
    sines: Tensor
    bands: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        # They follow from constants and from the config, so they are not weights.
        self.register_buffer("window", _window(), persistent=False)
        cosines, sines = _waves()
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)
        self.register_buffer("bands", _bands(len(mean)), persistent=False)
        scale = 1.0 / torch.tensor(std, dtype=torch.float32)
        self.register_buffer("scale", scale, persistent=False)
        offset = -torch.tensor(mean, dtype=torch.float32) * scale
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """From [batch, CONTEXT + column × HOP] to [batch, band, column]."""
        hops = samples.reshape(samples.shape[0], -1, HOP)
        windows = torch.cat([hops[:, :-2], hops[:, 1:-1], hops[:, 2:]], dim=2)
        if self.training:
            spectrum = torch.fft.rfft(windows * self.window)[..., _USED]
            power = torch.view_as_real(spectrum).square().sum(dim=3) @ self.bands
        else:
            early, late = windows.chunk(2, dim=2)
            late = late.flip(2)
            real, imaginary = (early + late) @ self.cosines, (early - late) @ self.sines
            power = (real.square() + imaginary.square()) @ self.bands
        return (torch.log(power + _FLOOR) * self.scale + self.offset).transpose(1, 2)


_FREQUENCIES = np.arange(WINDOW // 2 + 1) * RATE_HZ / WINDOW
_USED = slice(*np.searchsorted(_FREQUENCIES, (_LOWEST_HZ, _HIGHEST_HZ)))
"""What any band looks at."""


def _window() -> Tensor:
    """Hann's, scaled so that a full-scale sine has a power of 1."""
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * (np.arange(WINDOW) + 0.5) / WINDOW)
    return torch.from_numpy((window * 2.0 / window.sum()).astype(np.float32))


def _waves() -> tuple[Tensor, Tensor]:
    """The first half of cosines and of sines under the window: [sample, frequency]."""
    time = np.arange(WINDOW // 2) - (WINDOW - 1) / 2
    angles = 2.0 * np.pi * np.outer(time, _FREQUENCIES[_USED] / RATE_HZ)
    window = _window()[: WINDOW // 2, None]
    cosines, sines = (
        window * torch.from_numpy(wave(angles).astype(np.float32)) for wave in (np.cos, np.sin)
    )
    return cosines, sines


def _bands(count: int) -> Tensor:
    """Triangles that overlap by half, equally wide in mel: [frequency, band].

    S. S. Stevens and others' scale by O'Shaughnessy's formula, 2595 log10(1 + f / 700).
    """
    low, high = (2595.0 * math.log10(1.0 + hz / 700.0) for hz in (_LOWEST_HZ, _HIGHEST_HZ))
    corners = 700.0 * (10.0 ** (np.linspace(low, high, count + 2) / 2595.0) - 1.0)
    # Where frequencies are sparse, a band is widened until it reaches two of them.
    spacing = RATE_HZ / WINDOW
    left = np.maximum(np.diff(corners)[:-1], spacing)[:, None]
    right = np.maximum(np.diff(corners)[1:], spacing)[:, None]
    distance = _FREQUENCIES[_USED] - corners[1:-1, None]
    triangles = np.minimum(1.0 + distance / left, 1.0 - distance / right).clip(min=0.0)
    return torch.from_numpy(triangles.T.astype(np.float32).copy())
