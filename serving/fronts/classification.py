"""The classification extension: the most probable classes of an output instead of its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from serving.errors import InvalidRequest
from serving.types import Array

MAX_ELEMENTS = 1_000_000
_LONG_ROW = 512
"""Elements from which on choosing the greatest is faster than sorting all."""


def classify(name: str, tensor: Array, k: int, labels: Sequence[str], batched: bool) -> Array:
    """The `k` greatest elements of each row (of the whole tensor if not `batched`), as BYTES.

    Each is `value:index` or, for an index that has a label, `value:index:label`, the greatest
    first, equals by index, not-a-number last. The shape is [rows, classes] or [classes].

    Raises `InvalidRequest` for a BYTES output and for one of more than a million elements.
    """
    if k < 1:
        raise InvalidRequest(f"classification of output {name!r} must be 1 or more, got {k}")
    if tensor.dtype == object:
        raise InvalidRequest(f"classification of output {name!r} needs numbers, but it is BYTES")
    if tensor.size > MAX_ELEMENTS:
        raise InvalidRequest(
            f"classification of output {name!r} takes at most {MAX_ELEMENTS} elements,"
            f" got {tensor.size}"
        )
    by_row = batched and tensor.ndim > 0
    # Not -1: of a tensor without elements numpy cannot tell how many there are in a row.
    rows = tensor.reshape(
        (tensor.shape[0], math.prod(tensor.shape[1:])) if by_row else (1, tensor.size)
    )
    order = _greatest(rows, k)
    values = np.take_along_axis(rows, order, axis=1)
    if _is_floating(rows):
        form, values = "%f", values.astype(np.float64)
    else:
        form = "%d"
    # As std::to_string writes them.
    elements = [
        f"{form % value}:{index}{_label(labels, index)}".encode(errors="replace")
        for value, index in zip(values.ravel().tolist(), order.ravel().tolist(), strict=True)
    ]
    result = np.empty(len(elements), dtype=object)
    result[:] = elements
    return result.reshape(order.shape if batched else order.shape[1:])


def _greatest(rows: Array, k: int) -> Array:
    """Where the `k` greatest elements of each row are, in their order."""
    if not _is_floating(rows):
        # The complement reverses the order of every integer type, where a minus sign overflows.
        ascending = ~rows
    elif rows.dtype.kind == "V":
        # numpy knows BF16 as a foreign type, and sorts it slowly.
        ascending = -rows.astype(np.float32)
    else:
        ascending = -rows
    width = rows.shape[1]
    if width < _LONG_ROW or k > width // 4:
        return np.argsort(ascending, axis=1, kind="stable")[:, :k]
    return np.stack([_first(row, k) for row in ascending])


def _first(row: Array, k: int) -> Array:
    """What a stable sort of a long row has first, without sorting it."""
    last = np.partition(row, k - 1)[k - 1]
    if last != last:
        # Fewer than `k` are numbers.
        return np.argsort(row, kind="stable")[:k]
    below = np.flatnonzero(row < last)
    below = below[np.argsort(row[below], kind="stable")]
    return np.concatenate([below, np.flatnonzero(row == last)[: k - len(below)]])


def _is_floating(tensor: Array) -> bool:
    return tensor.dtype.kind in "fV"


def _label(labels: Sequence[str], index: int) -> str:
    return f":{labels[index]}" if index < len(labels) and labels[index] else ""
