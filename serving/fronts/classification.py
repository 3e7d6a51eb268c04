"""The classification extension: the most probable classes of an output instead of its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from serving.errors import InvalidRequest
from serving.types import Array

MAX_ELEMENTS = 1_000_000


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
    if rows.dtype.kind in "fV":
        rows = rows.astype(np.float64)
        form = "%f"
        order_by = -rows
    else:
        form = "%d"
        # The complement reverses the order of every integer type, where a minus sign overflows.
        order_by = ~rows
    order = np.argsort(order_by, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(rows, order, axis=1)
    # As std::to_string writes them.
    elements = [
        f"{form % value}:{index}{_label(labels, index)}".encode(errors="replace")
        for value, index in zip(values.ravel().tolist(), order.ravel().tolist(), strict=True)
    ]
    result = np.empty(len(elements), dtype=object)
    result[:] = elements
    return result.reshape(order.shape if batched else order.shape[1:])


def _label(labels: Sequence[str], index: int) -> str:
    return f":{labels[index]}" if index < len(labels) and labels[index] else ""
