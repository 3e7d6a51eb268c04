"""What every HTTP route shares, written once against plain ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import orjson
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import Cancelled, SlipwayError, TooLarge

log = structlog.get_logger(__name__)

# Every code of `serving.errors` has its HTTP status here; a test proves it.
HTTP_STATUS: Mapping[str, int] = {
    "invalid_argument": 400,
    "too_large": 413,
    "not_found": 404,
    "unsupported": 501,
    "overloaded": 503,
    "expired": 503,
    "cancelled": 499,
    "unavailable": 503,
    "internal": 500,
}
JSON = b"application/json"
Headers = list[tuple[bytes, bytes]]

_PATIENCE_S = 0.02
"""How long a request may take before we start to watch whether its caller is still there."""


async def read_body(receive: Receive, limit_bytes: int) -> bytes:
    """The whole body. Raises `TooLarge` as soon as it passes the limit."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        chunks = [body]
        size = len(body)
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("the caller went away before it had sent its request")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit_bytes:
                break
        body = b"".join(chunks)
    if len(body) > limit_bytes:
        raise TooLarge(f"the request body is over the limit of {limit_bytes} bytes")
    return body


async def respond(
    send: Send, status: int, parts: Iterable[bytes | bytearray | memoryview], headers: Headers
) -> None:
    """Send a complete response."""
    body = b"".join(parts)
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(message: str) -> bytes:
    # A message may quote what no encoding has, such as half of a surrogate pair.
    return orjson.dumps({"error": message.encode(errors="replace").decode()})


def describe(error: Exception) -> tuple[int, str, Headers]:
    """Status, message and extra headers of any error that reaches a caller.

    What went wrong inside is logged, not told: messages of engines and of Python carry paths.
    """
    if not isinstance(error, SlipwayError):
        log.error("unexpected error", exc_info=error)
        return 500, "internal error; the server's log has the cause", []
    status = HTTP_STATUS[error.code]
    if status == 500:
        return status, "inference failed; the server's log has the cause", []
    retry: Headers = [(b"retry-after", b"1")] if status == 503 else []
    return status, str(error), retry


class CancelOnDisconnect:
    """Cancels the handling of a request whose caller has closed the connection.

    Watching costs a task, so only requests that take longer than a moment are watched.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch = _Watch(receive)
        try:
            await self._app(scope, watch.receive, send)
        except asyncio.CancelledError:
            if not watch.caller_is_gone:
                body = error_body("the server stopped before it had an answer")
                await respond(send, 503, [body], [(b"content-type", JSON)])
        finally:
            watch.stop()


class _Watch:
    def __init__(self, receive: Receive):
        self._receive = receive
        self._handler = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.caller_is_gone = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._start)
        return message

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._cancel_when_gone())

    async def _cancel_when_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.caller_is_gone = True
        if self._handler is not None:
            self._handler.cancel()
