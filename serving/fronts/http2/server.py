"""All connections to one port."""

from __future__ import annotations

import asyncio
import socket
import ssl

from serving.fronts.http2.connection import PREFACE_S, Application, Connection

CLOSE_S = 0.5
"""For what was written last to leave."""


class Http2Server:
    """Must be made inside the event loop that it will serve from."""

    def __init__(self, application: Application, secured: ssl.SSLContext | None = None):
        self._application = application
        self._secured = secured
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._is_empty = asyncio.Event()
        self._is_stopping = False

    async def start(self, listener: socket.socket) -> None:
        """Listen on a bound socket."""
        self._listener = await self._loop.create_server(
            self._connect,
            sock=listener,
            backlog=1024,
            ssl=self._secured,
            ssl_handshake_timeout=PREFACE_S if self._secured else None,
        )

    async def stop(self, grace_s: float) -> None:
        """Take no more connections and streams; what is there after the grace is ended."""
        self._is_stopping = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.drain()
        await self._wait_until_empty(grace_s)
        for connection in list(self._connections):
            for stream in list(connection.streams.values()):
                stream.stop()
        await self._wait_until_empty(CLOSE_S)
        for connection in list(self._connections):
            connection.transport.abort()
        await self._wait_until_empty(CLOSE_S)

    async def _wait_until_empty(self, seconds: float) -> None:
        self._is_empty.clear()
        if self._connections:
            try:
                await asyncio.wait_for(self._is_empty.wait(), seconds)
            except TimeoutError:
                return

    def _connect(self) -> Connection:
        return Connection(self._application, self._come, self._leave)

    def _come(self, connection: Connection) -> None:
        # Not before: over TLS many are begun from which nothing is ever heard again.
        self._connections.add(connection)
        if self._is_stopping:
            connection.drain()

    def _leave(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._is_empty.set()
