"""How much larger than its requests a batch may become when ragged ones are padded."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

Shape = tuple[int, ...]

MAX_GROWTH = 4
"""A batch may be padded to as many times the elements of its requests, and no more: two requests
that are long in different dimensions would else take the product of both lengths. Sequences of
ordinary text differ by less."""

ALWAYS_FINE = 1 << 18
"""Elements of a batch that may be padding for the greater part: these are copied in less time than
a run takes, and short requests beside a long one gain from a shared run."""


class Padding:
    """The size of a batch that grows request by request."""

    def __init__(self) -> None:
        self._rows = 0
        self._elements = 0
        self._longest: list[Shape] = []

    def takes(self, rows: int, shapes: Sequence[Shape]) -> bool:
        """Take in a request, unless the batch would be mostly padding; the first is taken always.

        `shapes` are those of one row of every input that is padded: the same inputs each time.
        """
        elements = self._elements + rows * sum(map(prod, shapes))
        if self._rows:
            longest = [
                tuple(map(max, longest, shape))
                for longest, shape in zip(self._longest, shapes, strict=True)
            ]
        else:
            longest = list(shapes)
        padded = (self._rows + rows) * sum(map(prod, longest))
        if self._rows and padded > max(ALWAYS_FINE, MAX_GROWTH * elements):
            return False
        self._rows += rows
        self._elements = elements
        self._longest = longest
        return True
