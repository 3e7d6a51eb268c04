"""Who waits until when."""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Holds each item until its time has come or it is discarded, whichever is first."""

    def __init__(self) -> None:
        # (time, number); the number of an item that was discarded is passed over.
        self._heap: list[tuple[float, int]] = []
        self._items: dict[int, T] = {}
        self._numbers_of: dict[T, int] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: T, at: float) -> None:
        """An item is held once at a time. One that is held until infinity need not be."""
        if at == math.inf:
            return
        number = next(self._numbers)
        self._items[number] = item
        self._numbers_of[item] = number
        heapq.heappush(self._heap, (at, number))
        # Most are discarded long before their time, and their numbers must not pile up.
        if len(self._heap) > 2 * len(self._items) + 64:
            self._heap = [entry for entry in self._heap if entry[1] in self._items]
            heapq.heapify(self._heap)

    def discard(self, item: T) -> None:
        """Does nothing if the item is not held."""
        number = self._numbers_of.pop(item, None)
        if number is not None:
            del self._items[number]

    def next(self) -> float:
        """When the first is due; infinity if nothing is held."""
        while self._heap and self._heap[0][1] not in self._items:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def pop(self, now: float) -> T | None:
        """Take out the first, if it is due."""
        if self.next() > now:
            return None
        _, number = heapq.heappop(self._heap)
        item = self._items.pop(number)
        del self._numbers_of[item]
        return item
