"""Predictions that the connection itself answers: no scope, no messages and no queue between.

Only a plain POST is taken whose predecessors on the connection have their answers. Whatever else
comes, such as a call that was sent before the last one was answered, goes through the application,
which answers the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from serving.fronts.asgi import (
    JSON,
    SILENCE_S,
    SLOWEST_BYTES_PER_S,
    Headers,
    HttpCall,
    error_body,
    identity,
)
from serving.fronts.http_connection import Connection
from serving.fronts.route import Body, PredictRoute
from serving.fronts.v2_tensors import Buffer

_MOST_PIECES = 64
"""Each is an object of its own, which may be larger than what it holds."""

_SPECIAL = frozenset("%?#")
"""A path with one of these is not what it says."""


class DirectConnection(Connection):
    """Answers what its `predictions` take."""

    predictions: ClassVar[Sequence[PredictRoute]]
    _exchange: _Exchange | None = None
    """The latest."""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._exchange is not None:
            self._exchange.abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        exchange = self._current()
        if exchange is not None and (missing := exchange.missing):
            # The parser would copy the body once more.
            self._unset_keepalive_if_required()
            self._stop_waiting()
            exchange.take(data[:missing])
            if len(data) >= missing:
                self._parse_anew()
                exchange.begin()
            data = data[missing:]
        if data:
            super().data_received(data)
            exchange = self._current()
        if exchange is not None and exchange.collects:
            exchange.wait()
            self._patience = self.loop.call_later(exchange.patience_s(), exchange.give_up)

    def on_headers_complete(self) -> None:
        target = self._target()
        if target is None:
            super().on_headers_complete()
            return
        self._head_is_complete()
        self._exchange = _Exchange(self, *target, HttpCall.of(self.headers))
        # uvicorn takes it for one of its own, which it lets finish before it begins the next.
        self.cycle = self._exchange  # type: ignore[assignment]

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
            self._bytes_to_no_end = 0
            exchange.begin()

    def _current(self) -> _Exchange | None:
        """That of the request which is being read."""
        cycle: object = self.cycle
        return cycle if isinstance(cycle, _Exchange) else None

    def _target(self) -> tuple[PredictRoute, str, str] | None:
        """The route, model and version of a call that can be answered here."""
        parser = self.parser
        if (
            parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or parser.should_upgrade()
            or self.expect_100_continue
            or self.flow.write_paused
            or not (self.cycle is None or self.cycle.response_complete)
        ):
            return None
        path = self.url.decode("latin-1")
        if not path.isascii() or not _SPECIAL.isdisjoint(path):
            return None
        for route in self.predictions:
            if (target := route.match(path)) is not None and not route.is_restricted:
                return route, *target
        return None


class _Exchange:
    """One call and its answer. What uvicorn asks of its own is named as there."""

    message_event = asyncio.Event()
    """Nobody waits for it."""

    def __init__(
        self,
        connection: DirectConnection,
        route: PredictRoute,
        name: str,
        version: str,
        call: HttpCall,
    ):
        self._connection = connection
        self._route = route
        self._name = name
        self._version = version
        self._call = call
        self._pieces: list[bytes] = []
        self._joined = bytearray()
        """Pieces that were too many to be kept as they came."""
        self._size = 0
        self._since = 0.0
        self._task: asyncio.Task[None] | None = None
        self._whole: asyncio.Future[None] | None = None
        """For a task that began before the body was there."""
        self._stopped = (503, "the server stopped before it had an answer")
        """What a caller is told whose task is cancelled."""
        self.missing = 0
        """Bytes of the body that are to come; 0 if nobody has told how many."""
        if b"transfer-encoding" not in call.headers:
            self.missing = int(call.headers.get(b"content-length", b"0"))
        self.keep_alive: bool = connection.parser.should_keep_alive()
        self.collects = True
        """Whether more of the body is to come, and is wanted."""
        self.disconnected = False
        self.response_complete = False

    def take(self, piece: bytes) -> None:
        """A piece of the body."""
        self.missing = max(0, self.missing - len(piece))
        if not self.collects:
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if len(self._pieces) == _MOST_PIECES:
            self._joined += b"".join(self._pieces)
            self._pieces.clear()
        if self._size > self._route.max_body_bytes:
            self.begin()

    def wait(self) -> None:
        """The body comes in parts. There is a task meanwhile, which uvicorn can cancel."""
        if self._task is None:
            self._whole = self._connection.loop.create_future()
            self._start()

    def patience_s(self) -> float:
        """How long the caller may take for the next piece of the body."""
        now = self._connection.loop.time()
        self._since = self._since or now
        slowest = self._since + self._size / SLOWEST_BYTES_PER_S
        return min(now, slowest) + SILENCE_S - now

    def begin(self) -> None:
        """Answer: the body is there, or more of it than there may be."""
        if not self.collects:
            return
        self.collects = False
        if self._whole is None:
            self._start()
        elif not self._whole.done():
            self._whole.set_result(None)

    def give_up(self) -> None:
        """The body has not come in time."""
        self._stopped = (408, "the request body did not come in time")
        self.keep_alive = False
        self._cancel()

    def abandon(self) -> None:
        """The caller is gone."""
        self.disconnected = True
        self._cancel()

    def _start(self) -> None:
        connection = self._connection
        self._task = connection.loop.create_task(self._answer())
        # For uvicorn waits for these when it shuts down, and cancels them when it is time.
        connection.tasks.add(self._task)
        self._task.add_done_callback(connection.tasks.discard)

    def _cancel(self) -> None:
        self.collects = False
        if self._task is not None:
            self._task.cancel()

    async def _answer(self) -> None:
        route, call = self._route, self._call
        call.front, call.operation = route.front, route.operation
        try:
            if self._whole is not None:
                await self._whole
            call.received = monotonic()
            answer = await route.answer(call, self._name, self._version, self._body())
        except asyncio.CancelledError:
            if self.disconnected:
                return
            self.collects = False
            status, message = self._stopped
            self._send(status, [error_body(message)], [(b"content-type", JSON)])
        else:
            self._send(*answer)
        finally:
            route.server.sent(call)

    def _body(self) -> Body:
        pieces, self._pieces = self._pieces, []
        if self._joined:
            pieces.insert(0, bytes(self._joined))
            self._joined.clear()
        return Body(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _send(self, status: int, parts: Sequence[Buffer], headers: Headers) -> None:
        connection = self._connection
        if self.disconnected or connection.transport.is_closing():
            return
        size = sum(map(len, parts))
        head = [STATUS_LINE[status]]
        for name, value in (
            *connection.server_state.default_headers,
            *headers,
            identity(self._call),
        ):
            head += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            head.append(b"connection: close\r\n")
        head.append(b"content-length: %d\r\n\r\n" % size)
        connection.transport.write(b"".join([*head, *parts]))
        self._call.status, self._call.sent = status, monotonic()
        self.response_complete = True
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()
