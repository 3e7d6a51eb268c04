"""Which example is learned from, which one chooses the model, and which one judges it.

The split follows from the examples' contents alone. Neither the order of the files, nor the
platform, nor a seed moves an example to another part, so a held-out figure can be recomputed years
later, and nobody can draw splits until one flatters the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

VALIDATION_FRACTION = 0.1
HELD_OUT_FRACTION = 0.2
MIN_DISTINCT_PER_CLASS = 5
"""The fewest different examples of a class from which each part still gets one."""


@dataclass(frozen=True)
class Split:
    """Indices into the data; each part in an order that does not depend on the files' order."""

    train: Indices
    """Fitted to, and calibrated on."""
    validation: Indices
    """Chooses the epoch and the settings."""
    held_out: Indices
    """Judges the finished model, once."""
    hash: str
    """sha256 of which content went where."""


def split_by_content(
    digests: Sequence[str],
    targets: Sequence[int],
    validation: float = VALIDATION_FRACTION,
    held_out: float = HELD_OUT_FRACTION,
) -> Split:
    """Cut each class, ordered by its examples' digests; what the fractions leave is to learn from.

    Copies of one example share its digest and hence its part. Every class needs at least
    `MIN_DISTINCT_PER_CLASS` different examples, and no example may be in two classes: whoever
    reads the data checks both, because only he can name the files.
    """
    parts: dict[str, list[int]] = {"train": [], "validation": [], "held_out": []}
    lines = []
    by_class: dict[int, dict[str, list[int]]] = {}
    for index, (digest, target) in enumerate(zip(digests, targets, strict=True)):
        by_class.setdefault(target, {}).setdefault(digest, []).append(index)
    for target, copies in sorted(by_class.items()):
        ordered = sorted(copies)
        held_out_from = len(ordered) - max(1, round(held_out * len(ordered)))
        validation_from = held_out_from - max(1, round(validation * len(ordered)))
        for rank, digest in enumerate(ordered):
            if rank < validation_from:
                part = "train"
            elif rank < held_out_from:
                part = "validation"
            else:
                part = "held_out"
            parts[part].extend(copies[digest])
            lines.append(f"{part} {target} {digest}")
    return Split(
        train=np.array(parts["train"], dtype=np.int64),
        validation=np.array(parts["validation"], dtype=np.int64),
        held_out=np.array(parts["held_out"], dtype=np.int64),
        hash=hash_lines(lines),
    )


def hash_lines(lines: Iterable[str]) -> str:
    """sha256 of a set of lines, whatever order they come in."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def sha256_hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
