"""The user's own pictures: a folder with one folder per class."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from serving.errors import RequestError
from serving.tasks.image_classification import ImagePreprocessing, Pixels
from training.errors import DataError
from training.split import MIN_DISTINCT_PER_CLASS, Indices, sha256_hex
from training.tasks.image_classification.images import Images

KEPT_BYTES = 2**30
"""Prepared pictures are small, 3 kB at 32×32 in colour, and are kept up to this total."""


class ImageFolder:
    """Pictures of any format and size that serving takes, prepared exactly as serving does.

    Every file is read once at the start, so that a broken one is found in the first minute of a
    run and not in its last epoch. Raises `DataError`, which names the file or the folder.
    """

    def __init__(self, directory: Path, preprocessing: ImagePreprocessing):
        self._preprocessing = preprocessing
        self._kept: dict[int, Pixels] = {}
        picture_bytes = preprocessing.channels * preprocessing.height * preprocessing.width
        self._kept_at_most = KEPT_BYTES // picture_bytes

        classes = _classes(directory)
        pictures = [
            (path, target) for target, folder in enumerate(classes) for path in _files(folder)
        ]
        self.labels = tuple(folder.name for folder in classes)
        self.targets = np.array([target for _, target in pictures], dtype=np.int64)
        self._paths = tuple(path for path, _ in pictures)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            opened = threads.map(self._open, range(len(pictures)))
            progress = tqdm(opened, "reading pictures", len(pictures), unit="picture", leave=False)
            self.digests = tuple(progress)
        self._check_copies()

    def read(self, indices: Indices) -> Images:
        # Pillow decodes outside the GIL, so threads help for those that were not kept.
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return np.stack(list(threads.map(self._prepared, indices.tolist())))

    def __getstate__(self) -> dict[str, Any]:
        """Without what was kept: each training process prepares the pictures it needs."""
        return {**self.__dict__, "_kept": {}}

    def _open(self, index: int) -> str:
        """Check and prepare one picture; returns the digest of its file."""
        content = self._content(index)
        self._prepare(index, content)
        return sha256_hex(content)

    def _prepared(self, index: int) -> Pixels:
        kept = self._kept.get(index)
        return self._prepare(index, self._content(index)) if kept is None else kept

    def _prepare(self, index: int, content: bytes) -> Pixels:
        try:
            pixels = self._preprocessing.decode(content)
        except RequestError as error:
            raise DataError(f"{self._paths[index]}: {error}") from error
        if len(self._kept) < self._kept_at_most:
            self._kept[index] = pixels
        return pixels

    def _content(self, index: int) -> bytes:
        try:
            return self._paths[index].read_bytes()
        except OSError as error:
            raise DataError(f"{self._paths[index]}: {error.strerror}") from error

    def _check_copies(self) -> None:
        """No picture in two classes, and enough different ones in each class to split."""
        first: dict[str, int] = {}
        distinct = [0] * len(self.labels)
        for index, digest in enumerate(self.digests):
            twin = first.setdefault(digest, index)
            if self.targets[twin] != self.targets[index]:
                raise DataError(
                    f"{self._paths[twin]} and {self._paths[index]} are the same picture in two"
                    " classes; remove the wrong one"
                )
            distinct[self.targets[index]] += twin == index
        for label, count in zip(self.labels, distinct, strict=True):
            if count < MIN_DISTINCT_PER_CLASS:
                raise DataError(
                    f"class {label!r} has {count} different pictures; expected at least"
                    f" {MIN_DISTINCT_PER_CLASS}, to have some to learn from and some to judge by"
                )


def _classes(directory: Path) -> list[Path]:
    """One folder per class, in the order of their names. Hidden ones are not ours."""
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder; expected one that holds a folder per class")
    classes = sorted(
        entry for entry in directory.iterdir() if entry.is_dir() and entry.name[0] != "."
    )
    if len(classes) < 2:
        raise DataError(
            f"{directory} holds {len(classes)} class folder{'' if len(classes) == 1 else 's'};"
            " expected two or more, each with the pictures of one class"
        )
    for folder in classes:
        if folder.name.splitlines() != [folder.name]:
            raise DataError(f"{str(folder)!r}: a class name must be one line; rename the folder")
    return classes


def _files(folder: Path) -> list[Path]:
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    )
    if not files:
        raise DataError(f"{folder}: the class has no pictures")
    return files
