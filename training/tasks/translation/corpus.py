"""Sentences with their translations, whatever they are read from."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training.errors import DataError
from training.split import MIN_DISTINCT_PER_CLASS, Split, hash_lines, sha256_hex, split_by_content
from training.tasks.translation.phrases import make_phrases
from training.tasks.translation.recipe import Data

COLUMNS = ("source", "target", "language")

VALIDATION_FRACTION = 0.02
HELD_OUT_FRACTION = 0.08
"""Of thousands of sentences, which say enough about the rest."""


@dataclass(frozen=True)
class Pair:
    source: str
    target: str
    language: str
    """Of the target."""


def read_pairs(settings: Data, file: Path | None, seed: int) -> tuple[Pair, ...]:
    """Raises `DataError` when the file cannot be used."""
    if settings.source == "file":
        if file is None:
            raise DataError(
                "data.source is file: say which with --data FILE.tsv, with the columns"
                f" {', '.join(COLUMNS)}"
            )
        return _read(file)
    if file is not None:
        raise DataError(f"data.source is {settings.source}, which reads no file: drop --data")
    return tuple(
        Pair(phrase.source, target, language)
        for phrase in make_phrases(settings.sentences, seed)
        for language, target in phrase.targets.items()
    )


def split_pairs(pairs: Iterable[Pair]) -> Split:
    """By source sentence: all its translations are in the same part."""
    digests = [sha256_hex(pair.source.encode()) for pair in pairs]
    return split_by_content(
        digests, [0] * len(digests), validation=VALIDATION_FRACTION, held_out=HELD_OUT_FRACTION
    )


def hash_pairs(pairs: Iterable[Pair]) -> str:
    return hash_lines(f"{pair.language}\t{pair.source}\t{pair.target}" for pair in pairs)


def _read(path: Path) -> tuple[Pair, ...]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = tuple(next(rows, ()))
            if sorted(header) != sorted(COLUMNS):
                raise DataError(
                    f"{path}: the first line must name the columns {', '.join(COLUMNS)},"
                    " with tabs between"
                )
            pairs = dict.fromkeys(_pair(path, rows.line_num, header, row) for row in rows)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8: {error}") from error
    distinct = len({pair.source for pair in pairs})
    if distinct < MIN_DISTINCT_PER_CLASS:
        raise DataError(
            f"{path} has {distinct} different source sentences; expected at least"
            f" {MIN_DISTINCT_PER_CLASS}, to have some to learn from and some to judge by"
        )
    return tuple(pairs)


def _pair(path: Path, line: int, header: tuple[str, ...], row: list[str]) -> Pair:
    if len(row) != len(header) or not all(field.strip() for field in row):
        raise DataError(f"{path}, line {line}: expected {len(header)} texts with tabs between")
    fields = {name: field.strip() for name, field in zip(header, row, strict=True)}
    if not fields["language"].isalnum():
        raise DataError(
            f"{path}, line {line}: {fields['language']!r} is no language;"
            " expected letters and digits, such as de"
        )
    return Pair(**fields)
