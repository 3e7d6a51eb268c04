"""Calls that the connection itself answers, and those that it must leave to the application."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.calls import Front
from serving.fronts import direct
from serving.fronts.direct import LONG_BYTES, DirectConnection
from serving.fronts.known_heads import KnownHeads
from serving.fronts.turns import Turns
from serving.fronts.v2_body import HEADER_LENGTH
from tests.support import WAYS, RunningServer, await_true, metric, serving, write_fake, write_model

PATH = b"/v2/models/double/infer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("direct")
    write_model(repository, "double", operation="Add")
    write_fake(repository, "slow", delay_ms=1500, max_batch_size=1)
    with serving(repository, "--http-max-input-size", "100000") as running:
        yield running


def request(body: bytes, *headers: bytes, path: bytes = PATH) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"POST " + path + b" HTTP/1.1", *headers, length, b"", body])


def chunked(body: bytes) -> bytes:
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]))
    head = b"POST " + PATH + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + chunks + b"0\r\n\r\n"


def as_json(values: list[float]) -> bytes:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": values}
    return json.dumps({"inputs": [tensor]}).encode()


def binary(values: list[float]) -> tuple[bytes, bytes]:
    """A body, and the header that says how much of it is JSON."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
    described = {**tensor, "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    raw = np.array(values, np.float32).tobytes()
    return head + raw, HEADER_LENGTH + b": %d" % len(head)


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_whole(self) -> bool:
        return len(self.body) == int(self.headers.get("content-length", 0))


def answers(received: bytes) -> Iterator[Answer]:
    """Each response that a connection got."""
    while b"\r\n\r\n" in received:
        head, _, received = received.partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        status = int(line.split()[1])
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = int(headers.get("content-length", 0))
        if status != 100:
            yield Answer(status, headers, received[:size])
        received = received[size:]


def doubled(headers: Mapping[str, str], body: bytes) -> list[float]:
    length = headers.get(HEADER_LENGTH.decode())
    if length is None:
        found: list[float] = json.loads(body)["outputs"][0]["data"]
        return found
    values: list[float] = np.frombuffer(body[int(length) :], np.float32).tolist()
    return values


def exchange(server: RunningServer, *pieces: bytes) -> list[Answer]:
    """What comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.002)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
    return list(answers(received))


KINDS = ("json", "long", "binary", "chunked", "expect", "get")
HEADERS: Mapping[str, tuple[bytes, ...]] = {
    way: (b"Expect: %b" % expected.encode(),) if expected else () for way, expected in WAYS.items()
}
"""That bring a call on its way."""


def written(kind: str, values: list[float]) -> bytes:
    """A call of this kind, for twice these values."""
    if kind == "json":
        return request(as_json(values))
    if kind == "long":
        return request(as_json(values) + b" " * LONG_BYTES)
    if kind == "binary":
        return request(*binary(values))
    if kind == "chunked":
        return chunked(as_json(values))
    if kind == "expect":
        return request(as_json(values), b"Expect: 100-continue")
    return b"GET /v2/health/live HTTP/1.1\r\n\r\n"


def received(connection: socket.socket, count: int = 1) -> list[Answer]:
    """The next answers on a connection, all of which have been asked for."""
    data = b""
    while len(found := list(answers(data))) < count or not found[-1].is_whole:
        part = connection.recv(1 << 16)
        assert part, "closed before the answer"
        data += part
    return found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_calls_in_any_pieces_are_answered_in_order(
    server: RunningServer, data: st.DataObject
) -> None:
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
    sent = b""
    expected: list[list[float] | None] = []
    for number, kind in enumerate(kinds):
        values = [float(number), -1.5, 2.0, float(len(kind))]
        expected.append(None if kind == "get" else [2 * value for value in values])
        sent += written(kind, values)
    sent += b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n"
    cuts = data.draw(st.lists(st.integers(1, len(sent) - 1), max_size=3, unique=True).map(sorted))
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    *got, last = exchange(server, *pieces)
    assert [status for status, _, _ in got] == [200] * len(kinds)
    assert last[0] == 200
    for (_, headers, body), wanted in zip(got, expected, strict=True):
        assert wanted is None or doubled(headers, body) == wanted


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_calls_one_after_the_other(server: RunningServer, data: st.DataObject) -> None:
    """A connection that is kept: heads and texts that are known, and whole calls in one piece."""
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for kind in data.draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=8)):
            values = data.draw(st.lists(st.integers(-9, 9).map(float), min_size=4, max_size=4))
            sent = written(kind, values)
            cut = data.draw(st.one_of(st.just(len(sent)), st.integers(1, len(sent))))
            connection.sendall(sent[:cut])
            connection.sendall(sent[cut:])
            [(status, headers, body)] = received(connection)
            assert status == 200
            assert kind == "get" or doubled(headers, body) == [2 * value for value in values]


@pytest.mark.parametrize(
    "data",
    [
        *("[1, 2, 3]", "[1, 2, 3, 4, 5]", "[1, 2, 3, true]", '[1, 2, 3, "4"]', "[1, 2, 3, null]"),
        *("[1, 2, 3, 1e39]", "[1, 2, 3, NaN]", "[1, 2, 3, 04]", "[1, 2, 3, ]", "[1, 2, 3 4]"),
        *("[[1, 2], [3, 4]]", "[[1, 2, 3, 4]]", "[[1, 2, 3, 4]", "[]", "{}", "7", "[1, 2, 3, 4"),
        *(
            '["]", 2, 3, 4]',
            "[1, 2, 3, 4] ",
            "[1, 2, 3, 4], ",
            '[1, 2, 3, 4], "data": [4, 3, 2, 1]',
        ),
    ],
)
@pytest.mark.parametrize("comes_first", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_known_text_is_no_more_trusted_than_a_new_one(
    server: RunningServer, data: str, comes_first: bool, nested: bool
) -> None:
    rest = '"name": "x", "shape": [1, 4], "datatype": "FP32"'

    def body(parameter: str, data: str) -> bytes:
        own = f'"data": [{data}]' if nested else f'"data": {data}'
        tensor = f"{own}, {rest}" if comes_first else f"{rest}, {own}"
        parameters = f'{{"any": "{parameter}"}}'
        return f'{{"id": "a", "parameters": {parameters}, "inputs": [{{{tensor}}}]}}'.encode()

    plain = "[1.0, 2.0, 3.0, 4.0]"
    # The same to a text that is known and to one that is as long and is not.
    sent = [request(body("known", each)) for each in (plain, plain, data, plain)]
    new = f"{abs(hash((data, time.monotonic()))) % 100_000:05}"
    close = b"Connection: close"
    *plains, known, again, unknown = exchange(server, *sent, request(body(new, data), close))
    for answer in (*plains, again):
        assert doubled(answer.headers, answer.body) == [2.0, 4.0, 6.0, 8.0]
    assert known.status == unknown.status
    assert known.body == unknown.body


@pytest.mark.parametrize("kind", ["json", "binary"])
def test_everybody_gets_an_answer_with_their_own_id(server: RunningServer, kind: str) -> None:
    ids = ["first", "2", "a longer {id} [with] much in it", 'a "quoted" one', "é", "", "last"]
    for id in ids:
        values = [float(len(id)), 1.0, 2.0, 3.0]
        if kind == "json":
            body, headers = as_json(values), []
        else:
            body, length = binary(values)
            headers = [HEADER_LENGTH + b": %d" % (int(length.split()[1]) + len(own_id(id)))]
        body = body.replace(b"{", b"{" + own_id(id), 1)
        [(status, told, answer)] = exchange(server, request(body, *headers, b"Connection: close"))
        assert status == 200
        assert doubled(told, answer) == [2 * value for value in values]
        text = answer[: int(told.get(HEADER_LENGTH.decode(), len(answer)))]
        assert json.loads(text).get("id", "") == id


def own_id(id: str) -> bytes:
    return b'"id": %b, ' % json.dumps(id).encode()


@pytest.mark.parametrize("before", [b"\r\n", b"\r\n\r\n", b"\n\n"])
def test_what_comes_before_a_head_is_no_head(server: RunningServer, before: bytes) -> None:
    body = as_json([1.0, 2.0, 3.0, 4.0])
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as connection:
        for _ in range(2):
            connection.sendall(before + request(body))
            [answer] = received(connection)
            assert doubled(answer.headers, answer.body) == [2.0, 4.0, 6.0, 8.0]
        # As long as a body, and after the same bytes.
        connection.sendall(before + body)
        [(status, _, text)] = received(connection)
        assert (status, json.loads(text)) == (400, {"error": "the request is not HTTP"})


def test_a_head_with_bare_line_feeds_is_as_long_as_the_parser_says(server: RunningServer) -> None:
    """Some parsers end a head where no carriage return is; what follows is a body then."""
    body = as_json([1.0, 2.0, 3.0, 4.0]) + b"\r\n\r\n"
    sent = request(body).replace(b"\r\n\r\n" + body, b"\n\n" + body)
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as connection:
        for _ in range(3):
            connection.sendall(sent)
            [(status, headers, answer)] = received(connection)
            if status == 400:
                return
            assert doubled(headers, answer) == [2.0, 4.0, 6.0, 8.0]


def test_a_known_header_is_no_more_trusted_than_a_new_one(server: RunningServer) -> None:
    body, length = binary([1.0, 2.0, 3.0, 4.0])
    other, _ = binary([-1.0, 0.5, 0.0, 7.0])
    sent = [request(body, length), request(other, length)]
    # The same header, before too few bytes, too many, and another version of the model.
    sent += [request(body[:-4], length), request(body + b"1234", length)]
    sent += [request(body, length, path=b"/v2/models/double/versions/7/infer")]
    sent += [request(body, length, b"Connection: close")]
    first, second, short, long, unknown, last = exchange(server, *sent)
    assert doubled(*first[1:]) == [2.0, 4.0, 6.0, 8.0] == doubled(*last[1:])
    assert doubled(*second[1:]) == [-2.0, 1.0, 0.0, 14.0]
    assert (short[0], long[0], unknown[0]) == (400, 400, 404)
    assert b"12 bytes are left in the body" in short[2]
    assert b"4 bytes follow the last binary input" in long[2]
    for status, headers, text in (short, long, unknown):
        assert headers["content-type"] == "application/json", status
        assert headers["x-request-id"]
        assert json.loads(text).keys() == {"error"}


@pytest.mark.parametrize("path", [b"/v2/models/doubl%65/infer", PATH + b"?a=b", PATH + b"?"])
def test_a_path_that_is_not_what_it_says(server: RunningServer, path: bytes) -> None:
    [(status, headers, body)] = exchange(
        server, request(as_json([1.0, 2.0, 3.0, 4.0]), b"Connection: close", path=path)
    )
    assert (status, doubled(headers, body)) == (200, [2.0, 4.0, 6.0, 8.0])


def test_a_body_in_more_chunks_than_are_kept(server: RunningServer) -> None:
    body = as_json([1.0, 2.0, 3.0, 4.0]) + b" " * 2000
    chunks = b"".join(b"2\r\n%b\r\n" % body[at : at + 2] for at in range(0, len(body) - 1, 2))
    rest = body[-1:] if len(body) % 2 else b""
    last = (b"1\r\n%b\r\n" % rest if rest else b"") + b"0\r\n\r\n"
    head = b"POST " + PATH + b" HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    [(status, headers, answer)] = exchange(server, head + chunks + last)
    assert (status, doubled(headers, answer)) == (200, [2.0, 4.0, 6.0, 8.0])


def test_who_closes_may_have_sent_more(server: RunningServer) -> None:
    body = as_json([1.0, 2.0, 3.0, 4.0])
    first, last = request(body), request(body, b"Connection: close")
    got = exchange(server, first[:-5], first[-5:], last + b"what nobody reads")
    assert [status for status, _, _ in got] == [200, 200]


def test_when_the_server_stops(tmp_path: Path) -> None:
    """Whoever waits for an answer gets it, whoever still sends is told so, the idle are let go."""
    write_fake(tmp_path, "slow", delay_ms=800)
    body, path = as_json([1.0, 2.0, 3.0, 4.0]), b"/v2/models/slow/infer"
    with serving(tmp_path, "--exit-timeout-secs", "3") as server, ExitStack() as stack:

        def connected() -> socket.socket:
            address = ("127.0.0.1", server.http_port)
            return stack.enter_context(closing(socket.create_connection(address, 20)))

        idle = connected()
        idle.sendall(written("get", []))
        received(idle)
        sending, waiting = {}, {}
        for way, special in HEADERS.items():
            whole = request(body, *special, b"X-Request-Id: mine", path=path)
            sending[way], waiting[way] = connected(), connected()
            sending[way].sendall(whole[:-50])
            waiting[way].sendall(whole)
        await_true(lambda: metric(server, "slipway_in_flight_requests") == len(waiting))
        server.process.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b""
        for connection in waiting.values():
            [(status, headers, answer)] = received(connection)
            assert (status, headers["x-request-id"]) == (200, "mine")
            assert json.loads(answer)["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]
            assert connection.recv(1) == b""
        for connection in sending.values():
            [(status, headers, answer)] = received(connection)
            assert (status, headers["x-request-id"]) == (503, "mine")
            assert b"the server stopped before it had an answer" in answer


@pytest.mark.parametrize("way", WAYS)
def test_a_body_over_the_limit_is_refused_before_its_end(server: RunningServer, way: str) -> None:
    def refusals() -> float:
        return metric(server, "slipway_refusals_total", model="double", reason="too_large")

    before = refusals()
    whole = request(b" " * 200_000, *HEADERS[way])
    with closing(socket.create_connection(("127.0.0.1", server.http_port), 20)) as connection:
        for _ in range(2):
            for start in range(0, 150_000, 50_000):
                connection.sendall(whole[start : start + 50_000])
                time.sleep(0.02)
            [(status, _, body)] = received(connection)
            assert status == 413
            assert b"over the limit of 100000 bytes" in body
            # What is left of it is passed over, and the connection is of use.
            connection.sendall(whole[150_000:])
            connection.sendall(request(as_json([1.0, 2.0, 3.0, 4.0])))
            assert received(connection)[0].status == 200
    assert refusals() - before == 2


def test_whoever_goes_away_is_not_computed_for(server: RunningServer) -> None:
    body = as_json([1.0, 2.0, 3.0, 4.0])
    callers = []
    for headers in (*HEADERS.values(), *HEADERS.values()):
        caller = socket.create_connection(("127.0.0.1", server.http_port), 20)
        caller.sendall(request(body, *headers, path=b"/v2/models/slow/infer"))
        callers.append(caller)
    await_true(lambda: metric(server, "slipway_in_flight_requests") == len(callers))
    for caller in callers:
        caller.close()
    await_true(
        lambda: (
            metric(server, "slipway_requests_total", model="slow", outcome="cancelled")
            == len(callers)
        )
    )
    assert metric(server, "slipway_in_flight_requests") == 0
    assert metric(server, "nv_inference_exec_count", model="slow") <= 1


class _Route:
    """Answers any path, as soon as the body is there."""

    front = Front.V2_HTTP
    operation = "/any"
    max_body_bytes = 100_000
    is_restricted = False
    server = SimpleNamespace(sent=lambda call: None)

    def __init__(self) -> None:
        self.begun = 0

    def match(self, path: str) -> tuple[str, str]:
        return path, ""

    def begin(self, *call: object) -> None:
        """This one must be waited for."""
        self.begun += 1

    async def answer(self, *call: object) -> tuple[int, list[bytes], list[tuple[bytes, bytes]]]:
        return 200, [b"here"], []


@asynccontextmanager
async def listening(
    route: _Route | None = None, long_work: Turns | None = None
) -> AsyncIterator[int]:
    class Connection(DirectConnection):
        predictions = (route or _Route(),)  # type: ignore[assignment]
        heads = KnownHeads()
        turns = long_work or Turns()

    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("nothing is left to the application")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=Connection, lifespan="off", log_config=None)
        http = uvicorn.Server(config)
        running = asyncio.create_task(http.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        http.should_exit = True
        await running


async def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "SILENCE_S", 0.3)
    async with listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(b"x" * 100, b"X-Request-Id: mine")[:-50])
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"x-request-id: mine" in answer
        assert b"the request body did not come in time" in answer
        writer.close()


async def piecemeal(port: int, body: bytes) -> bytes:
    """The head of the answer to a body that comes byte by byte, 0.2 s each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(body)[: -len(body)])
    answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
    for _ in body:
        await asyncio.wait([answer], timeout=0.2)
        if not answer.done():
            writer.write(b"x")
    head = await asyncio.wait_for(answer, 10)
    writer.close()
    return head


