"""What the fronts on gRPC's own server and on ours share: an RPC, and what its behavior may do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import grpc

from serving.fronts.http2.stream import StreamEnded
from serving.ledger import Cancellable

Metadata = Sequence[tuple[str, str | bytes]]


class Context(Protocol):
    """One call, as far as behaviors know it: what grpc.aio's contexts have, and one method more."""

    def invocation_metadata(self) -> Metadata | None: ...

    def time_remaining(self) -> float | None: ...

    def set_trailing_metadata(self, trailing_metadata: Any) -> None: ...

    def add_done_callback(self, callback: Any) -> None:
        """Have it called, with this, when the answer is sent or will never be."""

    def code(self) -> Any: ...

    def cancelled(self) -> bool: ...

    def owe(self, size: int) -> None:
        """A stream of requests is owed answers to, or of, so many bytes more; or fewer, if it is
        less than 0. As long as that is much, the caller's next requests wait."""

    async def write(self, message: Any) -> None:
        """Send a message, when there is room for it. Raises one of `CALLER_IS_GONE`."""

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn: ...


class Told(Context, Protocol):
    """A call that is told its answer, and need not be woken. It is told once, or it has ended."""

    def reply(self, answer: bytes) -> None: ...

    def fail(self, code: grpc.StatusCode, details: str) -> None: ...


CALLER_IS_GONE = (StreamEnded, grpc.aio.InternalError)
"""The call is about to be cancelled."""

Behavior = Callable[[Any, Context], Awaitable[Any]]
"""Gets a message, or an iterator of those that a caller streams; returns the answer, or writes."""


Beginning = Callable[[bytes, Told], Cancellable | None]
"""Has a call answered, be it at once, without that anybody waits for it. None without an answer:
this call needs the behavior."""


@dataclass(frozen=True)
class Rpc:
    behavior: Behavior
    parse: Callable[[bytes], Any]
    serialize: Callable[[Any], bytes]
    streams_requests: bool = False
    streams_responses: bool = False
    begin: Beginning | None = None
    """A shorter way, for a server that has it."""


Rpcs = Mapping[str, Rpc]
"""By path: /package.Service/Method."""


class GrpcFront(Protocol):
    """A server of `Rpcs`."""

    def bind(self, host: str, port: int) -> int:
        """Take a port (0: any free one) and say which. Raises `OperatorError`."""

    async def start(self) -> None: ...

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and end those that are still there after so many seconds."""
