"""Windows to learn from: utterances and pauses, one after another, and when each is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.split import Indices
from training.tasks.dictation.recipe import Windows
from training.tasks.speech_recognition.acoustics import play
from training.tasks.speech_recognition.corpus import RATE_HZ, Corpus, Samples
from training.tasks.speech_recognition.recipe import Range

SAMPLES_PER_FRAME = 320
"""Of what Whisper's encoder gives: a frame every 20 ms."""


@dataclass(frozen=True)
class Window:
    samples: Samples
    """Without noise, and not longer than a window may be."""
    said: Sequence[tuple[str, float, float]]
    """Each utterance with its first and last second."""
    sounds: Indices | None
    """Which of the corpus's sounds is made in the middle of each frame; None if nobody knows."""


def compose(
    corpus: Corpus,
    firsts: Indices,
    others: Indices,
    settings: Windows,
    playback: Range,
    seconds: int,
    generator: torch.Generator,
) -> list[Window]:
    """A window for each of `firsts`, which are said in them; some of `others` follow.

    Each is played at a speed from `playback`, before anybody writes down when it is said. All
    randomness comes from `generator`.
    """
    numbers = torch.rand(
        len(firsts), settings.utterances, 3, generator=generator, device=generator.device
    ).tolist()
    return [
        _compose(corpus, int(first), others, settings, playback, seconds * RATE_HZ, drawn)
        for first, drawn in zip(firsts, numbers, strict=True)
    ]


def _compose(
    corpus: Corpus,
    first: int,
    others: Indices,
    settings: Windows,
    playback: Range,
    longest: int,
    drawn: Sequence[Sequence[float]],
) -> Window:
    chosen = [first, *(int(others[int(number * len(others))]) for number, _, _ in drawn[1:])]
    # As many as the first number says, so that windows of each count are learned from.
    count = 1 + int(drawn[0][0] * settings.utterances)
    pieces: list[Samples] = []
    said: list[tuple[str, float, float]] = []
    middles = np.arange(SAMPLES_PER_FRAME // 2, longest, SAMPLES_PER_FRAME)
    sounds = np.zeros(len(middles), np.int64)
    size = 0
    for index, (_, paused, played) in zip(chosen[:count], drawn, strict=False):
        [recording] = corpus.read([index])
        # As it is, the first fits: longer ones are refused.
        slowest = max(playback[0], len(recording) / longest)
        speed = max(slowest, _between(playback, played))
        recording = play(recording, speed)
        pause = int(_between(settings.pause_seconds, paused) * RATE_HZ)
        if size + pause + len(recording) > longest:
            if said:
                break
            pause = longest - len(recording)
        pieces += [np.zeros(pause, np.int16), recording]
        start = size + pause
        size = start + len(recording)
        said.append((corpus.texts[index], start / RATE_HZ, size / RATE_HZ))
        if corpus.sounds:
            inside = (middles >= start) & (middles < size)
            times = (middles[inside] - start) * speed
            sounds[inside] = corpus.sounds.at(index, times.astype(np.int64))
    end = min(longest, size + int(settings.pause_seconds[1] * RATE_HZ))
    pieces.append(np.zeros(end - size, np.int16))
    return Window(np.concatenate(pieces), said, sounds if corpus.sounds else None)


def _between(limits: Range, share: float) -> float:
    low, high = limits
    return low + (high - low) * share
