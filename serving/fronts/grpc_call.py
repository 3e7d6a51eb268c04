"""A call of gRPC on a stream of ours: what behaviors know as its context."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from struct import Struct
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import structlog

from serving.fronts.grpc_blocks import OK, SUCCESS, status_block
from serving.fronts.grpc_framing import (
    PREFIX,
    PREFIX_BYTES,
    Aborted,
    Message,
    unpack,
)
from serving.fronts.grpc_head import Head, Refusal
from serving.fronts.grpc_inbox import Inbox
from serving.fronts.grpc_rpc import Metadata, Rpc
from serving.fronts.http2.frames import DATA, END_HEADERS, END_STREAM, HEAD, HEADERS
from serving.fronts.http2.headers import text_field, write_block
from serving.fronts.http2.stream import Stream, StreamEnded
from serving.ledger import Cancellable

if TYPE_CHECKING:
    from serving.fronts.http2.connection import Connection

_SMALL_BYTES = 1 << 12
"""A message of no more is not counted: all that there may be are not much."""
_LONG_BYTES = 1 << 14
"""A compressed message of so many bytes is unpacked in a thread."""
_MESSAGE_HEAD = Struct(">LBLBL")
"""Of a frame with all of a message: `HEAD` and `PREFIX`."""
_LONGEST_S = 10 * 365 * 86400.0
"""Beyond, a caller waits for ever."""
_SHUTTING_DOWN = (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")

log = structlog.get_logger(__name__)


class GrpcCall(Stream):
    """`most_held` bounds what all calls of its connection may hold that nobody has read yet."""

    __slots__ = (
        "_callbacks",
        "_code",
        "_deadline",
        "_has_begun",
        "_head",
        "_inbox",
        "_is_cancelled",
        "_limit",
        "_most_held",
        "_owed",
        "_rpc",
        "_runs",
        "_timer",
        "_trailing",
        "_verdict",
        "_work",
    )

    def __init__(
        self,
        connection: Connection,
        id: int,
        peer_is_done: bool,
        head: Head,
        rpc: Rpc,
        limit: int,
        most_held: int,
    ):
        super().__init__(connection, id, peer_is_done)
        self._head = head
        self._rpc = rpc
        self._limit = limit
        self._most_held = most_held
        self._inbox: Inbox | None = None
        """What comes, if that does not come at once."""
        self._work: Cancellable | None = None
        """What the answer comes from; a task, if somebody has to wait for it."""
        self._runs = False
        """The task has begun, and will clean up whatever becomes of it."""
        self._owed = 0
        """Bytes of the message that is being answered."""
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None
        self._has_begun = False
        """The headers of the answer are sent."""
        self._trailing = b""
        self._callbacks: tuple[Callable[[Any], object], ...] = ()
        self._code: grpc.StatusCode | None = None
        self._is_cancelled = False
        self._verdict: tuple[grpc.StatusCode, str] | None = None
        """Why the work is cancelled, for the caller to know."""
        if head.timeout_s is not None and head.timeout_s < _LONGEST_S:
            self._deadline = monotonic() + head.timeout_s
            self._timer = connection.loop.call_later(head.timeout_s, self._expire)
        if rpc.streams_requests:
            self._run(self._behave, self._requests(self._open_inbox()))
        elif peer_is_done:
            self.receive(b"", True)

    # What the stream brings.

    def receive(self, data: bytes | memoryview, ends: bool) -> None:
        if ends and self._inbox is None and not self.connection.is_behind:
            # All of a call at once, as small ones come.
            length = len(data) - PREFIX_BYTES
            if 0 <= length <= self._limit and PREFIX.unpack_from(data) == (0, length):
                self._begin((False, bytes(data[PREFIX_BYTES:])))
                return
        inbox = self._inbox or self._open_inbox()
        try:
            inbox.feed(data, ends)
        except Aborted as error:
            self._give_up(error.code, error.details)

    def _open_inbox(self) -> Inbox:
        begin = None if self._rpc.streams_requests else self._begin
        self._inbox = Inbox(self, self._limit, self._most_held, begin)
        return self._inbox

    def lost(self) -> None:
        self._is_cancelled = True
        self._cancel()
        if not self._runs:
            self._done()

    def stop(self) -> None:
        self._give_up(*_SHUTTING_DOWN)

    def _expire(self) -> None:
        assert self._deadline is not None
        left = self._deadline - monotonic()
        if left > 0:
            # The loop's clock is behind, by what its turn has taken.
            self._timer = self.connection.loop.call_later(max(left, 1e-3), self._expire)
            return
        self._give_up(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _give_up(self, code: grpc.StatusCode, details: str) -> None:
        if self.is_done or self._verdict is not None:
            return
        self._verdict = (code, details)
        self._cancel()
        if not self._runs:
            self.fail(code, details)

    def _cancel(self) -> None:
        if self._work is not None:
            self._work.cancel()

    def _begin(self, message: Message) -> None:
        is_compressed, data = message
        if len(data) > _SMALL_BYTES:
            self._owed = len(data)
            self.connection.owe(self._owed)
        if self._rpc.begin is not None and not is_compressed:
            work = self._rpc.begin(data, self)
            if self.is_done:
                return
            if work is not None:
                self._work = work
                return
        self._run(self._behave, message)

    async def _requests(self, inbox: Inbox) -> AsyncIterator[Any]:
        async for is_compressed, data in inbox.messages():
            yield self._rpc.parse(await self._unpack(data) if is_compressed else data)

    async def _unpack(self, data: bytes) -> bytes:
        given = self._head.encoding, data, self._limit
        return (
            await asyncio.to_thread(unpack, *given) if len(data) >= _LONG_BYTES else unpack(*given)
        )

    # What it is answered.

    def _run(self, work: Callable[[Any], Awaitable[None]], given: Any) -> None:
        """In a task, at whose end the call ends."""
        self._work = self.connection.loop.create_task(self._end_by(work, given))

    async def _end_by(self, work: Callable[[Any], Awaitable[None]], given: Any) -> None:
        self._runs = True
        try:
            await work(given)
            self._finish(grpc.StatusCode.OK, "")
        except Aborted as error:
            self._finish(error.code, error.details)
        except asyncio.CancelledError:
            self._finish(*(self._verdict or _SHUTTING_DOWN))
        except StreamEnded:
            self._is_cancelled = True
        except Exception as error:
            log.error("unexpected error", exc_info=error)
            self._finish(grpc.StatusCode.INTERNAL, "internal error; the server's log has the cause")
        finally:
            self._done()

    async def _behave(self, given: Any) -> None:
        rpc = self._rpc
        if not rpc.streams_requests:
            is_compressed, data = given
            given = rpc.parse(await self._unpack(data) if is_compressed else data)
        answer = await rpc.behavior(given, self)
        del given  # It may be long, and so may the wait for who does not read.
        if not rpc.streams_responses:
            data = rpc.serialize(answer)
            if not self._send_at_once(data):
                await self._send(data)

    def _send_at_once(self, data: bytes) -> bool:
        """Headers, message and trailers together, if there is room for them."""
        connection, id = self.connection, self.id
        length = len(data)
        size = PREFIX_BYTES + length
        if self.is_done or size > connection.room() or size > self.window_out:
            return False
        connection.window_out -= size
        headers = connection.first() + SUCCESS
        trailers = OK + self._trailing
        head = HEAD.pack(len(headers) << 8 | HEADERS, END_HEADERS, id)
        end = HEAD.pack(len(trailers) << 8 | HEADERS, END_HEADERS | END_STREAM, id)
        if size <= connection.max_frame_out:
            first = _MESSAGE_HEAD.pack(size << 8 | DATA, 0, id, 0, length)
            connection.write(b"".join((head, headers, first, data, end, trailers)))
        else:
            parts = [head + headers, *_frames(id, connection.max_frame_out, data), end + trailers]
            connection.write_all(parts)
        self.end()
        return True

    async def _send(self, data: bytes) -> None:
        if self.is_done:
            raise StreamEnded
        if not self._has_begun:
            self._has_begun = True
            self.send_headers(self.connection.first() + SUCCESS, ends=False)
        await self.send(PREFIX.pack(0, len(data)) + data)

    def _finish(self, code: grpc.StatusCode, details: str) -> None:
        """Say how it ended, if that is not said."""
        if self.is_done:
            return
        if code is not grpc.StatusCode.OK:
            self._code = code
        block = b"" if self._has_begun else self.connection.first() + SUCCESS
        self.send_headers(block + status_block(code, details) + self._trailing, ends=True)

    def _done(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._inbox is not None:
            self._inbox.close()
        if self._owed:
            owed, self._owed = self._owed, 0
            self.connection.owe(-owed)
        # They hold this, in the end, and no circle shall be left for the garbage collector.
        self._inbox = self._work = None
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            callback(self)

    # What behaviors ask for; see `Context` and `Told`.

    def invocation_metadata(self) -> Metadata:
        return self._head.metadata

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - monotonic())

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = b"".join([text_field(*pair) for pair in trailing_metadata])

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self._callbacks += (callback,)

    def code(self) -> grpc.StatusCode | None:
        return self._code

    def cancelled(self) -> bool:
        return self._is_cancelled

    def reply(self, answer: bytes) -> None:
        if self._send_at_once(answer):
            self._done()
        else:
            self._run(self._send, answer)

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        self._finish(code, details)
        self._done()

    def owe(self, size: int) -> None:
        self.connection.owe(size)

    async def write(self, message: Any) -> None:
        await self._send(self._rpc.serialize(message))

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        raise Aborted(code, details)


def _frames(id: int, most: int, message: bytes) -> Iterator[bytes | memoryview]:
    """A message in frames of `most` bytes, except the last one."""
    view, begin, end = memoryview(message), 0, most - PREFIX_BYTES
    yield _MESSAGE_HEAD.pack(most << 8 | DATA, 0, id, 0, len(view))
    while begin < len(view):
        if begin:
            yield HEAD.pack(min(most, len(view) - begin) << 8 | DATA, 0, id)
        yield view[begin:end]
        begin, end = end, end + most


class Refused(Stream):
    """A stream that is no call, and is told so."""

    __slots__ = ()

    def __init__(self, connection: Connection, id: int, peer_is_done: bool, refusal: Refusal):
        super().__init__(connection, id, peer_is_done)
        if refusal.http_status == 200:
            block = SUCCESS + status_block(refusal.code, refusal.message)
        else:
            block = write_block([(b":status", str(refusal.http_status).encode())])
        self.send_headers(connection.first() + block, ends=True)

    def receive(self, data: bytes | memoryview, ends: bool) -> None:
        """It has ended, and nothing comes by it."""

    def lost(self) -> None:
        pass

    def stop(self) -> None:
        pass
