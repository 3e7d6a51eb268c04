"""The keys and values that attention looks back at, for all rows that generate together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.types import Array, Tensors, TensorSpec

MIN_EXTENT = 16


def reserved_extent(needed: int, most: int) -> int:
    """What is set aside for `needed` positions: a power of two, so that it is seldom changed."""
    return min(most, max(MIN_EXTENT, 1 << (needed - 1).bit_length()))


@dataclass(frozen=True, slots=True)
class Saved:
    """A row's keys and values, apart from the others'."""

    tensors: Tensors


class KeyValueCache:
    """Dense arrays [row, head, position, size], one for each tensor; the rows in use come first.

    `groups` are tensors whose third dimension grows together: a decoder's own tokens, and the
    source that it attends to. What lies beyond a row's own length is never read, so it is neither
    cleared nor copied.
    """

    def __init__(self, groups: Sequence[Sequence[TensorSpec]]):
        self._groups = groups
        self.unit_bytes = tuple(
            sum(spec.shape[1] * spec.shape[3] * 4 for spec in group) for group in groups
        )
        """What one row takes for one position, by group."""
        self._rows = 0
        self._extents = tuple(0 for _ in groups)
        self.arrays: Tensors = {}
        self.bytes = 0
        """What the arrays take; other threads may read it."""

    def reserve(
        self, rows: int, extents: Sequence[int], lengths: Sequence[int], most_bytes: int
    ) -> bool:
        """Make room for so many rows and positions; returns whether the arrays are new ones.

        `lengths` is how far the rows in use are filled, at most, by group. They are kept.
        """
        fits = rows <= self._rows and all(
            want <= have for want, have in zip(extents, self._extents, strict=True)
        )
        if fits:
            return False
        row_bytes = sum(e * u for e, u in zip(extents, self.unit_bytes, strict=True))
        # Twice as many rows where they fit, so that it is seldom done.
        wanted = max(rows, min(2 * rows, most_bytes // row_bytes))
        for group, extent, length in zip(self._groups, extents, lengths, strict=True):
            for spec in group:
                grown = np.empty((wanted, spec.shape[1], extent, spec.shape[3]), np.float32)
                old = self.arrays.get(spec.name)
                if old is not None and length:
                    kept = min(len(old), wanted)
                    grown[:kept, :, :length] = old[:kept, :, :length]
                self.arrays[spec.name] = grown
        self._rows, self._extents = wanted, tuple(extents)
        self.bytes = wanted * row_bytes
        return True

    def rows(self, start: int, stop: int) -> Tensors:
        """Views of some rows."""
        return {name: array[start:stop] for name, array in self.arrays.items()}

    def copy(self, sources: Sequence[int], targets: Sequence[int], lengths: Sequence[int]) -> None:
        """Copy rows over others, as if all at once; `lengths` are how far, by group."""
        # One row needs no indices, which would take several times as long.
        source, target = (sources[0], targets[0]) if len(sources) == 1 else (sources, targets)
        for group, length in zip(self._groups, lengths, strict=True):
            if length:
                for spec in group:
                    array = self.arrays[spec.name]
                    array[target, :, :length] = array[source, :, :length]

    def save(self, row: int, lengths: Sequence[int]) -> Saved:
        return Saved(
            {
                spec.name: self.arrays[spec.name][row, :, :length].copy()
                for group, length in zip(self._groups, lengths, strict=True)
                for spec in group
            }
        )

    def load(self, row: int, saved: Saved) -> None:
        for name, tensor in saved.tensors.items():
            self.put(name, row, tensor)

    def put(self, name: str, row: int, tensor: Array) -> None:
        """Fill a row from its first position on, with [head, position, size]."""
        self.arrays[name][row, :, : tensor.shape[1]] = tensor
