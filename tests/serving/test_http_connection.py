"""What comes around a request's body, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import pytest
import uvicorn

from serving.fronts import http_connection
from serving.fronts.http_connection import Connection
from tests.support import RunningServer, call, serving, write_fake

BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    write_fake(repository, "echo")
    with serving(repository) as running:
        yield running


def exchange(server: RunningServer, *pieces: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as connection:
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            while received := connection.recv(1 << 16):
                answer += received
        except ConnectionError:
            pass  # closed with something unread, which may take the answer along
        return answer


def infer(*headers: bytes) -> bytes:
    length = b"Content-Length: %d" % len(BODY)
    return b"\r\n".join([b"POST /v2/models/echo/infer HTTP/1.1", *headers, length, b"", BODY])


@pytest.mark.parametrize("head", [b"GET /", b"GET / HTTP/1.1\r\nA: "], ids=["path", "header"])
def test_a_head_without_end(server: RunningServer, head: bytes) -> None:
    answer = exchange(server, head, *[b"a" * 1000] * 100)
    assert not answer or answer.startswith(b"HTTP/1.1 431 ")
    answer = exchange(server, head, b"a" * 70_000)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].endswith("limit of 65536 bytes")


def test_headers_without_end(server: RunningServer) -> None:
    answer = exchange(server, b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 12_000)
    assert answer.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    ("begin", "more"), [(b"0\r\n", b"a: b\r\n" * 100_000), (b"1;", b"a" * 600_000)]
)
def test_trailers_and_extensions_without_end(
    server: RunningServer, begin: bytes, more: bytes
) -> None:
    chunked = b"POST /v2/models/echo/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    started = time.monotonic()
    assert not exchange(server, chunked + begin, more)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "offer",
    [
        (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAI"),
        (b"Connection: upgrade", b"Upgrade: websocket"),
    ],
    ids=["h2c", "websocket"],
)
def test_an_offer_to_upgrade_is_passed_over(
    server: RunningServer, offer: tuple[bytes, ...]
) -> None:
    answer = exchange(server, infer(*offer) * 3, infer(b"Connection: close"))
    assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b'"data":[1.0,2.0,3.0,4.0]') == 4
    answer = exchange(server, infer(*offer)[:-5], BODY[-5:], infer(b"Connection: close"))
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_many_offers_at_once(server: RunningServer) -> None:
    offer = b"GET /v2 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    answer = exchange(server, offer * 2000, infer(b"Connection: close"))
    assert answer.count(b"HTTP/1.1 200 OK") == 2001


@pytest.mark.parametrize(
    ("head", "status"),
    [(b"\x16\x03\x01", 400), (b"CONNECT a:80 HTTP/1.1\r\n\r\n", 405), (b"GET /\xff HTTP/1.1", 400)],
)
def test_what_is_no_request(server: RunningServer, head: bytes, status: int) -> None:
    answer = exchange(server, head + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])
    assert call(server.http_port, "GET", "/v2/health/live") == (200, b"")


async def test_a_head_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "SILENCE_S", 0.2)

    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("nothing was asked")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=Connection, lifespan="off", log_config=None)
        http = uvicorn.Server(config)
        running = asyncio.create_task(http.serve(sockets=[listener]))
        for sent in (b"", b"GET / HT"):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(sent)
            assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 408 ")
            writer.close()
        http.should_exit = True
        await running
