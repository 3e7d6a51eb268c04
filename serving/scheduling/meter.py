"""Who is told of what schedulers do."""

from __future__ import annotations

from typing import Protocol

from serving.types import Iteration, Run


class Meter(Protocol):
    def ran(self, run: Run) -> None:
        """The engine completed one run, or a request that takes many steps its last."""
        ...

    def iterated(self, iteration: Iteration) -> None:
        """All that run together have made a step."""
        ...

    def event(self, seconds: float, *, is_first: bool) -> None:
        """A streaming request has its next event, so long after the one before it.

        The first is timed from the arrival of the request.
        """
        ...


class LateMeter:
    """Passes on what it is told from when it has somebody to tell."""

    def __init__(self) -> None:
        self.target: Meter | None = None

    def ran(self, run: Run) -> None:
        if self.target is not None:
            self.target.ran(run)

    def iterated(self, iteration: Iteration) -> None:
        if self.target is not None:
            self.target.iterated(iteration)

    def event(self, seconds: float, *, is_first: bool) -> None:
        if self.target is not None:
            self.target.event(seconds, is_first=is_first)
