"""The messages of a call that do not come all at once, until somebody has read them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

import grpc

from serving.fronts.grpc_framing import Aborted, Message, MessageReader
from serving.fronts.http2.stream import WINDOW, Stream

_QUEUED_BYTES = 128
"""That a message takes up beside what is in it."""
_UNCOUNTED_BYTES = WINDOW // 8
"""Of each message that is not whole: part of what a caller may send in any case."""


class Inbox:
    """`most_held` bounds what all calls of its connection may hold that nobody has read yet.

    A call that takes one message is begun by `begin` when all of it is there; None is one that
    streams. What was answered before must be read first, if that is much.
    """

    def __init__(
        self,
        call: Stream,
        limit: int,
        most_held: int,
        begin: Callable[[Message], None] | None,
    ):
        self._call = call
        self._connection = call.connection
        self._most_held = most_held
        self._begin = begin
        self._reader = MessageReader(limit)
        self._queue: deque[Message] = deque()
        self._queued = 0
        """Bytes that the queue takes up."""
        self._held = 0
        """Of these, what the connection counts."""
        self._unread = 0
        """Bytes that the caller has not been given back the room for."""
        self._news: asyncio.Future[None] | None = None

    def feed(self, data: bytes | memoryview, ends: bool) -> None:
        """Raises `Aborted` for what is no message, or too much."""
        messages = self._reader.feed(data)
        self._unread += len(data)
        if not messages and not ends and self._unread < _UNCOUNTED_BYTES:
            return
        if ends and self._reader.held:
            raise Aborted(grpc.StatusCode.INVALID_ARGUMENT, "a message is cut short")
        for message in messages:
            self._queue.append(message)
            self._queued += _QUEUED_BYTES + len(message[1])
        if self._begin is None:
            self._hold(self._queued)
            self._connection.backlog.note(self, self._reader.held)
            if messages or ends:
                self._wake()
        else:
            # Until it is begun.
            self._connection.backlog.note(self, self._queued + self._reader.held)
            if len(self._queue) > 1 or (ends and not self._queue):
                raise Aborted(grpc.StatusCode.UNIMPLEMENTED, "the method takes one message")
            if ends and not self._connection.holds_back(self):
                self.proceed()
        if not ends:
            self.make_room()

    def proceed(self) -> None:
        if self._begin is None:
            self._wake()
        else:
            message = self._queue.popleft()
            self.close()
            self._begin(message)

    async def messages(self) -> AsyncIterator[Message]:
        """Of a caller who streams."""
        while True:
            while not self._queue or self._connection.holds_back(self):
                if not self._queue and self._call.peer_is_done:
                    return
                self._news = self._connection.loop.create_future()
                await self._news
            message = self._queue.popleft()
            self._queued -= _QUEUED_BYTES + len(message[1])
            self._hold(self._queued)
            self.make_room()
            yield message

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    @property
    def wants_more(self) -> bool:
        """Whoever sends more than is read is kept waiting, except in the midst of a message. One
        that is whole and must wait lets nobody past that would have to wait, too."""
        return self._begin is not None or self._queued < WINDOW // 2

    def make_room(self) -> None:
        """For the caller, unless others are to send first."""
        if self._unread and self.wants_more and self._connection.backlog.takes_more(self):
            size, self._unread = self._unread, 0
            self._call.grant(size)

    def close(self) -> None:
        """Nobody waits for what is in it any more."""
        self._connection.forget(self)
        self._hold(0)
        self._connection.backlog.note(self, 0)

    def _hold(self, size: int) -> None:
        """Raises `Aborted` if it becomes too much."""
        more = size - self._held
        self._connection.held += more
        self._held = size
        if more > 0 and self._connection.held > self._most_held:
            raise Aborted(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "too much was sent on one connection that cannot be read yet",
            )
