"""The load generator: a process of its own, which must not be what is measured.

Reads a `Plan` as JSON from standard input and writes a `Result` as JSON to standard output.
Requests are made before the clock starts and answers are read after it has stopped; between, there
are only sockets. Clients are closed loops: each sends its next request when it has its answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import cast

import httptools
import psutil
import uvloop
import wire

LOST = 0
"""The status of a request whose connection ended without an answer."""


@dataclass
class Group:
    """Clients that take turns with the same inputs: texts, or paths of recordings."""

    name: str
    clients: int
    inputs: list[str]


@dataclass
class Plan:
    """`seconds` 0 sends every input just once, from as many clients, at the same moment."""

    port: int
    wire: wire.Wire
    model: str
    server_pid: int
    groups: list[Group]
    max_new_tokens: int = 0
    """Of texts."""
    warmup_s: float = 2.0
    seconds: float = 10.0
    sample_s: float = 0.1


@dataclass
class Outcome:
    group: str
    number: int
    """The input's place in the group's list."""
    latency_s: float
    status: int
    answer: str


@dataclass
class Result:
    seconds: float
    load_cpu_s: float
    server_cpu_s: float
    rss_bytes: list[int]
    """Of all processes of the server, sampled."""
    outcomes: list[Outcome] = field(default_factory=list)


class Watched:
    """A server's processes, as the system sees them."""

    def __init__(self, pid: int):
        server = psutil.Process(pid)
        self._processes = [server, *server.children(recursive=True)]

    def cpu_s(self) -> float:
        times = [process.cpu_times() for process in self._processes]
        return float(sum(each.user + each.system for each in times))

    def rss_bytes(self) -> int:
        return sum(process.memory_info().rss for process in self._processes)


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes, int]] | None = None
        self._body = bytearray()
        self._header_length = 0

    async def ask(self, request: bytes) -> tuple[int, bytes, int]:
        """Status, body and the length of protocol v2's header."""
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            return LOST, b"", 0
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._finish(LOST)

    def on_message_begin(self) -> None:
        self._body.clear()
        self._header_length = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == wire.LENGTH_HEADER:
            self._header_length = int(value)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._finish(self._parser.get_status_code())

    def _finish(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, bytes(self._body), self._header_length))


@dataclass
class _Raw:
    group: str
    number: int
    started: float
    ended: float
    status: int
    body: bytes
    header_length: int


class Load:
    def __init__(self, plan: Plan):
        self._plan = plan
        self._raw: list[_Raw] = []
        self._server = Watched(plan.server_pid)

    async def run(self) -> Result:
        plan = self._plan
        clients = []
        for group in plan.groups:
            requests = [
                wire.request(plan.wire, plan.model, given, plan.max_new_tokens)
                for given in group.inputs
            ]
            numbers: Iterator[int] = iter(range(len(requests)))
            if plan.seconds:
                numbers = itertools.cycle(range(len(requests)))
            clients += [
                _Client(group.name, requests, numbers, await self._connect())
                for _ in range(group.clients)
            ]
        rss: list[int] = []
        sampling = asyncio.create_task(self._sample(rss))
        loops = [asyncio.create_task(self._loop(client)) for client in clients]
        if plan.seconds:
            await asyncio.sleep(plan.warmup_s)
        rss.clear()
        started, load_cpu, server_cpu = time.monotonic(), time.process_time(), self._server.cpu_s()
        if plan.seconds:
            await asyncio.sleep(plan.seconds)
        else:
            await asyncio.gather(*loops)
        ended = time.monotonic()
        result = Result(
            ended - started,
            time.process_time() - load_cpu,
            self._server.cpu_s() - server_cpu,
            list(rss),
        )
        for task in (sampling, *loops):
            task.cancel()
        await asyncio.wait([sampling, *loops])
        for client in clients:
            client.connection.close()
        result.outcomes = [
            self._outcome(raw)
            for raw in self._raw
            if not plan.seconds or started <= raw.ended <= ended
        ]
        return result

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, "127.0.0.1", self._plan.port
        )
        return connection

    async def _loop(self, client: _Client) -> None:
        for number in client.numbers:
            started = time.monotonic()
            status, body, length = await client.connection.ask(client.requests[number])
            self._raw.append(
                _Raw(client.group, number, started, time.monotonic(), status, body, length)
            )
            if not self._plan.seconds:
                return
            if status == LOST:
                client.connection = await self._connect()

    async def _sample(self, rss: list[int]) -> None:
        while True:
            rss.append(self._server.rss_bytes())
            await asyncio.sleep(self._plan.sample_s)

    def _outcome(self, raw: _Raw) -> Outcome:
        text = ""
        if raw.status == 200:
            text = wire.answer(self._plan.wire, raw.body, raw.header_length)
        elif raw.status != LOST:
            text = raw.body.decode(errors="replace")
        return Outcome(raw.group, raw.number, raw.ended - raw.started, raw.status, text)


@dataclass
class _Client:
    group: str
    requests: list[bytes]
    numbers: Iterator[int]
    connection: Connection


def main() -> None:
    document = json.load(sys.stdin)
    plan = Plan(**document | {"groups": [Group(**group) for group in document["groups"]]})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(Load(plan).run())
    json.dump(asdict(result), sys.stdout)


if __name__ == "__main__":
    main()
