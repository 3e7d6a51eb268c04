"""What keeps a peer from flooding us with frames that get nothing done."""

from __future__ import annotations

from time import monotonic

from serving.fronts.http2.frames import Code, ConnectionFault

MOST_IDLE = 4096
"""Frames that get nothing done, such as pings and resets, which a peer may send at once. That is
four for each stream of `MAX_STREAMS`: clients widen the windows of all, and may take all back."""
IDLE_PER_S = 100
"""It gets so many more every second."""
EARNED = 4
"""And so many for what gets something done."""


class Credit:
    """Of one peer. Beyond `MOST_IDLE` that are `spent` it is to be checked."""

    def __init__(self) -> None:
        self.spent = 0
        """Frames with which nothing got done."""
        self._since = monotonic()

    def earn(self) -> None:
        """Something got done for the peer."""
        self.spent = max(0, self.spent - EARNED)

    def check(self, *, forgives: bool) -> None:
        """Raises `ConnectionFault` if too much is spent.

        Without `forgives` the time that has gone by counts for nothing.
        """
        if forgives:
            now = monotonic()
            self.spent = max(0, self.spent - int((now - self._since) * IDLE_PER_S))
            self._since = now
        if self.spent > MOST_IDLE:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many frames that ask for nothing")
