"""The keys and values that attention looks back at, for all rows that generate together."""

from __future__ import annotations

from collections.abc import Sequence
from operator import le

import numpy as np

from serving.types import Array, Tensors, TensorSpec

MIN_EXTENT = 16


def reserved_extent(needed: int, most: int) -> int:
    """What is set aside for `needed` positions: a power of two, so that it is seldom changed."""
    return min(most, max(MIN_EXTENT, 1 << (needed - 1).bit_length()))


Blocks = Array
"""[tensor, head] of opaque elements: all positions of a row up to some length, as one.

NumPy lets go of the interpreter where it copies more than 500 elements, and waits until it gets it
back, which takes far longer than the copy. Of these there are always few.
"""

Saved = Sequence[Blocks | None]
"""A row's keys and values, apart from the others', by group; None where there are none yet."""


def blocks(stack: Array, start: int, stop: int) -> Array:
    """A view of some positions of [tensor, row, head, position, size]: [row, tensor, head]."""
    tensors, rows, heads, _, _ = stack.shape
    tensor, row, head, position, _ = stack.strides
    kind = np.dtype((np.void, (stop - start) * position))
    return np.ndarray((rows, tensors, heads), kind, stack, start * position, (row, tensor, head))


class KeyValueCache:
    """Dense arrays [row, head, position, size], one for each tensor; the rows in use come first.

    `groups` are tensors of one shape whose third dimension grows together: a decoder's own tokens,
    and the source that it attends to. Those of a group lie in one array, so that they are copied
    together. What lies beyond a row's own length is never read, so it is neither cleared nor
    copied.
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
        self._extents: Sequence[int] = [0] * len(groups)
        self._rows = 0
        # By group: views of the first positions of all rows, by how many those are.
        self._firsts: list[dict[int, Array]] = [{} for _ in groups]
        self.bytes = 0
        """What the arrays take; other threads may read it."""

    def fits(self, rows: int, extents: Sequence[int]) -> bool:
        """Whether there is room for so many rows and positions, by group."""
        return rows <= self._rows and all(map(le, extents, self._extents))

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
        self._rows, self._extents = wanted, extents
        self._firsts = [{} for _ in self._stacks]
        self.bytes = wanted * row_bytes

    def rows(self, start: int, stop: int) -> Tensors:
        """Views of some rows."""
        return {name: array[start:stop] for name, array in self._arrays.items()}

    def copy(self, sources: Sequence[int], targets: Sequence[int], lengths: Sequence[int]) -> None:
        """Copy rows over others, as if all at once; `lengths` are how far, by group."""
        saved = [self.save(source, lengths) for source in sources]
        for target, row in zip(targets, saved, strict=True):
            self.load(target, row)

    def move(self, source: int, target: int, lengths: Sequence[int]) -> None:
        """Copy a row over another; `lengths` are how far, by group."""
        for group, length in enumerate(lengths):
            if length:
                first = self._first(group, length)
                first[target] = first[source]

    def save(self, row: int, lengths: Sequence[int]) -> Saved:
        return [
            self._first(group, length)[row].copy() if length else None
            for group, length in enumerate(lengths)
        ]

    def load(self, row: int, saved: Saved) -> None:
        for group, kept in enumerate(saved):
            if kept is not None:
                length = kept.itemsize // self._stacks[group].strides[3]
                self._first(group, length)[row] = kept

    def clear(self) -> None:
        self._stacks.clear()
        self._arrays.clear()
        self._firsts.clear()
        self.bytes = 0

    def _first(self, group: int, length: int) -> Array:
        """[row, tensor, head] of opaque elements: the first positions of each."""
        views = self._firsts[group]
        view = views.get(length)
        if view is None:
            view = views[length] = blocks(self._stacks[group], 0, length)
        return view
