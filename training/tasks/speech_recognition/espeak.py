"""Speech from espeak-ng, whose library and voices come inside the package `espeakng-loader`.

The library keeps state for the whole process, and what it said before changes the phase and the
noise of what it says next. So each batch is spoken in a new process, which makes the same samples
every time.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import espeakng_loader
import numpy as np
import numpy.typing as npt
import soxr
from tqdm import tqdm

from training.errors import DataError

Samples = npt.NDArray[np.int16]

ACCENTS = (
    *("en", "en-us", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan"),
    *("en-gb-x-gbcwmd", "en-us-nyc"),
)
SPEAKERS = (
    *("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "Alex"),
    *("Alicia", "Annie", "Denis", "Lee", "Mario", "Michael", "Mike", "Nguyen", "adam", "belinda"),
    *("benjamin", "boris", "david", "edward", "linda", "max", "quincy", "robert", "shelby"),
    *("steph", "travis", "victor"),
)
"""espeak-ng's variants of a voice, without the robots, the whisperers and the monsters."""

INVENTED = "invented"
"""The speaker of all utterances that bring a timbre of their own."""

_BATCH = 1000
_SYNCHRONOUS = 2
_TELLS_PHONEMES = 1
_END_OF_EVENTS, _PHONEME = 0, 7
_SPEED, _PITCH, _RANGE = 1, 3, 4
_CHARACTERS, _UTF8 = 1, 1


class _Event(ctypes.Structure):
    """espeak_EVENT of espeak-ng's speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        # A union, of which nothing else is read.
        ("phoneme", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True)
class Spoken:
    """What shall be said, and how."""

    text: str
    accent: str
    speaker: str
    speed: int
    """Words a minute."""
    pitch: int
    """0 to 100; 50 is the speaker's own."""
    range: int
    """How much the pitch moves, 0 to 100."""
    timbre: str = ""
    """Of an invented speaker: the lines that a file of espeak-ng's voice variants would have."""


@dataclass(frozen=True)
class Recording:
    samples: Samples
    sounds: tuple[tuple[int, str], ...]
    """The first sample of each speech sound, and which it is: espeak-ng's name, or "" for none."""


def synthesize(spoken: Sequence[Spoken], rate_hz: int) -> list[Recording]:
    """Say everything, on all cores. Raises `DataError` when espeak-ng cannot."""
    batches = [
        (spoken[start : start + _BATCH], start, rate_hz) for start in range(0, len(spoken), _BATCH)
    ]
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(len(batches), os.cpu_count() or 1), fresh, max_tasks_per_child=1
    ) as processes:
        made = processes.map(_say_batch, batches)
        progress = tqdm(made, "synthesising", len(batches), unit=f"{_BATCH} utterances")
        return [recording for batch in progress for recording in batch]


def _say_batch(task: tuple[Sequence[Spoken], int, int]) -> list[Recording]:
    """What one process says. `seed` decides the noise in voices that breathe."""
    spoken, seed, rate_hz = task
    return list(_say(spoken, seed, rate_hz))


def _say(spoken: Sequence[Spoken], seed: int, rate_hz: int) -> Iterator[Recording]:
    with TemporaryDirectory() as directory:
        variant = _add_variant(Path(directory))
        yield from _say_with(variant, Path(directory), spoken, seed, rate_hz)


def _say_with(
    variant: Path, data: Path, spoken: Sequence[Spoken], seed: int, rate_hz: int
) -> Iterator[Recording]:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    own_rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _TELLS_PHONEMES)
    if own_rate_hz <= 0:
        raise DataError("espeak-ng does not start: reinstall the package espeakng-loader")
    library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
    heard: list[Samples] = []
    sounds: list[tuple[int, str]] = []

    def hear(
        samples: ctypes._Pointer[ctypes.c_short], number: int, events: ctypes._Pointer[_Event]
    ) -> int:
        if samples and number:
            heard.append(np.ctypeslib.as_array(samples, (number,)).copy())
        for event in takewhile(_is_one, map(events.__getitem__, count())):
            if event.type == _PHONEME:
                start = round(event.sample * rate_hz / own_rate_hz)
                sounds.append((start, _sound(event.phoneme.decode())))
        return 0

    # Named, for the library does not hold it.
    callback = _Callback(hear)
    library.espeak_SetSynthCallback(callback)
    for utterance in spoken:
        if utterance.timbre:
            variant.write_text(f"language variant\nname {INVENTED}\n{utterance.timbre}")
        voice = f"{utterance.accent}+{utterance.speaker}"
        if library.espeak_SetVoiceByName(voice.encode()):
            raise DataError(f"espeak-ng has no voice {voice!r}")
        library.espeak_SetParameter(_SPEED, utterance.speed, 0)
        library.espeak_SetParameter(_PITCH, utterance.pitch, 0)
        library.espeak_SetParameter(_RANGE, utterance.range, 0)
        text = utterance.text.encode()
        heard.clear()
        sounds.clear()
        if library.espeak_Synth(text, len(text) + 1, 0, _CHARACTERS, 0, _UTF8, None, None):
            raise DataError(f"espeak-ng cannot say {utterance.text!r}")
        # The callback is over when the call returns, because playback is synchronous.
        waveform = np.concatenate(heard)
        samples = soxr.resample(waveform, own_rate_hz, rate_hz).astype(np.int16)
        yield Recording(samples, tuple(sounds))


def _is_one(event: _Event) -> bool:
    return bool(event.type != _END_OF_EVENTS)


def _sound(phoneme: str) -> str:
    """Without stress, length and the numbers of its variants; pauses have nothing else."""
    return "".join(letter for letter in phoneme if letter.isalpha() or letter == "@")


def _add_variant(directory: Path) -> Path:
    """Make `directory` espeak-ng's data with room for one more variant, whose file is returned.

    espeak-ng reads the file anew for every utterance.
    """
    own = Path(espeakng_loader.get_data_path())
    variants = Path("voices", "!v")
    (directory / variants).mkdir(parents=True)
    for there in (Path(), variants.parent, variants):
        for entry in (own / there).iterdir():
            if not (directory / there / entry.name).exists():
                (directory / there / entry.name).symlink_to(entry)
    return directory / variants / INVENTED