async def test_a_body_that_comes_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "SILENCE_S", 1.0)
    async with listening() as port:
        # Never silent for long, and slower than the slowest in the end.
        assert (await piecemeal(port, b"x" * 8)).startswith(b"HTTP/1.1 408 ")
        monkeypatch.setattr(direct, "SLOWEST_BYTES_PER_S", 1)
        assert (await piecemeal(port, b"x" * 8)).startswith(b"HTTP/1.1 200 ")


class _Kept(Turns):
    """Nobody's turn comes before a test says so."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def add(self, work: Callable[[], None]) -> None:
        self.work.append(work)


async def test_who_has_left_before_its_turn_is_passed_over() -> None:
    route, kept = _Route(), _Kept()
    async with listening(route, kept) as port:
        (_, gone), (reader, stays) = [
            await asyncio.open_connection("127.0.0.1", port) for _ in range(2)
        ]
        for writer in (gone, stays):
            writer.write(request(b"x" * LONG_BYTES))
        async with asyncio.timeout(10):
            while len(kept.work) < 2:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        gone.close()
        await asyncio.sleep(0.1)
        assert route.begun == 0
        for work in kept.work:
            work()
        assert route.begun == 1
        assert b"here" in await asyncio.wait_for(reader.readuntil(b"here"), 10)
        stays.close()


# Garbage that nobody collects, and a signal by which the process says how much there is.
COUNTS_GARBAGE = """
import gc, json, os, signal
gc.disable()
gc.enable = lambda: None
def tell(*_):
    os.write(2, json.dumps({"event": "garbage", "found": gc.collect()}).encode() + b"\\n")
signal.signal(signal.SIGUSR1, tell)
"""


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_request_leaves_nothing_for_the_garbage_collector(tmp_path: Path, protocol: str) -> None:
    write_model(tmp_path, "double", operation="Add")
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    tensor = module.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    with (
        serving(tmp_path, before=COUNTS_GARBAGE) as server,
        module.InferenceServerClient(getattr(server, protocol)) as client,
    ):

        def garbage(requests: int) -> int:
            for _ in range(requests):
                client.infer("double", [tensor])
            told = len(server.events("garbage"))
            server.process.send_signal(signal.SIGUSR1)

            def is_told() -> bool:
                client.infer("double", [tensor])
                return len(server.events("garbage")) > told

            await_true(is_told)
            return int(server.events("garbage")[-1]["found"])

        # What the first calls and the routes behind them leave.
        garbage(50)
        await_true(lambda: garbage(1) < 100)
        assert garbage(500) < 250
