"""Files of traces. Each is a JSON array, written piece by piece and in the background."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import structlog

log = structlog.get_logger(__name__)

_MAX_PIECES = 100
"""Waiting to be written. A disk that does not keep up costs traces, not memory."""


class TraceArray:
    """A file that is one JSON array once it is ended; what it held before is lost.

    Its methods block, and belong on one thread at a time.
    """

    def __init__(self, path: str):
        self.path = path
        self.is_awaited = False
        """Something is written, or will be."""
        self._is_begun = False

    def extend(self, traces: Sequence[bytes]) -> None:
        with open(self.path, "ab" if self._is_begun else "wb") as file:
            file.write(b",\n" if self._is_begun else b"[")
            self._is_begun = True
            file.write(b",\n".join(traces))

    def end(self) -> None:
        if self._is_begun:
            with open(self.path, "ab") as file:
                file.write(b"]\n")


class BackgroundWriter:
    """Writes to trace files in the order in which it was asked to, without holding up the caller.

    What cannot be written is logged and lost.
    """

    def __init__(self) -> None:
        self._work: deque[tuple[str, Callable[[], None]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_late = False
        # What has a piece that is written or will be.
        self._begun: set[TraceArray] = set()

    def extend(self, array: TraceArray, traces: Sequence[bytes]) -> None:
        if len(self._work) < _MAX_PIECES:
            self._is_late = False
            array.is_awaited = True
            self._add(array, partial(array.extend, traces))
        elif not self._is_late:
            self._is_late = True
            log.warning("traces are lost: they come faster than they are written", file=array.path)

    def end(self, array: TraceArray) -> None:
        if array.is_awaited:
            self._add(array, array.end)

    async def flush(self) -> None:
        """Returns when everything so far is written."""
        while self._task is not None and not self._task.done():
            await self._task

    def _add(self, array: TraceArray, work: Callable[[], None]) -> None:
        self._work.append((array.path, work))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._work:
            path, work = self._work.popleft()
            try:
                await asyncio.to_thread(work)
            except OSError as error:
                log.error("traces cannot be written", file=path, reason=error.strerror)
