"""Live recordings: cut into chunks of one size as they come in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from serving.speech.recognizer import RecognizerSettings
from serving.speech.windows import Window

Waveform = npt.NDArray[np.float32]
Chunk = tuple[Waveform, Window]
"""Samples for the model, and which of the frames that come out of it are kept."""


class Chunker:
    """Cuts one recording. Samples go in in pieces of any size; those after its end are silence.

    A model that looks ahead answers later, by `delay_frames`. The frames before its first answer
    are dropped, and after the end it is given silence until its last answer is there.
    """

    def __init__(self, settings: RecognizerSettings):
        assert settings.chunk_samples is not None
        self._size = settings.chunk_samples
        self._frame = settings.samples_per_frame
        self._frames = settings.chunk_frames
        self._delay = settings.delay_frames
        self._rest = np.zeros(0, np.float32)
        self._count = 0
        self.samples = 0
        """That have come in."""

    def push(self, samples: Waveform) -> Iterator[Chunk]:
        """The chunks that are complete with these samples."""
        self.samples += len(samples)
        self._rest = np.concatenate([self._rest, samples])
        while len(self._rest) >= self._size:
            chunk, self._rest = self._rest[: self._size], self._rest[self._size :]
            yield self._next(chunk, None)

    def finish(self) -> list[Chunk]:
        """The chunks that are left, at least one, so that the model can be told which is last."""
        frames = -(-self.samples // self._frame) + self._delay
        count = max(1, -(-frames // self._frames) - self._count)
        silence = np.zeros(count * self._size - len(self._rest), np.float32)
        padded = np.concatenate([self._rest, silence]).reshape(count, self._size)
        return [
            self._next(chunk, max(0, min(self._frames, frames - self._count * self._frames)))
            for chunk in padded
        ]

    def _next(self, chunk: Waveform, last_frame: int | None) -> Chunk:
        first_frame = max(0, min(self._frames, self._delay - self._count * self._frames))
        start = self._count * self._size
        self._count += 1
        return chunk, Window(start, start + self._size, first_frame, last_frame)
