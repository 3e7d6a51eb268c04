"""Recordings to send: the same for every run with the same seed.

espeak-ng says them, as it does for training; so words are there to be decoded, and their number is
that of speech.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import soundfile

from training.tasks.speech_recognition.corpus import RATE_HZ
from training.tasks.speech_recognition.espeak import synthesize
from training.tasks.speech_recognition.spoken import draw
from training.tasks.speech_recognition.utterances import normalize

SHORTEST_S, LONGEST_S = 1.0, 10.0
MEDIAN_S, SPREAD = 2.5, 0.6
"""Of the log-normal distribution of lengths: most recordings are short, one in a hundred is cut."""
NOISE = 10 ** (-30 / 20)
"""Beside the speech: 30 dB below it."""
_LIST_FILE = "clips.json"
_UTTERANCES = 250
_FAINT = 0.02
"""Of the loudest sample: what is below it before and after a word is silence."""

Samples = npt.NDArray[np.float32]
_PAUSE = np.zeros(round(0.15 * RATE_HZ), np.float32)


@dataclass(frozen=True)
class Clip:
    stem: str
    """Its files are beside the list, as WAV and as FLAC."""
    seconds: float
    first_word: str
    """As a transcript has it."""
    first_word_end_s: float


def mixed(directory: Path, number: int, seed: int) -> list[Clip]:
    """From 1 to 10 seconds, long-tailed: utterances one after another, cut where it is enough."""
    return _kept(directory / f"mixed-{number}-{seed}", number, seed, cut=True)


def utterances(directory: Path, number: int, seed: int) -> list[Clip]:
    """One utterance each, as somebody would say it to a microphone."""
    return _kept(directory / f"utterances-{number}-{seed}", number, seed, cut=False)


def _kept(directory: Path, number: int, seed: int, *, cut: bool) -> list[Clip]:
    """Made once: the list is written last."""
    file = directory / _LIST_FILE
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        clips = _make(directory, number, seed, cut=cut)
        file.write_text(json.dumps([asdict(clip) for clip in clips]) + "\n")
    return [
        Clip(**clip | {"stem": str(directory / clip["stem"])})
        for clip in json.loads(file.read_text())
    ]


def _make(directory: Path, number: int, seed: int, *, cut: bool) -> list[Clip]:
    chance = Random(seed)
    noise = np.random.default_rng(seed)
    said = _say(_UTTERANCES if cut else number, seed)
    clips = []
    for place in range(number):
        if cut:
            length = MEDIAN_S * chance.lognormvariate(0.0, SPREAD)
            length = min(max(length, SHORTEST_S), LONGEST_S)
            spoken = _joined(said, length, chance)
        else:
            spoken = said[place]
        waveform = spoken.waveform
        level = math.sqrt(float(np.square(waveform).mean()))
        hiss = NOISE * level * noise.standard_normal(len(waveform), np.float32)
        stem = f"{place:04d}"
        for kind in ("wav", "flac"):
            heard = np.clip(waveform + hiss, -1.0, 1.0)
            soundfile.write(directory / f"{stem}.{kind}", heard, RATE_HZ, subtype="PCM_16")
        clips.append(
            Clip(stem, len(waveform) / RATE_HZ, spoken.first_word, spoken.first_word_end_s)
        )
    return clips


@dataclass(frozen=True)
class _Said:
    waveform: Samples
    first_word: str
    first_word_end_s: float


def _joined(said: Sequence[_Said], length_s: float, chance: Random) -> _Said:
    size = round(length_s * RATE_HZ)
    first = chance.choice(said)
    parts = [first.waveform]
    while sum(map(len, parts)) < size:
        parts += [_PAUSE, chance.choice(said).waveform]
    return replace(first, waveform=np.concatenate(parts)[:size])


def _say(number: int, seed: int) -> list[_Said]:
    """Utterances, each after a pause.

    The first word is said by itself and what follows is put behind it: so its end is known.
    """
    spoken = []
    for utterance in draw(number, seed):
        first, _, rest = utterance.text.partition(" ")
        spoken += [replace(utterance, text=first), replace(utterance, text=rest or first)]
    voiced = [_trimmed(one.samples) for one in synthesize(spoken, RATE_HZ)]
    said = []
    for place, (word, after) in enumerate(zip(voiced[::2], voiced[1::2], strict=True)):
        waveform = np.concatenate([_PAUSE, word, after])
        end_s = (len(_PAUSE) + len(word)) / RATE_HZ
        said.append(_Said(waveform, normalize(spoken[2 * place].text), end_s))
    return said


def _trimmed(samples: npt.NDArray[np.int16]) -> Samples:
    """Without the silence before and after it."""
    waveform = (samples / 32768).astype(np.float32)
    loud = np.flatnonzero(np.abs(waveform) > _FAINT * np.abs(waveform).max())
    return waveform[loud[0] : loud[-1] + 1] if len(loud) else waveform
