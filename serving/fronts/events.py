"""Server-sent events: an answer in pieces, each sent as soon as it is there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


def event(data: bytes) -> bytes:
    """One event; `data` has no line breaks."""
    return b"data: " + data + b"\n\n"


class EventStream(StreamingResponse):
    """Leaves it to `HttpCalls` to watch the caller, and ends the work when that is due."""

    def __init__(self, events: AsyncGenerator[bytes, None]):
        super().__init__(events, media_type="text/event-stream")
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await self.stream_response(send)


async def begun(events: AsyncGenerator[bytes, None]) -> EventStream:
    """A stream whose first event is there: the answer's status is that of it. Raises what it
    raises."""
    return EventStream(_after(await anext(events), events))


async def _after(first: bytes, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        yield first
        async for following in events:
            yield following
