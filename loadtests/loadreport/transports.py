"""How calls reach a server: HTTP/1.1 on kept connections, or gRPC. One of asyncio's loop each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import load

from loadreport.calls import Answer, Call

LOST = load.LOST
OK = 200
MAX_IN_FLIGHT = 256
"""Connections, or calls of gRPC. Further calls wait in the client, and their clocks run."""
_CHANNELS = 4
_ASK_S = 60.0


@dataclass(slots=True)
class Reply:
    sent: float
    """By `time.monotonic`, as all times here."""
    ended: float
    status: int
    """OK, what else HTTP says, a status of gRPC, or LOST: the connection ended or time was up."""
    answer: Answer
    events: Sequence[float] = ()
    """When pieces of a streamed answer came."""


class Transport(Protocol):
    async def ask(self, call: int) -> Reply:
        """Make the call of that number. Never raises for what the server does."""

    async def close(self) -> None: ...


class _Connection(load.Connection):
    """Notes when the pieces of an answer come."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[float] = []

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.events = []

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if body.startswith(b"data: "):
            self.events.append(time.monotonic())

    @property
    def is_lost(self) -> bool:
        return self._transport is None or self._transport.is_closing()


class Http:
    """As many connections as calls are in flight, at most `MAX_IN_FLIGHT`."""

    def __init__(self, host: str, port: int, calls: Sequence[Call]):
        self._host, self._port = host, port
        self._requests = [_request(call, f"{host}:{port}") for call in calls]
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._room = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def ask(self, call: int) -> Reply:
        async with self._room:
            sent = time.monotonic()
            try:
                async with asyncio.timeout(_ASK_S):
                    connection = self._kept() or await self._connect()
                    status, body, header_length = await connection.ask(self._requests[call])
            except (OSError, TimeoutError):
                return Reply(sent, time.monotonic(), LOST, Answer(b""))
            ended = time.monotonic()
            if not connection.is_lost:
                self._idle.append(connection)
            return Reply(sent, ended, status, Answer(body, header_length), connection.events)

    def _kept(self) -> _Connection | None:
        """One that the server has not closed, as it may after a pause."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_lost:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        self._open.add(connection)
        return connection

    async def close(self) -> None:
        for connection in self._open:
            connection.close()


class Grpc:
    """A few channels, which calls take in turn."""

    def __init__(self, target: str, calls: Sequence[Call]):
        # Without an option of its own each, they would share one connection.
        self._channels = [
            grpc.aio.insecure_channel(target, [("slipway.channel", at)]) for at in range(_CHANNELS)
        ]
        self._calls = calls
        self._methods: list[Any] = [
            channel.unary_unary(calls[0].path) for channel in self._channels
        ]
        self._turn = 0
        self._room = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def ask(self, call: int) -> Reply:
        async with self._room:
            self._turn = (self._turn + 1) % _CHANNELS
            sent = time.monotonic()
            try:
                body = await self._methods[self._turn](self._calls[call].body, timeout=_ASK_S)
            except grpc.aio.AioRpcError as error:
                status = error.code().value[0]
                details = (error.details() or "").encode()
                return Reply(sent, time.monotonic(), status, Answer(details))
            return Reply(sent, time.monotonic(), OK, Answer(body))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def _request(call: Call, host: str) -> bytes:
    headers = {"Host": host, **call.headers, "Content-Length": str(len(call.body))}
    lines = [f"POST {call.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + call.body
