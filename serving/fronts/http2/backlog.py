"""Messages that come in pieces on many streams of a connection: whose may go on."""

from __future__ import annotations

from typing import Protocol


class Sender(Protocol):
    """A stream on which a message is being sent to us."""

    @property
    def wants_more(self) -> bool:
        """Whether there is anybody to take what it sends."""

    def make_room(self) -> None:
        """Give back what room may be given back."""


class Backlog:
    """Bytes of messages that are not whole yet.

    Beyond `most` of them only the message that began first is given room to go on, and then the
    next: nobody fails for what others send. A stream's first window is its own in any case.
    """

    def __init__(self, most: int):
        self._most = most
        self.total = 0
        self._sizes: dict[Sender, int] = {}

    def note(self, sender: Sender, size: int) -> None:
        """So much of its message has come; 0 when that is whole, or of no use any more."""
        was_full = self.total > self._most
        self.total += size - self._sizes.get(sender, 0)
        if size:
            self._sizes[sender] = size
        else:
            self._sizes.pop(sender, None)
        if not was_full:
            return
        if self.total <= self._most:
            for each in list(self._sizes):
                each.make_room()
        elif (first := self._first()) is not None:
            first.make_room()

    def takes_more(self, sender: Sender) -> bool:
        return self.total <= self._most or sender not in self._sizes or sender is self._first()

    def _first(self) -> Sender | None:
        return next((each for each in self._sizes if each.wants_more), None)
