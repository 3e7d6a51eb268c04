"""Batches that are put together while they wait: what comes is copied to where its run wants it.

To copy a whole batch when an instance is free keeps the instance waiting for it. What has just come
is in the processor's cache, moreover, and what came a run ago is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import ref

import numpy as np

from serving.types import Array, Tensors

LEAST_BYTES = 1 << 13
"""Of a request that is copied by itself: with less, one copy of all of them is faster."""

MOST_BYTES = 1 << 28
"""Of a batch that is gathered: memory for all of it is set aside when its first request comes."""


class _Block:
    """Memory for one batch, of which the first rows are taken."""

    __slots__ = ("__weakref__", "arrays", "is_closed", "rows")

    def __init__(self, inputs: Tensors, max_rows: int):
        self.arrays: Tensors = {
            name: np.empty((max_rows, *tensor.shape[1:]), tensor.dtype)
            for name, tensor in inputs.items()
        }
        self.rows = 0
        self.is_closed = False
        """Its last request is with the engine, and nobody's next one can be beside it."""


class Gathered(dict[str, Array]):
    """A request's inputs in a block, from row `first` to before row `end`."""

    __slots__ = ("block", "end", "first")

    def __init__(self, block: _Block, first: int, end: int):
        super().__init__({name: array[first:end] for name, array in block.arrays.items()})
        self.block = block
        self.first = first
        self.end = end


class Gathering:
    """Puts requests beside each other for batches of up to `max_rows`.

    All must have the same inputs, of the same shapes but for their first dimension, the rows.
    """

    def __init__(self, max_rows: int):
        self._max_rows = max_rows
        # That of the latest request, for as long as anybody has a part of it.
        self._block: Callable[[], _Block | None] = lambda: None

    def add(self, inputs: Tensors, rows: int) -> Tensors:
        """The same inputs, copied to their place if that is worth it."""
        size = sum([tensor.nbytes for tensor in inputs.values()])
        if size < LEAST_BYTES or rows == self._max_rows:
            return inputs
        if size * self._max_rows > MOST_BYTES * rows:
            return inputs
        block = self._block()
        if block is None or block.is_closed or block.rows + rows > self._max_rows:
            try:
                block = _Block(inputs, self._max_rows)
            except MemoryError:
                return inputs  # of which the batch may be small enough
            self._block = ref(block)
        first, block.rows = block.rows, block.rows + rows
        gathered = Gathered(block, first, block.rows)
        for name, tensor in inputs.items():
            gathered[name][...] = tensor
        return gathered


def joined(parts: Sequence[Tensors]) -> Tensors | None:
    """All of these in one, without a copy; None if they do not lie one after another.

    They are to run: if they are the last of their block, it takes no more.
    """
    first = parts[0]
    if not isinstance(first, Gathered):
        return None
    block, end = first.block, first.first
    for part in parts:
        if not isinstance(part, Gathered) or part.block is not block or part.first != end:
            return None
        end = part.end
    block.is_closed |= end == block.rows
    return {name: array[first.first : end] for name, array in block.arrays.items()}
