"""Labelled pictures, whatever they are read from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from training.errors import DataError
from training.split import Indices, Split, hash_lines, split_by_content
from training.tasks.image_classification.recipe import Data

Images = npt.NDArray[np.uint8]
"""[picture, channel, row, column], 0 to 255."""


class LabelledImages(Protocol):
    """Pictures with their classes. Indices count pictures; targets count classes."""

    labels: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    digests: tuple[str, ...]
    """sha256 of each picture's content, hexadecimal."""

    def read(self, indices: Indices) -> Images:
        """Some pictures, prepared for the model, in the order asked for."""
        ...


def open_images(settings: Data, directory: Path | None) -> LabelledImages:
    """Open what the recipe reads; `directory` is for the source "folder" only.

    Raises `DataError` when it cannot be used.
    """
    # Imported when chosen: the digits bring scikit-learn, which takes a second.
    if settings.source == "folder":
        if directory is None:
            raise DataError(
                "data.source is folder: say which with --data DIR, one folder per class"
            )
        from training.tasks.image_classification.image_folder import ImageFolder

        return ImageFolder(directory, settings.preprocessing)
    if directory is not None:
        raise DataError(f"data.source is {settings.source}, which reads no folder: drop --data")
    from training.tasks.image_classification.digits import Digits

    return Digits(settings.preprocessing)


def split_images(images: LabelledImages) -> Split:
    return split_by_content(images.digests, images.targets.tolist())


def hash_images(images: LabelledImages) -> str:
    """sha256 of what the pictures are and which class each is in; their order has no part in it."""
    return hash_lines(
        f"{images.labels[target]} {digest}"
        for target, digest in zip(images.targets.tolist(), images.digests, strict=True)
    )
