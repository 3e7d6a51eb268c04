"""The keys and values that attention looks back at, for all rows that generate together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.types import Array, Tensors, TensorSpec

MIN_EXTENT = 16


def reserved_extent(needed: int, most: int) -> int:
    """What is set aside for `needed` positions: a power of two, so that it is seldom changed."""
    return min(most, max(MIN_EXTENT, 1 << (needed - 1).bit_length()))


Saved = Sequence[Array]
"""A row's keys and values, apart from the others': [tensor, head, position, size] by group."""


class KeyValueCache:
    """Dense arrays [row, head, position, size], one for each tensor; the rows in use come first.

    `groups` are tensors of one shape whose third dimension grows together: a decoder's own tokens,
    and the source that it attends to. Those of a group lie in one array, for each of NumPy's copies
    lets go of the interpreter and must wait until it gets it back. What lies beyond a row's own
    length is never read, so it is neither cleared nor copied.
    """

    def __init__(self, groups: Sequence[Sequence[TensorSpec]]):
        self._groups = groups
        self.unit_bytes = tuple(
            sum(spec.shape[1] * spec.shape[3] * 4 for spec in group) for group in groups
        )
        """What one row takes for one position, by group."""
        self._stacks = [
            np.empty((len(group), 0, group[0].shape[1], 0, group[0].shape[3]), np.float32)
            for group in groups
        ]
        self._arrays: Tensors = {}
        self.bytes = 0
        """What the arrays take; other threads may read it."""

    def fits(self, rows: int, extents: Sequence[int]) -> bool:
        """Whether there is room for so many rows and positions, by group."""
        return all(
            rows <= stack.shape[1] and extent <= stack.shape[3]
            for stack, extent in zip(self._stacks, extents, strict=True)
        )

    def grow(
        self, rows: int, extents: Sequence[int], lengths: Sequence[int], most_bytes: int
    ) -> None:
        """Make room for so many rows and positions.

        `lengths` is how far the rows in use are filled, at most, by group. They are kept, if they
        are the first.
        """
        row_bytes = sum(e * u for e, u in zip(extents, self.unit_bytes, strict=True))
        # Twice as many rows where they fit, so that it is seldom done.
        wanted = max(rows, min(2 * rows, most_bytes // row_bytes))
        for index, (extent, length) in enumerate(zip(extents, lengths, strict=True)):
            old = self._stacks[index]
            tensors, had, heads, _, size = old.shape
            grown = np.empty((tensors, wanted, heads, extent, size), np.float32)
            kept = min(had, wanted)
            if kept:
                grown[:, :kept, :, :length] = old[:, :kept, :, :length]
            self._stacks[index] = grown
        self._arrays = {
            spec.name: array
            for group, stack in zip(self._groups, self._stacks, strict=True)
            for spec, array in zip(group, stack, strict=True)
        }
        self.bytes = wanted * row_bytes

    def rows(self, start: int, stop: int) -> Tensors:
        """Views of some rows."""
        return {name: array[start:stop] for name, array in self._arrays.items()}

    def copy(self, sources: Sequence[int], targets: Sequence[int], lengths: Sequence[int]) -> None:
        """Copy rows over others, as if all at once; `lengths` are how far, by group."""
        # One row needs no indices, which would take several times as long.
        source, target = (sources[0], targets[0]) if len(sources) == 1 else (sources, targets)
        for stack, length in zip(self._stacks, lengths, strict=True):
            if length:
                stack[:, target, :, :length] = stack[:, source, :, :length]

    def save(self, row: int, lengths: Sequence[int]) -> Saved:
        return [
            stack[:, row, :, :length].copy()
            for stack, length in zip(self._stacks, lengths, strict=True)
        ]

    def load(self, row: int, saved: Saved) -> None:
        for stack, tensors in zip(self._stacks, saved, strict=True):
            if tensors.size:
                stack[:, row, :, : tensors.shape[2]] = tensors

    def clear(self) -> None:
        self._stacks.clear()
        self._arrays.clear()
        self.bytes = 0
