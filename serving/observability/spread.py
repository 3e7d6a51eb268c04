"""How values are spread: what a Prometheus histogram counts, and a trace to go with each bucket."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from math import inf
from time import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
FINE_SECONDS = (0.00005, 0.0001, 0.00025, *SECONDS)
"""For what may take microseconds. Its bounds include all of `SECONDS`."""


class Exemplar(NamedTuple):
    """One value of a bucket, and the trace in which it can be looked at."""

    trace_id: str
    value: float
    at: float
    """Seconds since 1970."""


class Spread:
    """How many values were at most each bound, and the sum of all of them."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "sum")

    def __init__(self, bounds: tuple[float, ...]):
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: dict[int, Exemplar] = {}
        self.sum = 0.0

    @property
    def count(self) -> int:
        return sum(self._counts)

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def add_all(self, values: npt.NDArray[np.float64]) -> None:
        """As `add` of each."""
        places = np.searchsorted(self._bounds, values)
        for place, count in enumerate(np.bincount(places, minlength=len(self._counts)).tolist()):
            self._counts[place] += count
        self.sum += float(values.sum())

    def exemplify(self, value: float, trace_id: str) -> None:
        """Show this trace for the bucket that the value, which has been added, is in."""
        self._exemplars[bisect_left(self._bounds, value)] = Exemplar(trace_id, value, time())

    def cumulative(self) -> Iterator[tuple[float, int, Exemplar | None]]:
        """Each bound, infinity last, how many values were not above it, and one of those that were
        above the bound before."""
        count = 0
        for place, bound in enumerate((*self._bounds, inf)):
            count += self._counts[place]
            yield bound, count, self._exemplars.get(place)

    def include(self, other: Spread) -> None:
        """Count the values of another, whose bounds include all of these."""
        for place, count in enumerate(other._counts):
            bound = other._bounds[place] if place < len(other._bounds) else inf
            here = bisect_left(self._bounds, bound)
            self._counts[here] += count
            if (exemplar := other._exemplars.get(place)) is not None:
                self._exemplars[here] = max(
                    exemplar, self._exemplars.get(here, exemplar), key=lambda each: each.at
                )
        self.sum += other.sum

    @classmethod
    def of(cls, bounds: tuple[float, ...], others: Iterable[Spread]) -> Spread:
        """The values of all the others together."""
        whole = cls(bounds)
        for other in others:
            whole.include(other)
        return whole
