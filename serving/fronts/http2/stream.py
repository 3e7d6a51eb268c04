"""One stream: what may still come by it, and sending as the peer makes room."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from serving.fronts.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADERS,
    LARGEST_WINDOW,
    NUMBER,
    WINDOW_UPDATE,
    Code,
    StreamFault,
    frame,
)
from serving.fronts.http2.outgoing import Buffer

if TYPE_CHECKING:
    from serving.fronts.http2.connection import Connection

WINDOW = 1 << 20
"""Bytes that a peer may send on one stream before anybody has looked at them."""
_GRANT_AT = WINDOW // 4


class StreamEnded(Exception):
    """Nothing can be sent any more: the peer has reset the stream, or is gone."""


class Stream(ABC):
    """What it carries is for the class below it to know.

    `peer_is_done`: it has said its last word. `is_done`: so have we, or nobody is there any more.
    """

    __slots__ = (
        "_room",
        "_ungranted",
        "connection",
        "id",
        "is_done",
        "peer_is_done",
        "since",
        "window_in",
        "window_out",
    )

    def __init__(self, connection: Connection, id: int, peer_is_done: bool):
        self.connection = connection
        self.id = id
        self.peer_is_done = peer_is_done
        self.is_done = False
        self.since = connection.loop.time()
        self.window_in = WINDOW
        self.window_out = connection.initial_window_out
        self._ungranted = 0
        self._room: asyncio.Future[None] | None = None

    @abstractmethod
    def receive(self, data: bytes | memoryview, ends: bool) -> None:
        """Take what came, in any pieces; give the room for it back by `grant`."""

    @abstractmethod
    def lost(self) -> None:
        """The peer has reset the stream, or the connection has ended."""

    @abstractmethod
    def stop(self) -> None:
        """The server ends, and has waited long enough."""

    def grant(self, size: int) -> None:
        """Let the peer send so many bytes more."""
        self._ungranted += size
        if self._ungranted >= _GRANT_AT and not self.peer_is_done and not self.is_done:
            self.window_in += self._ungranted
            self.connection.write(frame(WINDOW_UPDATE, 0, self.id, NUMBER.pack(self._ungranted)))
            self._ungranted = 0

    def widen(self, size: int) -> None:
        """The peer takes so many bytes more; or less, if it has changed its mind."""
        self.window_out += size
        if self.window_out > LARGEST_WINDOW:
            raise StreamFault(Code.FLOW_CONTROL_ERROR, "the window of a stream is too large")
        if self._room is not None and self.window_out > 0:
            self._wake()

    def send_headers(self, block: bytes, *, ends: bool) -> None:
        """Headers or trailers, which may be longer than a frame only for a peer's own doing."""
        flags = END_HEADERS | END_STREAM if ends else END_HEADERS
        self.connection.write(frame(HEADERS, flags, self.id, block))
        if ends:
            self.end()

    async def send(self, data: Buffer) -> None:
        """Send all of it, waiting for room as often as it takes. Raises `StreamEnded`."""
        connection = self.connection
        rest = memoryview(data)
        connection.owe(len(rest))
        try:
            while rest:
                size = min(await self._wait_for_room(), len(rest))
                connection.window_out -= size
                self.window_out -= size
                connection.write(HEAD.pack(size << 8 | DATA, 0, self.id))
                connection.write(rest[:size])
                connection.earn()
                rest = rest[size:]
                connection.owe(-size)
        finally:
            connection.owe(-len(rest))
            connection.wake()

    def end(self) -> None:
        """The last frame has been written."""
        self.is_done = True
        self.connection.ended(self)

    def reset(self, code: Code) -> None:
        """End the stream before its end."""
        if not self.is_done:
            self.is_done = True
            self.connection.reset(self.id, code)

    def lose(self) -> None:
        """For the connection: there is nobody at the other end any more."""
        self.is_done = self.peer_is_done = True
        self._wake()
        self.lost()

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def _wait_for_room(self) -> int:
        connection = self.connection
        while not self.is_done:
            if self.window_out <= 0:
                # Others may use what room the connection has.
                connection.wake()
                self._room = connection.loop.create_future()
                await self._room
            elif connection.is_paused or connection.window_out <= 0:
                await connection.wait_for_room()
            else:
                return min(self.window_out, connection.window_out, connection.max_frame_out)
        raise StreamEnded
