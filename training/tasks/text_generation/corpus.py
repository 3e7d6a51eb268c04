"""Texts, whatever they are read from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training.errors import DataError
from training.split import MIN_DISTINCT_PER_CLASS, Split, hash_lines, sha256_hex, split_by_content
from training.tasks.text_generation.recipe import Data
from training.tasks.text_generation.standard_library import (
    python_version,
    read_standard_library,
    standard_library_directory,
)

VALIDATION_FRACTION = 0.04
HELD_OUT_FRACTION = 0.1
"""Of hundreds of files with thousands of tokens each, which say enough about the rest."""

TEXT_FILES = "*.txt"


@dataclass(frozen=True)
class Corpus:
    """Different texts, in the order of their hashes."""

    texts: tuple[str, ...]
    digests: tuple[str, ...]
    """sha256 of each text."""
    release: str | None
    """Which Python's standard library it is; None for the user's own."""


def read_corpus(settings: Data, directory: Path | None) -> Corpus:
    """Raises `DataError` when the folder cannot be used."""
    if settings.source == "folder":
        if directory is None:
            raise DataError(
                "data.source is folder: say which with --data DIR; every .txt file in it is a text"
            )
        return _corpus(directory, _read_folder(directory), settings.bytes, None)
    if directory is not None:
        raise DataError(f"data.source is {settings.source}, which reads no folder: drop --data")
    texts = read_standard_library()
    return _corpus(standard_library_directory(), texts, settings.bytes, python_version())


def split_corpus(corpus: Corpus) -> Split:
    """By file."""
    return split_by_content(
        corpus.digests,
        [0] * len(corpus.digests),
        validation=VALIDATION_FRACTION,
        held_out=HELD_OUT_FRACTION,
    )


def hash_corpus(corpus: Corpus) -> str:
    return hash_lines(corpus.digests)


def _corpus(directory: Path, texts: Iterable[str], most: int, release: str | None) -> Corpus:
    """Copies of a text count once: they would only be learned by heart."""
    by_digest = {}
    for text in texts:
        content = text.encode()
        by_digest[sha256_hex(content)] = (text, len(content))
    kept, total = {}, 0
    for digest, (text, size) in sorted(by_digest.items()):
        if total + size <= most:
            total += size
            kept[digest] = text
    if len(kept) < MIN_DISTINCT_PER_CLASS:
        raise DataError(
            f"{directory} has {len(kept)} different texts within data.bytes, which is {most};"
            f" expected at least {MIN_DISTINCT_PER_CLASS}, to have some to learn from and some to"
            " judge by"
        )
    return Corpus(tuple(kept.values()), tuple(kept), release)


def _read_folder(directory: Path) -> Iterable[str]:
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder; expected one that holds .txt files")
    for path in sorted(directory.rglob(TEXT_FILES)):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            # Without the mark that some editors put first.
            text = path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: expected UTF-8: {error}") from error
        if text.strip():
            yield text
