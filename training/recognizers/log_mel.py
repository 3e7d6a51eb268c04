"""Whisper's spectrogram: what `WhisperFeatureExtractor` computes, inside the graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperFeatureExtractor

_FLOOR = 1e-10
_RANGE = 8.0
"""Decades of power below the loudest that are told apart."""


class LogMel(nn.Module):
    """The logarithm of the power in bands, from windows of whole length, [batch, sample].

    The Fourier transform is a product with sines and cosines, so that every engine has it.
    """

    waves: Tensor
    bands: Tensor

    def __init__(self, extractor: WhisperFeatureExtractor):
        super().__init__()
        self.hop: int = extractor.hop_length
        self.size: int = extractor.n_fft
        self.register_buffer("waves", _waves(self.size), persistent=False)
        bands = torch.from_numpy(extractor.mel_filters.T.astype(np.float32))
        self.register_buffer("bands", bands, persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """[batch, band, column]: a column for every `hop` samples, around the first of them."""
        half = self.size // 2
        padded = functional.pad(waveform[:, None], (half, half), mode="reflect")
        parts = functional.conv1d(padded, self.waves, stride=self.hop)[:, :, :-1]
        real, imaginary = parts.chunk(2, dim=1)
        power = self.bands @ (real.square() + imaginary.square())
        # The logarithm to the base of 10.
        logarithm = power.clamp(min=_FLOOR).log() * (1.0 / np.log(10.0))
        loudest = logarithm.amax(dim=(1, 2), keepdim=True)
        scaled: Tensor = (logarithm.maximum(loudest - _RANGE) + 4.0) / 4.0
        return scaled


def _waves(size: int) -> Tensor:
    """Cosines, then sines, under Hann's window: [2 × frequency, 1, sample]."""
    time = np.arange(size)
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * time / size)
    angles = 2.0 * np.pi * np.outer(np.arange(size // 2 + 1), time) / size
    waves = np.concatenate([window * np.cos(angles), window * np.sin(angles)])
    return torch.from_numpy(waves[:, np.newaxis].astype(np.float32))
