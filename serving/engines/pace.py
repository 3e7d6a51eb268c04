"""Whether a graph is so quick that it runs on the event loop.

To hand a run to a thread and to hear of its end costs some 50 microseconds, and more where the
interpreter is busy: more than a small network takes to compute. What is quick is measured, run by
run, so that nobody has to set it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import inf

from serving.types import DYNAMIC, Tensors, TensorSpec

QUICK_S = 0.0002
"""The event loop may be kept so long by a run."""

MOST_BYTES = 1 << 16
"""Of inputs: the time of a run grows with them, and a caller chooses how many there are."""

_RUNS = 9
"""To know a graph by."""


class Pace:
    """The middle one of the latest runs: whoever is held up by another process has not been slow.

    A graph whose rows have no fixed size is never quick.
    """

    def __init__(self, inputs: Sequence[TensorSpec]):
        self._is_fixed = all(
            spec.datatype != "BYTES" and DYNAMIC not in spec.shape[1:] for spec in inputs
        )
        self._latest_s: deque[float] = deque(maxlen=_RUNS)
        self._middle_s = inf

    def is_quick(self, inputs: Tensors) -> bool:
        """Whether a run with these inputs will be."""
        return (
            self._is_fixed
            and self._middle_s <= QUICK_S
            and sum(tensor.nbytes for tensor in inputs.values()) <= MOST_BYTES
        )

    def ran(self, seconds: float) -> None:
        self._latest_s.append(seconds)
        if len(self._latest_s) == _RUNS:
            self._middle_s = sorted(self._latest_s)[_RUNS // 2]
