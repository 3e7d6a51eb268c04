"""The user's own recordings: a CSV file that says where each is and what is said in it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from serving.errors import RequestError
from serving.speech.audio import decode
from training.errors import DataError
from training.split import MIN_DISTINCT_PER_CLASS, sha256_hex
from training.tasks.speech_recognition.corpus import RATE_HZ, Corpus, Samples
from training.tasks.speech_recognition.utterances import normalize

COLUMNS = ("path", "text")
VOICE = "voice"
SHORTEST_SECONDS = 0.1


@dataclass(frozen=True)
class _Row:
    where: str
    """For messages: the manifest and the line."""
    path: Path
    text: str
    voice: str


def read_manifest(manifest: Path, longest_seconds: float) -> Corpus:
    """Every recording, of any rate, format and number of channels that the served model takes.

    Paths count from the manifest's folder. With a column `voice` no voice is in two parts of the
    data; without it, no recording is. Raises `DataError`, which names the file and the line.
    """
    rows = list(_rows(manifest))
    recordings, digests = [], []
    for row in tqdm(rows, "reading recordings", unit="recording", leave=False):
        try:
            content = row.path.read_bytes()
        except OSError as error:
            raise DataError(f"{row.where}: {row.path}: {error.strerror}") from error
        recordings.append(_samples(row, content, longest_seconds))
        digests.append(sha256_hex(content))
    voices = tuple(row.voice for row in rows)
    groups = tuple(
        sha256_hex(voice.encode()) if voice else digest
        for voice, digest in zip(voices, digests, strict=True)
    )
    distinct = len(set(groups))
    if distinct < MIN_DISTINCT_PER_CLASS:
        what = "voices" if any(voices) else "recordings"
        raise DataError(
            f"{manifest} has {distinct} different {what}; expected at least"
            f" {MIN_DISTINCT_PER_CLASS}, to have some to learn from and some to judge by"
        )
    return Corpus(
        texts=tuple(row.text for row in rows),
        voices=tuple(voice or "any" for voice in voices),
        groups=groups,
        digests=tuple(digests),
        samples=np.concatenate(recordings),
        lengths=np.array([len(recording) for recording in recordings], dtype=np.int64),
    )


def _rows(manifest: Path) -> Iterator[_Row]:
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            header = tuple(rows.fieldnames or ())
            if sorted(header) not in (sorted(COLUMNS), sorted((*COLUMNS, VOICE))):
                raise DataError(
                    f"{manifest}: the first line must name the columns {', '.join(COLUMNS)}"
                    f" and, if you like, {VOICE}, with commas between"
                )
            for row in rows:
                where = f"{manifest}, line {rows.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: expected {len(header)} fields with commas between")
                text = normalize(row["text"])
                if not text:
                    raise DataError(f"{where}: the text has no words")
                path = manifest.parent / row["path"]
                yield _Row(where, path, text, row.get(VOICE, "").strip())
    except OSError as error:
        raise DataError(f"{manifest}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{manifest}: expected UTF-8: {error}") from error
    except csv.Error as error:
        raise DataError(f"{manifest}: {error}") from error


def _samples(row: _Row, content: bytes, longest_seconds: float) -> Samples:
    """One channel at `RATE_HZ`."""
    try:
        waveform = decode(content, RATE_HZ)
    except RequestError as error:
        raise DataError(f"{row.where}: {row.path}: {error}") from None
    if not SHORTEST_SECONDS * RATE_HZ <= len(waveform) <= longest_seconds * RATE_HZ:
        raise DataError(
            f"{row.where}: {row.path}: expected a recording of {SHORTEST_SECONDS:g} to"
            f" {longest_seconds:g} seconds, got {len(waveform) / RATE_HZ:.2f}"
        )
    samples: Samples = np.round(waveform * 32767.0).astype(np.int16)
    return samples
