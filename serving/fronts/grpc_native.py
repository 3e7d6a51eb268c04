"""The RPCs on an HTTP/2 server of our own: `--grpc-front native`."""

from __future__ import annotations

import socket

from serving.fronts.grpc_call import GrpcCall, Refused
from serving.fronts.grpc_head import Head, read_head
from serving.fronts.grpc_rpc import Rpcs
from serving.fronts.http2.connection import Connection
from serving.fronts.http2.headers import Headers
from serving.fronts.http2.server import Http2Server
from serving.fronts.http2.stream import Stream
from serving.fronts.listening import bind
from serving.fronts.tls import Tls

_MOST_HELD = 2
"""Times the largest message: what one connection may have sent that nobody can read yet, and the
same of what nobody has read."""


class NativeFront:
    """Must be made inside the event loop that it will serve from."""

    def __init__(self, rpcs: Rpcs, *, max_message_bytes: int, tls: Tls | None):
        self._rpcs = rpcs
        self._limit = max_message_bytes
        self.most_held = _MOST_HELD * max_message_bytes
        self._server = Http2Server(self, tls.context(["h2"]) if tls else None)
        self._listener: socket.socket | None = None

    def bind(self, host: str, port: int) -> int:
        self._listener = bind(host, port)
        bound: int = self._listener.getsockname()[1]
        return bound

    async def start(self) -> None:
        assert self._listener is not None
        await self._server.start(self._listener)

    async def stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)

    def understand(self, headers: Headers) -> Head:
        return read_head(headers, self._rpcs)

    def open(self, connection: Connection, id: int, head: Head, peer_is_done: bool) -> Stream:
        if head.rpc is None:
            assert head.refusal is not None
            return Refused(connection, id, peer_is_done, head.refusal)
        return GrpcCall(connection, id, peer_is_done, head, head.rpc, self._limit, self.most_held)
