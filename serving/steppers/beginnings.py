"""What comes before a request's first step, while all others go on with theirs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
B = TypeVar("B")
Tokens = npt.NDArray[np.int64]

FINE_PADDING = 32
"""Tokens up to which texts of any lengths begin together."""

MOST_TOGETHER = 128
"""Tokens that begin in one run, unless it is one text: who comes meanwhile waits for its end, and
many together take hardly less time than one after the other."""

PATIENCE = 8
"""Who begins lets others pass, for as long as they have so many times its own tokens together."""

LANES = 16
"""ONNX Runtime rounds a product with one column more than a multiple of these otherwise than wider
and narrower ones. No text is padded to such a width, so that its numbers do not depend on those
that begin together with it."""


@dataclass(slots=True)
class Begun(Generic[T, B]):
    """What came of jobs that began in one run of a graph."""

    jobs: Sequence[T]
    results: Sequence[B] | Exception
    """One for each job, in order."""
    tokens: int
    padding: int


class Beginnings(Generic[T, B]):
    """Runs what begins jobs on `threads` threads of its own, beside everything else.

    Who is short goes ahead of who is long, and waits for no more than what is being computed. Who
    is long may be overtaken for a while: see `PATIENCE`.

    All but what it runs belongs to one thread.
    """

    def __init__(self, threads: int):
        # A heap by when it is somebody's turn at the latest, in tokens begun so far.
        self._waiting: list[tuple[int, int, Callable[[], Sequence[B]], Begun[T, B]]] = []
        self._lock = Lock()
        self._numbers = itertools.count()
        self._started = 0
        # For each of those that wait, and false for a thread that is to end.
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._done: SimpleQueue[Begun[T, B]] = SimpleQueue()
        self._underway = 0
        self._threads = [
            Thread(target=self._run, name=f"begin-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> int:
        """Threads that compute."""
        return min(len(self._threads), self._underway)

    def start(
        self,
        jobs: Sequence[T],
        compute: Callable[[], Sequence[B]],
        *,
        tokens: int,
        padding: int = 0,
    ) -> None:
        """Begin jobs that have so many tokens; `compute` returns something for each."""
        self._underway += 1
        begun = Begun[T, B](jobs, (), tokens, padding)
        with self._lock:
            turn = self._started + PATIENCE * tokens
            self._started += tokens
            heappush(self._waiting, (turn, next(self._numbers), compute, begun))
        self._asked.put(True)

    def finished(self, *, wait_for_one: bool) -> Iterator[Begun[T, B]]:
        """Those that are done, if need be after a wait for the first of those on their way."""
        wait_for_one = wait_for_one and self._underway > 0
        while wait_for_one or not self._done.empty():
            wait_for_one = False
            self._underway -= 1
            yield self._done.get()

    def close(self) -> None:
        for _ in self._threads:
            self._asked.put(False)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while self._asked.get():
            with self._lock:
                _, _, compute, begun = heappop(self._waiting)
            try:
                begun.results = compute()
            except Exception as error:
                begun.results = error
            self._done.put(begun)
            # Not while it waits: they hold a request, and what was computed for it.
            del compute, begun


def padded(texts: Sequence[Sequence[int]], pad: int) -> Tokens:
    """[text, token] with the padding at the end."""
    width = max(map(len, texts))
    width += width % LANES == 1
    ids = np.full((len(texts), width), pad, np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    return ids


def alike(items: Sequence[T], lengths: Sequence[int]) -> Iterator[list[T]]:
    """Groups to begin together: of what one computes, padding is at most a quarter, or little, and
    it is not much in all."""
    group: list[T] = []
    longest = total = 0
    for index in sorted(range(len(items)), key=lambda index: -lengths[index]):
        padded_size = (len(group) + 1) * longest
        total += lengths[index]
        is_wasteful = padded_size > FINE_PADDING and 4 * total < 3 * padded_size
        if group and (is_wasteful or padded_size > MOST_TOGETHER):
            yield group
            group, total = [], lengths[index]
        if not group:
            longest = lengths[index]
        group.append(items[index])
    if group:
        yield group
