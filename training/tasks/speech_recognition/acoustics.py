"""Where an utterance is heard: noise, level, a room and silence, for a whole batch at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from training.tasks.speech_recognition.corpus import RATE_HZ, Samples
from training.tasks.speech_recognition.recipe import Acoustics, Range

_ROUND = 4096
"""Fourier transforms are fast at multiples of this."""
_TILTED_FROM_HZ = 125.0
_STEEPEST = 1.0
"""The amplitude of brown noise falls with the frequency to this power; white noise's does not."""


def hear(
    recordings: Sequence[Samples], settings: Acoustics, generator: torch.Generator
) -> list[Tensor]:
    """One random hearing of each recording: float32 [samples], between -1 and 1.

    All randomness comes from `generator`, on whose device this is computed.
    """
    speeds = _draw(settings.playback, len(recordings), generator)
    recordings = [
        play(recording, speed) for recording, speed in zip(recordings, speeds.tolist(), strict=True)
    ]
    lengths = torch.tensor([len(recording) for recording in recordings], device=generator.device)
    before, after = (
        (RATE_HZ * _draw(settings.silence_seconds, len(recordings), generator)).long()
        for _ in range(2)
    )
    totals = lengths + before + after
    dry = _place(recordings, before, int(totals.max()))
    # Room for echoes beyond the end, which would come back at the beginning.
    tail = int(RATE_HZ * settings.reverberation_seconds[1]) if settings.rooms else 0
    size = -(-(dry.shape[1] + tail) // _ROUND) * _ROUND

    loudness = (dry.square().sum(dim=1) / lengths).sqrt().clamp(min=1e-5)
    level = 10.0 ** (_draw(settings.level_db, len(recordings), generator) / 20.0)
    signal_to_noise = 10.0 ** (_draw(settings.noise_db, len(recordings), generator) / 20.0)
    speech = torch.fft.rfft(dry, size) * _tilt(len(recordings), size, settings, generator)
    inside = _draw((0.0, 1.0), len(recordings), generator) < settings.rooms
    if inside.any():
        echoes = _rooms(int(inside.sum()), settings, generator)
        speech[inside] *= torch.fft.rfft(echoes, size)
    noise = _noise(len(recordings), size, generator)
    mixed = (level / loudness)[:, None] * speech + (level / signal_to_noise)[:, None] * noise
    waveforms = torch.fft.irfft(mixed, size).clamp(-1.0, 1.0)
    return [row[:total] for row, total in zip(waveforms, totals.tolist(), strict=True)]


def play(recording: Samples, speed: float) -> Samples:
    """So many times as fast: the vocal tract seems so many times shorter, and the pitch higher.

    After T. Ko and others, Audio augmentation for speech recognition, 2015. Linear interpolation
    is good enough for a voice that is to be another's.
    """
    if speed == 1.0:
        return recording
    times = np.arange(0.0, len(recording) - 1, speed)
    played: Samples = np.interp(times, np.arange(len(recording)), recording).astype(np.int16)
    return played


def _place(recordings: Sequence[Samples], before: Tensor, longest: int) -> Tensor:
    """[recording, sample], -1 to 1, with zeros around each."""
    placed = np.zeros((len(recordings), longest), np.float32)
    for row, recording, start in zip(placed, recordings, before.tolist(), strict=True):
        row[start : start + len(recording)] = recording / np.float32(32768)
    return torch.from_numpy(placed).to(before.device)


def _tilt(count: int, size: int, settings: Acoustics, generator: torch.Generator) -> Tensor:
    """Amplitudes [recording, frequency]: from 125 Hz, every octave is as much louder or softer."""
    frequencies = torch.arange(size // 2 + 1, device=generator.device) / size * RATE_HZ
    octaves = torch.log2(frequencies.clamp(min=_TILTED_FROM_HZ) / _TILTED_FROM_HZ)
    share = octaves / octaves[-1]
    decibels = _draw(settings.tilt_db, count, generator)[:, None] * share
    return torch.exp(decibels * (math.log(10.0) / 20.0))


def _rooms(count: int, settings: Acoustics, generator: torch.Generator) -> Tensor:
    """Impulse responses [room, sample]: the direct sound, and noise that fades exponentially.

    J. D. Polack's model of a room, as used for augmentation since.
    """
    samples = int(RATE_HZ * settings.reverberation_seconds[1])
    seconds = torch.arange(samples, device=generator.device) / RATE_HZ
    fading = torch.exp(
        -np.log(1000.0) * seconds / _draw(settings.reverberation_seconds, count, generator)[:, None]
    )
    echoes = fading * torch.randn(count, samples, generator=generator, device=generator.device)
    echoes /= echoes.square().sum(dim=1, keepdim=True).sqrt()
    echoes *= 10.0 ** (-_draw(settings.direct_db, count, generator) / 20.0)[:, None]
    echoes[:, 0] = 1.0
    return echoes


def _noise(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Spectra [noise, frequency] of noise whose root mean square is 1, each of another colour."""
    frequencies = torch.arange(1, size // 2 + 2, device=generator.device)
    steepness = _draw((0.0, _STEEPEST), count, generator)
    # Below 50 Hz there is little to hear, and brown noise has most of its power there.
    shape = torch.exp(
        -steepness[:, None] * torch.log((frequencies / size * RATE_HZ).clamp(min=50.0))
    )
    spectra = torch.randn(
        *(count, len(frequencies)),
        generator=generator,
        device=generator.device,
        dtype=torch.complex64,
    )
    spectra *= shape
    # By Parseval; the negative frequencies are as strong as the positive ones.
    power = 2.0 * torch.view_as_real(spectra).square().sum(dim=(1, 2)) / size**2
    return spectra / power.sqrt()[:, None]


def _draw(limits: Range, count: int, generator: torch.Generator) -> Tensor:
    low, high = limits
    numbers = torch.rand(count, generator=generator, device=generator.device)
    return low + (high - low) * numbers
