"""How late the event loop comes to what is due: everything else waits as long."""

from __future__ import annotations

import asyncio
from time import monotonic, time

from serving.observability.spread import Spread

EVERY_S = 0.1
"""A look costs a few microseconds; a loop that stands still is seen once it moves again."""
_MOST_MISSED = 1000
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class LoopLag:
    """Looks again and again, once it has been started."""

    def __init__(self) -> None:
        self.spread = Spread(_SECONDS)
        self.created = time()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._look())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _look(self) -> None:
        while True:
            due = monotonic() + EVERY_S
            await asyncio.sleep(EVERY_S)
            late = monotonic() - due
            self.spread.add(max(0.0, late))
            # The looks that were due meanwhile, which nobody took, would have come late, too.
            for missed in range(1, min(_MOST_MISSED, int(late / EVERY_S)) + 1):
                self.spread.add(late - missed * EVERY_S)
