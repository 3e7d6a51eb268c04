"""Predictions that the connection itself answers: no scope, no messages and no queue between.

Only a plain POST is taken whose predecessors on the connection have their answers. Whatever else
comes, such as a call that was sent before the last one was answered, goes through the application,
which answers the same.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from time import monotonic
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from serving.calls import new_id
from serving.fronts.asgi import (
    JSON,
    SILENCE_S,
    SLOWEST_BYTES_PER_S,
    HttpCall,
    error_body,
)
from serving.fronts.http_connection import Connection
from serving.fronts.known_heads import Head, KnownHeads
from serving.fronts.route import Answer, Body, PredictRoute
from serving.fronts.turns import Turns
from serving.ledger import Cancellable

LONG_BYTES = 1 << 14
"""Of a body. To read the numbers of so much JSON takes as long as to answer for few."""

_MOST_PIECES = 64
"""Each is an object of its own, which may be larger than what it holds."""

_SPECIAL = frozenset("%?#")
"""A path with one of these is not what it says."""


class DirectConnection(Connection):
    """Answers what its `predictions` take."""

    predictions: ClassVar[Sequence[PredictRoute]]
    heads: ClassVar[KnownHeads]
    """Of all connections."""
    turns: ClassVar[Turns]
    """Of all connections, for bodies that take long to read."""
    _exchange: _Exchange | None = None
    """The latest."""
    _unknown = b""
    """What the parser is given next, if it begins with a head."""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._exchange is not None:
            self._exchange.abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_between and self._is_free():
            if (known := self.heads.find(data)) is not None:
                self._take_known(*known)
                return
            self._unknown = data
        exchange = self._current()
        if exchange is not None and (missing := exchange.missing):
            # The parser would copy the body once more.
            self._unset_keepalive_if_required()
            self._stop_waiting()
            exchange.take(data[:missing])
            if len(data) >= missing:
                self._parse_anew()
                exchange.complete()
            data = data[missing:]
        if data:
            super().data_received(data)
            exchange = self._current()
        if exchange is not None:
            self._wait_for_body(exchange)

    def on_headers_complete(self) -> None:
        request, self._unknown = self._unknown, b""
        head = self._head()
        if head is None:
            super().on_headers_complete()
            return
        self._head_is_complete()
        self.heads.learn(request, head)
        call = HttpCall.of(self.headers)
        call.front, call.operation = head.route.front, head.route.operation
        self._open(head, call).missing = head.body_bytes or 0

    def on_body(self, body: bytes) -> None:
        exchange = self._current()
        if exchange is None:
            super().on_body(body)
        else:
            self._bytes_to_no_end = 0
            exchange.take(body)

    def on_message_complete(self) -> None:
        exchange = self._current()
        if exchange is None:
            super().on_message_complete()
        else:
            self._message_is_complete()
            exchange.complete()

    def _take_known(self, head: Head, length: int, body: bytes) -> None:
        self._idle_since = math.inf
        if self._patience is not None:
            self._stop_waiting()
        route = head.route
        call = HttpCall(route.front, route.operation, new_id(), headers=head.headers)
        exchange = self._open(head, call)
        if len(body) == length:
            exchange.begin(body)
            return
        self._is_between = False
        exchange.missing = length
        exchange.take(body)
        self._wait_for_body(exchange)

    def send(self, answer: Answer, call: HttpCall, *, keep_alive: bool) -> None:
        """Answer the latest call, if there is still somebody to be told."""
        transport = self.transport
        if transport.is_closing():
            return
        status, parts, headers = answer
        size = sum(map(len, parts))
        first = _first_lines(status, *self.server_state.default_headers, *headers)
        last = b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (call.id.encode(), size)
        if not keep_alive:
            last = b"connection: close\r\n" + last
        transport.write(b"".join((first, last, *parts)))
        call.status, call.sent = status, monotonic()
        if not keep_alive:
            transport.close()
        self.on_response_complete()

    def _wait_for_body(self, exchange: _Exchange) -> None:
        if exchange.collects:
            exchange.wait()
            self._patience = self.loop.call_later(exchange.patience_s(), exchange.give_up)

    def _current(self) -> _Exchange | None:
        """That of the request which is being read."""
        cycle: object = self.cycle
        return cycle if isinstance(cycle, _Exchange) else None

    def _is_free(self) -> bool:
        """Whether all that was asked has its answer, and the caller takes more."""
        return not self.flow.write_paused and (self.cycle is None or self.cycle.response_complete)

    def _head(self) -> Head | None:
        """What a head says, if its call can be answered here."""
        parser = self.parser
        if (
            parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or parser.should_upgrade()
            or self.expect_100_continue
            or not self._is_free()
        ):
            return None
        path = self.url.decode("latin-1")
        if not path.isascii() or not _SPECIAL.isdisjoint(path):
            return None
        for route in self.predictions:
            if (target := route.match(path)) is not None and not route.is_restricted:
                return Head(route, *target, dict(self.headers), parser.should_keep_alive())
        return None

    def _open(self, head: Head, call: HttpCall) -> _Exchange:
        self._exchange = exchange = _Exchange(self, head, call)
        # uvicorn takes it for one of its own, which it lets finish before it begins the next.
        self.cycle = exchange  # type: ignore[assignment]
        return exchange


class _Exchange:
    """One call and its answer. What uvicorn asks of its own requests, and of the tasks that it
    waits for when it stops, is named as there."""

    __slots__ = (
        "_call",
        "_connection",
        "_head",
        "_pieces",
        "_since",
        "_stopped",
        "_work",
        "collects",
        "disconnected",
        "keep_alive",
        "missing",
        "response_complete",
    )

    message_event = asyncio.Event()
    """Nobody waits for it."""

    def __init__(self, connection: DirectConnection, head: Head, call: HttpCall):
        self._connection = connection
        self._head = head
        self._call = call
        self.keep_alive = head.keep_alive
        self.missing = 0
        """Bytes of the body that are to come; 0 if nobody has told how many."""
        self.collects = True
        """Whether more of the body is to come, and is wanted."""
        self.disconnected = False
        self.response_complete = False
        self._pieces: _Pieces | None = None
        self._since = 0.0
        self._work: Cancellable | None = None
        """What the answer comes from."""
        self._stopped = _STOPPED

    def take(self, piece: bytes) -> None:
        """A piece of the body."""
        self.missing = max(0, self.missing - len(piece))
        if not self.collects:
            return
        if self._pieces is None:
            self._pieces = _Pieces()
        self._pieces.add(piece)
        if self._pieces.size > self._head.route.max_body_bytes:
            self.complete()

    def wait(self) -> None:
        """The body comes in parts."""
        self._connection.tasks.add(self)  # type: ignore[arg-type]

    def patience_s(self) -> float:
        """How long the caller may take for the next piece of the body."""
        now = self._connection.loop.time()
        self._since = self._since or now
        size = 0 if self._pieces is None else self._pieces.size
        return min(now, self._since + size / SLOWEST_BYTES_PER_S) + SILENCE_S - now

    def complete(self) -> None:
        """The body is there, if that has not been seen before."""
        if self.collects:
            pieces, self._pieces = self._pieces, None
            self.begin(b"" if pieces is None else pieces.joined())

    def begin(self, body: bytes) -> None:
        """The body is there, or more of it than there may be: answer, if it is long in turn."""
        self.collects = False
        connection = self._connection
        self._call.received = monotonic()
        connection.tasks.add(self)  # type: ignore[arg-type]
        if len(body) < LONG_BYTES:
            self._take_up(body)
        else:
            connection.turns.add(partial(self._take_up, body))

    def _take_up(self, body: bytes) -> None:
        """Its turn has come. Who has left meanwhile has been told what there is to tell."""
        if self.response_complete:
            return
        connection, head, call = self._connection, self._head, self._call
        work = head.route.begin(call, head.name, head.version, body, self._reply)
        if not self.response_complete:
            self._work = work or connection.loop.create_task(self._answer(Body(body)))

    def give_up(self) -> None:
        """The body has not come in time."""
        self._stopped = (408, "the request body did not come in time")
        self.keep_alive = False
        self._stop()

    def abandon(self) -> None:
        """The caller is gone."""
        if not self.response_complete:
            self.disconnected = True
            self._stop()

    def cancel(self, msg: str) -> None:
        """The server has waited long enough."""
        # Soon: those who wait are gone through.
        self._connection.loop.call_soon(self._stop)

    def _stop(self) -> None:
        self.collects = False
        if self._work is not None:
            self._work.cancel()
        if not isinstance(self._work, asyncio.Task):
            self._end_without_answer()

    async def _answer(self, body: Body) -> None:
        head = self._head
        try:
            answer = await head.route.answer(self._call, head.name, head.version, body)
        except asyncio.CancelledError:
            self._end_without_answer()
        else:
            self._reply(answer)

    def _end_without_answer(self) -> None:
        status, message = self._stopped
        self._reply((status, [error_body(message)], [(b"content-type", JSON)]))

    def _reply(self, answer: Answer) -> None:
        if self.response_complete:
            return
        self.response_complete = True
        # It holds this, in the end, and no circle shall be left for the garbage collector.
        self._work = None
        connection, call = self._connection, self._call
        if not self.disconnected:
            connection.send(answer, call, keep_alive=self.keep_alive)
        connection.tasks.discard(self)
        self._head.route.server.sent(call)


_STOPPED = 503, "the server stopped before it had an answer"
"""What a caller is told that gets no answer."""


class _Pieces:
    """A body that comes in parts."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._joined = bytearray()
        """Those that were too many to be kept as they came."""

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self._pieces.append(piece)
        if len(self._pieces) == _MOST_PIECES:
            self._joined += b"".join(self._pieces)
            self._pieces.clear()

    def joined(self) -> bytes:
        if not self._joined:
            return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        return b"".join((self._joined, *self._pieces))


@lru_cache(maxsize=256)
def _first_lines(status: int, *headers: tuple[bytes, bytes]) -> bytes:
    """Of an answer, which has few of them in any one second."""
    return STATUS_LINE[status] + b"".join(b"%b: %b\r\n" % header for header in headers)
