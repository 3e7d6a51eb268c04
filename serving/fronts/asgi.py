"""What every HTTP route shares, written once against plain ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

import orjson
import structlog
from starlette.datastructures import Headers as HeaderLookup
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.calls import Call, Front, new_id
from serving.errors import Cancelled, InferenceFailed, SlipwayError, TooLarge
from serving.fronts.restricted import Restrictions
from serving.server import Server

log = structlog.get_logger(__name__)

# Every code of `serving.errors` has its HTTP status here; a test proves it.
HTTP_STATUS: Mapping[str, int] = {
    "invalid_argument": 400,
    "malformed": 400,
    "already_exists": 400,
    "restricted": 403,
    "too_large": 413,
    "not_found": 404,
    "unsupported": 501,
    "overloaded": 503,
    "expired": 503,
    "cancelled": 499,
    "unavailable": 503,
    "load_failed": 400,
    "not_in_repository": 500,
    "internal": 500,
}
TRITON_STATUS: Mapping[str, int] = {
    **HTTP_STATUS,
    "malformed": 500,
    "too_large": 400,
    "cancelled": 400,
}
"""Triton's statuses where ours are better, for callers who test for them."""

JSON = b"application/json"
Headers = Sequence[tuple[bytes, bytes]]

SILENCE_S = 30
"""How long a caller may send nothing of a body that it has not finished."""
SLOWEST_BYTES_PER_S = 1000
"""Of a whole body: one that comes more slowly is given up, `SILENCE_S` after its time is up."""

_PATIENCE_S = 0.02
"""How long a request may take before we start to watch whether its caller is still there."""


_CALL = "slipway.call"


@dataclass(slots=True)
class HttpCall(Call):
    """A request, with its headers."""

    headers: Mapping[bytes, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, pairs: Iterable[tuple[bytes, bytes]]) -> HttpCall:
        headers = dict(pairs)
        call = cls(Front.V2_HTTP, headers=headers)
        if b"traceparent" in headers:
            call.traceparent = headers[b"traceparent"].decode("latin-1")
            call.tracestate = headers.get(b"tracestate", b"").decode("latin-1")
        if b"x-request-id" in headers:
            call.identify(headers[b"x-request-id"].decode("latin-1"))
        if not call.id:
            call.id = new_id()
        return call


def call_of(scope: Scope, front: Front, operation: str) -> HttpCall:
    """The call that a request is, which comes by this front."""
    call: HttpCall = scope[_CALL]
    call.front = front
    call.operation = operation
    return call


def identity(call: Call) -> tuple[bytes, bytes]:
    """The header that tells a caller its request's id."""
    return b"x-request-id", call.id.encode()


def check_post(scope: Scope, restrictions: Restrictions, group: str) -> None:
    """Let a call pass that no router has seen. Raises `Restricted`, and HTTP's 405 if it is not a
    POST."""
    if scope["method"] != "POST":
        raise HTTPException(405, "Method Not Allowed", {"allow": "POST"})
    if restrictions.keys:
        restrictions.check(group, HeaderLookup(scope=scope).get)


async def read_body(receive: Receive, limit_bytes: int) -> bytes:
    """The whole body.

    Raises `TooLarge` as soon as it passes the limit, `Cancelled` if the caller goes away, and
    HTTP's 408 if it does not come.
    """
    try:
        return await _read(receive, limit_bytes)
    except TimeoutError:
        raise HTTPException(
            408, "the request body did not come in time", {"connection": "close"}
        ) from None


async def _read(receive: Receive, limit_bytes: int) -> bytes:
    async with asyncio.timeout(SILENCE_S) as patience:
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            started = now = asyncio.get_running_loop().time()
            chunks = [body]
            size = len(body)
            while message.get("more_body", False) and size <= limit_bytes:
                slowest = started + size / SLOWEST_BYTES_PER_S
                patience.reschedule(min(now, slowest) + SILENCE_S)
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Cancelled("the caller went away before it had sent its request")
                now = asyncio.get_running_loop().time()
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
            body = b"".join(chunks)
    if len(body) > limit_bytes:
        raise too_large(limit_bytes)
    return body


def too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"the request body is over the limit of {limit_bytes} bytes")


async def respond(
    send: Send, status: int, parts: Iterable[bytes | bytearray | memoryview], headers: Headers
) -> None:
    """Send a complete response."""
    body = b"".join(parts)
    length = (b"content-length", str(len(body)).encode())
    start = {"type": "http.response.start", "status": status, "headers": [*headers, length]}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def error_body(message: str) -> bytes:
    # A message may quote what no encoding has, such as half of a surrogate pair.
    return orjson.dumps({"error": message.encode(errors="replace").decode()})


def describe(error: Exception, statuses: Mapping[str, int]) -> tuple[int, str, Headers]:
    """Status, message and extra headers of any error that reaches a caller.

    What went wrong inside is logged, not told: messages of engines and of Python carry paths.
    """
    if isinstance(error, HTTPException):
        extra = [(key.encode(), value.encode()) for key, value in (error.headers or {}).items()]
        return error.status_code, error.detail, extra
    if not isinstance(error, SlipwayError):
        log.error("unexpected error", exc_info=error)
        return 500, "internal error; the server's log has the cause", []
    status = statuses[error.code]
    if error.code == "internal":
        where = error.where if isinstance(error, InferenceFailed) else ""
        return status, f"{where}inference failed; the server's log has the cause", []
    retry: Headers = [(b"retry-after", b"1")] if error.code in ("overloaded", "expired") else []
    return status, str(error), retry


class HttpCalls:
    """Around everything on the HTTP port: keeps the `Call` of each request, and cancels the
    handling of one whose caller has closed the connection.

    Watching costs a task, so only requests that take longer than a moment are watched.
    """

    def __init__(self, app: ASGIApp, server: Server):
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[_CALL] = call = HttpCall.of(scope["headers"])
        watch = _Watch(call, receive, send)
        try:
            await self._app(scope, watch.receive, watch.send)
        except asyncio.CancelledError:
            # Of an answer that has begun, the end of the connection tells that it has no end.
            if not watch.caller_is_gone and not watch.answering:
                body = error_body("the server stopped before it had an answer")
                await respond(watch.send, 503, [body], [(b"content-type", JSON)])
        finally:
            watch.stop()
            self._server.sent(call)


class _Watch:
    def __init__(self, call: Call, receive: Receive, send: Send):
        self._call = call
        self._receive = receive
        self._send = send
        self._handler = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.caller_is_gone = False
        self.answering = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._start)
        return message

    async def send(self, message: Message) -> None:
        self.answering = True
        if message["type"] == "http.response.start":
            self._call.status = message["status"]
            message["headers"].append(identity(self._call))
            await self._send(message)
            return
        await self._send(message)
        if not message.get("more_body", False):
            self._call.sent = monotonic()

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
