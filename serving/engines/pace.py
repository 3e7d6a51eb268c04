"""Whether a graph is so quick that it runs on the event loop.

To hand a run to a thread and to hear of its end costs some 50 microseconds, and more where the
interpreter is busy: more than a small network takes to compute. What is quick is measured, run by
run, so that nobody has to set it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, thread_time

from serving.types import DYNAMIC, Tensors, TensorSpec

QUICK_S = 0.0002
"""The event loop may be kept so long by a run."""

SLOW_S = 0.005
"""A graph that once took longer has shown that it may: it keeps to its threads."""

MOST_BYTES = 1 << 16
"""Of inputs: the time of a run grows with them, and a caller chooses how many there are."""

_GROWTH = 4
"""Inputs may have so many times the bytes of the largest of the latest runs."""

_RUNS = 9
"""To know a graph by."""

_KNOWN_WELL = 256
"""Runs after which its processor time, which is dear to ask for, is measured no more."""

_LARGEST_FILE = 1 << 26
# NodeProto.op_type is field 4: its tag, its length, its text.
_REPEATS = tuple(b"\x22" + bytes([len(name)]) + name for name in (b"Loop", b"Scan", b"If"))


def may_repeat(graph: Path) -> bool:
    """Whether values decide how much an ONNX graph computes; too large a file counts as such."""
    if graph.stat().st_size > _LARGEST_FILE:
        return True
    content = graph.read_bytes()
    return any(operator in content for operator in _REPEATS)


class Pace:
    """The processor time of the latest runs, so that other processes do not count.

    What is not `fixed` is never quick: a graph where values or sizes decide how much is computed.

    The next run is to be timed by `clock`. Of a graph that is known well that is the time of day,
    which is never less than the processor's, until a run seems to take long.
    """

    def __init__(self, *, is_fixed: bool):
        self.clock: Callable[[], float] = thread_time
        self._is_trusted = is_fixed
        self._quick_runs = 0
        """In a row, by processor time."""
        self._sizes: deque[int] = deque(maxlen=_RUNS)
        self._most_bytes = -1

    def is_quick(self, inputs: Tensors) -> bool:
        """Whether a run with these inputs will be."""
        return _bytes(inputs) <= self._most_bytes

    def ran(self, inputs: Tensors, seconds: float, clock: Callable[[], float]) -> None:
        """A run has ended, which took so long by a clock."""
        if not self._is_trusted:
            return
        if seconds <= QUICK_S:
            self._quick_runs += 1
            if self._quick_runs >= _KNOWN_WELL:
                self.clock = monotonic
        elif clock is monotonic:
            # It may be somebody else's time: the next runs show.
            self._quick_runs = _RUNS
            self.clock = thread_time
        else:
            self._quick_runs = 0
            self._is_trusted = seconds <= SLOW_S
        self._sizes.append(_bytes(inputs))
        is_quick = self._is_trusted and self._quick_runs >= _RUNS
        self._most_bytes = min(MOST_BYTES, _GROWTH * max(self._sizes)) if is_quick else -1


def is_fixed(inputs: Sequence[TensorSpec], *, batches: bool) -> bool:
    """Whether every row of these has one size."""
    return all(
        spec.datatype != "BYTES" and DYNAMIC not in spec.shape[1 if batches else 0 :]
        for spec in inputs
    )


def _bytes(inputs: Tensors) -> int:
    size = 0
    for tensor in inputs.values():
        size += tensor.nbytes
    return size
