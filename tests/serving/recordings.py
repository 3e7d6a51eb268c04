"""Recordings of tones: a tone's pitch says a character, in every format that we read."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

VOCABULARY = ("", " ", *"abcdefghijklmnopqrstuvwxyz")
BLANK = 0
RATE_HZ = 16_000
FRAME = 640
"""Samples of one frame of the models here."""

TONE_S = 0.12
"""How long a character lasts; then it is silent for as long."""

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wav of 24 bits": ("WAV", "PCM_24"),
    "wav of floats": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg vorbis": ("OGG", "VORBIS"),
    "ogg opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
RATES_HZ = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000)
OPUS_RATES_HZ = (8000, 16000, 24000, 48000)

CASES = [
    (kind, rate_hz, channels)
    for kind in FORMATS
    for rate_hz in (OPUS_RATES_HZ if kind == "ogg opus" else RATES_HZ)
    for channels in ((1, 2) if kind == "mp3" else (1, 2, 6))
]
"""Every format at every rate and with every number of channels that it can have."""


def pitch_hz(character: str) -> int:
    """Whole waves of it fit into a frame, so that a frame hears one pitch only."""
    return 250 + 100 * VOCABULARY.index(character)


def spoken(text: str, rate_hz: int = RATE_HZ) -> npt.NDArray[np.float32]:
    """A waveform [samples] that the models here understand as `text`."""
    count = round(TONE_S * rate_hz)
    time_s = np.arange(count) / rate_hz
    pieces = [np.zeros(count)]
    for character in text:
        pieces += [0.5 * np.sin(2 * np.pi * pitch_hz(character) * time_s), np.zeros(count)]
    return np.concatenate(pieces).astype(np.float32)


def encoded(
    samples: npt.NDArray[Any], rate_hz: int = RATE_HZ, kind: str = "wav", channels: int = 1
) -> bytes:
    """A file with the same waveform in every channel."""
    buffer = io.BytesIO()
    container, subtype = FORMATS[kind]
    with soundfile.SoundFile(
        buffer, "w", rate_hz, channels, subtype, format=container
    ) as recording:
        # libsndfile's encoders keep a whole block on the stack.
        for start in range(0, len(samples), 4096):
            block = samples[start : start + 4096]
            recording.write(np.tile(block[:, np.newaxis], (1, channels)))
    return buffer.getvalue()
