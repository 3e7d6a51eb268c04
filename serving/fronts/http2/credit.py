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
    """Of one peer."""

    def __init__(self) -> None:
        self._spent = 0
        self._since = monotonic()

    def earn(self) -> None:
        """Something got done for the peer."""
        if self._spent:
            self._spent = max(0, self._spent - EARNED)

    def spend(self, frames: int = 1, *, forgives: bool = True) -> None:
        """Nothing got done. Raises `ConnectionFault` at last.

        Without `forgives` the time that has gone by counts for nothing.
        """
        self._spent += frames
        if self._spent <= MOST_IDLE:
            return
        if forgives:
            now = monotonic()
            self._spent = max(0, self._spent - int((now - self._since) * IDLE_PER_S))
            self._since = now
        if self._spent > MOST_IDLE:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many frames that ask for nothing")
