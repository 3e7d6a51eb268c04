"""Work that keeps the event loop for long, one piece of it in each turn of the loop.

Callers who come together would else be read one after the other in one turn, however much they
have sent, and meanwhile nobody is told an answer and no instance gets its next batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Turns:
    """In the order in which it came."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def add(self, work: Callable[[], None]) -> None:
        """Do this when its turn comes, which is never within this call."""
        self._waiting.append(work)
        if len(self._waiting) == 1:
            self._come_soon()

    def _come_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        work = self._waiting.popleft()
        if self._waiting:
            self._come_soon()
        work()
