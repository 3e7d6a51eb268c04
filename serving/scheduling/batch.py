"""From several requests' tensors to one batch, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.errors import InferenceFailed
from serving.types import Tensors


def stack(parts: Sequence[Tensors]) -> Tensors:
    """Concatenate along the batch dimension; a single request's tensors pass uncopied."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(outputs: Tensors, rows: Sequence[int]) -> list[Tensors]:
    """Cut a batch's outputs into each request's rows, as views.

    Raises `InferenceFailed` when the model did not return one row for each row it was given.
    """
    total = sum(rows)
    for name, tensor in outputs.items():
        if tensor.ndim == 0 or len(tensor) != total:
            raise InferenceFailed(
                f"output {name!r} has shape {list(tensor.shape)} for a batch of {total} rows"
            )
    parts = []
    start = 0
    for count in rows:
        parts.append({name: tensor[start : start + count] for name, tensor in outputs.items()})
        start += count
    return parts
