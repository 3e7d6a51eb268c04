"""The shipped recogniser's recordings: synthesised once, then kept for every run that needs them.

They are kept as 16-bit integers in $XDG_CACHE_HOME/slipway, by default ~/.cache/slipway, under the
hash of all that decides them. Noise and rooms are not in them: those are new in every epoch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np

from training import durable
from training.split import Indices, hash_lines, sha256_hex
from training.tasks.speech_recognition.corpus import RATE_HZ, Corpus, Samples, Sounds
from training.tasks.speech_recognition.espeak import ACCENTS, INVENTED, SPEAKERS, Spoken, synthesize
from training.tasks.speech_recognition.timbre import invent
from training.tasks.speech_recognition.utterances import normalize, say_something

_AUDIO_FILE = "audio.npz"
_MADE_BY = ("espeakng-loader", "soxr")
_KEPT_AS = "samples and sounds"
"""Changes with what is in the file."""


def make_corpus(utterances: int, invented: int, seed: int) -> Corpus:
    """So many utterances by espeak-ng's speakers and by invented ones, the same for the same seed.

    The invented speakers are one group, which is learned from: its hash puts it there.
    """
    spoken = [*draw(utterances, seed), *draw_invented(invented, seed)]
    digests = tuple(sha256_hex(repr(astuple(utterance)).encode()) for utterance in spoken)
    samples, lengths, sounds = _kept(spoken, digests)
    return Corpus(
        texts=tuple(normalize(utterance.text) for utterance in spoken),
        voices=tuple(f"{utterance.accent}+{utterance.speaker}" for utterance in spoken),
        groups=tuple(sha256_hex(utterance.speaker.encode()) for utterance in spoken),
        digests=digests,
        samples=samples,
        lengths=lengths,
        sounds=sounds,
    )


def draw(utterances: int, seed: int) -> list[Spoken]:
    """Who of espeak-ng's speakers says what, and how fast and how high."""
    chance = Random(seed)  # noqa: S311
    return [
        Spoken(
            text=say_something(chance),
            accent=chance.choice(ACCENTS),
            speaker=chance.choice(SPEAKERS),
            speed=chance.randint(120, 210),
            pitch=chance.randint(25, 75),
            range=chance.randint(25, 75),
        )
        for _ in range(utterances)
    ]


def draw_invented(utterances: int, seed: int) -> list[Spoken]:
    """The same, said by as many speakers who never speak again."""
    chance = Random(f"{INVENTED} {seed}")  # noqa: S311
    return [
        replace(one, speaker=INVENTED, timbre=invent(chance))
        for one in draw(utterances, chance.getrandbits(32))
    ]


def cache_directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "slipway"


def _kept(spoken: Sequence[Spoken], digests: Sequence[str]) -> tuple[Samples, Indices, Sounds]:
    """All samples end to end, how many each utterance has, and what is said in them when."""
    made_by = [f"{package} {version(package)}" for package in _MADE_BY]
    # Also by their order, for in a voice the noise goes on from one utterance to the next.
    order = sha256_hex("".join(digests).encode())
    directory = cache_directory() / f"spoken-{hash_lines([_KEPT_AS, *made_by, order])[:16]}"
    if not directory.exists():
        recordings = synthesize(spoken, RATE_HZ)
        sounds = [sound for recording in recordings for sound in recording.sounds]
        names, kinds = np.unique(["", *(name for _, name in sounds)], return_inverse=True)
        with durable.staged_directory(directory.parent) as staged:
            np.savez(
                staged / _AUDIO_FILE,
                samples=np.concatenate([recording.samples for recording in recordings]),
                lengths=np.array([len(recording.samples) for recording in recordings]),
                names=names,
                kinds=kinds[1:],
                starts=np.array([start for start, _ in sounds]),
                counts=np.array([len(recording.sounds) for recording in recordings]),
            )
            # Another run may have made the same meanwhile.
            with suppress(FileExistsError):
                durable.move_into_place(staged, directory)
    with np.load(directory / _AUDIO_FILE) as kept:
        sounds_of_all = Sounds(
            tuple(kept["names"].tolist()), kept["kinds"], kept["starts"], kept["counts"]
        )
        return kept["samples"], kept["lengths"], sounds_of_all
