"""Waveforms to compare models on that need no recording: they hold all that speech is made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Waveform = npt.NDArray[np.float32]


def clips(lengths: list[int], rate_hz: int) -> list[Waveform]:
    """One of each length, in samples: tones that glide, in noise, with pauses; and a silent one."""
    chance = np.random.default_rng(0)
    made = [_clip(chance, length, rate_hz) for length in lengths]
    return [*made, np.zeros(max(lengths, default=rate_hz), np.float32)]


def _clip(chance: np.random.Generator, length: int, rate_hz: int) -> Waveform:
    time_s = np.arange(length) / rate_hz
    samples = chance.normal(0.0, 0.01, length)
    for _ in range(4):
        pitch_hz, glide = chance.uniform(80.0, 4000.0), chance.uniform(-200.0, 200.0)
        loudness = np.sin(np.pi * chance.uniform(0.5, 4.0) * time_s + chance.uniform(0.0, np.pi))
        samples += (
            0.15
            * loudness.clip(min=0.0)
            * np.sin(2.0 * np.pi * (pitch_hz + glide * time_s / 2.0) * time_s)
        )
    return samples.clip(-1.0, 1.0).astype(np.float32)
