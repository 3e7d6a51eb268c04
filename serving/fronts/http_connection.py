"""HTTP connections as uvicorn has them, with bounds on what comes around a request's body."""

from __future__ import annotations

import asyncio
import math
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.fronts.asgi import SILENCE_S, error_body

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line and its headers, and of trailers after a body: uvicorn keeps any number. What
comes to its end within one read may be longer."""

WEBSOCKET_PATH = b"/v1/realtime"
"""Where an offer of a WebSocket is taken up."""

_UPGRADES = frozenset({b"upgrade", b"http2-settings"})


class Connection(HttpToolsProtocol):
    """Refuses a head that is too long or does not come, and answers callers who offer an upgrade.

    Such an offer, which Java's client makes with every request, may be ignored; uvicorn loses the
    body of a request that makes one.
    """

    _is_between = True
    """Nothing of a request is with the parser."""
    _is_in_head = True
    _bytes_to_no_end = 0
    """Since the last end of a head or piece of a body."""
    _patience: asyncio.TimerHandle | None = None
    _idle_since = math.inf
    """The last answer; infinity while there is something to do."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._bytes_to_no_end += len(data)
        while data:
            try:
                self.parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as upgrade:
                if self._opens_websocket():
                    self._stop_waiting()
                    self.handle_websocket_upgrade()
                    return
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
            except httptools.HttpParserError:
                self._refuse(HTTPStatus.BAD_REQUEST, "the request is not HTTP")
                return
        if self._bytes_to_no_end > MAX_HEAD_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the request line and headers are over the limit of {MAX_HEAD_BYTES} bytes",
            )
        elif not self._is_in_head:
            self._stop_waiting()
        elif self._patience is None:
            self._wait_for_head()

    def on_message_begin(self) -> None:
        self._is_between = False
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_is_complete()
        if not self.parser.should_upgrade() or self._opens_websocket():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bytes_to_no_end = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._message_is_complete()
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _head_is_complete(self) -> None:
        self._is_in_head = False
        self._bytes_to_no_end = 0

    def on_response_complete(self) -> None:
        """As uvicorn's, with one timer for all pauses of a connection."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_after(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self._idle_since == math.inf:
            return
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._look_after(left_s)
        elif not self.transport.is_closing():
            self.transport.close()

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = math.inf

    def _look_after(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _message_is_complete(self) -> None:
        self._is_between = True
        self._bytes_to_no_end = 0

    def _opens_websocket(self) -> bool:
        return self.url.partition(b"?")[0] == WEBSOCKET_PATH and self._should_upgrade()

    def _head_without_upgrade(self) -> bytes:
        """The head that has come, without the offer and for a parser that has not seen it."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        self._parse_anew()
        if method == b"CONNECT":  # asks for a proxy, and nothing is left of it
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "Method Not Allowed")
            return b""
        lines = [method + b" " + self.url + b" HTTP/" + version]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in _UPGRADES)
            if name not in _UPGRADES:
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _parse_anew(self) -> None:
        """Begin with a parser that has seen nothing, as lenient as uvicorn's."""
        self._is_between = True
        self.parser = httptools.HttpRequestParser(self)
        # A caller that closes may have sent more, and shall have its answer nevertheless.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _wait_for_head(self) -> None:
        self._patience = self.loop.call_later(
            SILENCE_S, self._refuse, HTTPStatus.REQUEST_TIMEOUT, "the request did not come in time"
        )

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer, unless an earlier request's answer is on its way, and close the connection."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = error_body(message)
            self.transport.write(
                f"HTTP/1.1 {status.value} {status.phrase}\r\n"
                "content-type: application/json\r\n"
                f"content-length: {len(body)}\r\n"
                "connection: close\r\n\r\n".encode()
                + body
            )
        self.transport.close()
