"""Recordings with the texts that are said in them, whatever they are read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.errors import DataError
from training.split import Indices, Split, hash_lines, split_by_content
from training.tasks.speech_recognition.recipe import Data

RATE_HZ = 16_000

VALIDATION_FRACTION = 0.06
HELD_OUT_FRACTION = 0.14

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Sounds:
    """Which speech sounds are made, and when, in every recording."""

    names: tuple[str, ...]
    """The first, "", is that of none."""
    kinds: Indices
    """Places in `names`, of all recordings end to end."""
    starts: Indices
    """The first sample of each."""
    counts: Indices
    """Sounds in each recording."""

    def at(self, recording: int, samples: Indices) -> Indices:
        """The kind that is made at each of a recording's samples."""
        end = int(self.counts[: recording + 1].sum())
        own = slice(end - int(self.counts[recording]), end)
        places = np.searchsorted(self.starts[own], samples, side="right") - 1
        made: Indices = np.where(places < 0, 0, self.kinds[own][places])
        return made

    def only(self, kept: npt.NDArray[np.bool_]) -> Sounds:
        """Without the other recordings'."""
        own = np.repeat(kept, self.counts)
        return Sounds(self.names, self.kinds[own], self.starts[own], self.counts[kept])


@dataclass(frozen=True)
class Corpus:
    """Each recording is one channel at `RATE_HZ`."""

    texts: tuple[str, ...]
    """Normalised."""
    voices: tuple[str, ...]
    """Who speaks, for the figures."""
    groups: tuple[str, ...]
    """sha256 of what may not be in two parts at once: a speaker, or a recording."""
    digests: tuple[str, ...]
    """sha256 of each recording, or of all that decides how it is made."""
    samples: Samples
    """Of all recordings, end to end."""
    lengths: Indices
    """Samples of each."""
    sounds: Sounds | None = None
    """Where somebody knows."""

    def read(self, indices: Sequence[int] | Indices) -> list[Samples]:
        ends = np.cumsum(self.lengths)
        return [self.samples[ends[i] - self.lengths[i] : ends[i]] for i in indices]

    def only(self, kept: npt.NDArray[np.bool_]) -> Corpus:
        """Without the other recordings."""
        if kept.all():
            return self

        def chosen(every: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(compress(every, kept))

        return Corpus(
            chosen(self.texts),
            chosen(self.voices),
            chosen(self.groups),
            chosen(self.digests),
            np.concatenate(self.read(np.flatnonzero(kept))),
            self.lengths[kept],
            self.sounds.only(kept) if self.sounds else None,
        )

    @property
    def characters(self) -> str:
        """All that the texts are written with, in the order of their codes."""
        return "".join(sorted(set().union(*self.texts)))


def open_corpus(settings: Data, file: Path | None, seed: int) -> Corpus:
    """Read or make the recordings; `file` is for the source "manifest" only.

    Raises `DataError` when they cannot be used.
    """
    if settings.source == "manifest":
        if file is None:
            raise DataError(
                "data.source is manifest: say which with --data FILE.csv, with the columns path,"
                " text and, if you like, voice"
            )
        from training.tasks.speech_recognition.manifest import read_manifest

        return read_manifest(file, settings.longest_seconds)
    if file is not None:
        raise DataError(f"data.source is {settings.source}, which reads no file: drop --data")
    from training.tasks.speech_recognition.spoken import make_corpus

    made = make_corpus(settings.utterances, settings.invented, seed)
    return made.only(made.lengths <= settings.longest_seconds * RATE_HZ)


def split_corpus(corpus: Corpus) -> Split:
    """By speaker: whoever judges the model was not heard in training, whatever the accent."""
    return split_by_content(
        corpus.groups,
        [0] * len(corpus.groups),
        validation=VALIDATION_FRACTION,
        held_out=HELD_OUT_FRACTION,
    )


def hash_corpus(corpus: Corpus) -> str:
    return hash_lines(
        f"{voice}\t{digest}\t{text}"
        for voice, digest, text in zip(corpus.voices, corpus.digests, corpus.texts, strict=True)
    )
