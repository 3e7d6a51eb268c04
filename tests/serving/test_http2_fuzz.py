"""HTTP/2 of our own: whatever comes, nobody else is hurt, and nothing of it is left."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.fronts.grpc_native import NativeFront
from serving.fronts.grpc_rpc import Context, Rpc
from serving.fronts.http2.connection import Connection
from tests.serving.http2_peer import (
    DATA,
    ECHO,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INFER,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    STREAM,
    WINDOW_UPDATE,
    block,
    frame,
    framed,
    is_up,
)
from tests.support import RunningServer, serving, write_fake

START = PREFACE + frame(SETTINGS, 0, 0)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("fuzz")
    write_fake(repository, "echo")
    with serving(repository) as server:
        yield server
        assert server.events("unexpected error") == []
        # asyncio's and Python's own words for what we let slip.
        assert server.events("text") == []


BYTES = st.binary(max_size=300)
FRAMES = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from([0, 1, 1, 1, 2, 3, 5, 2**31 - 1]),
    BYTES | st.just(block()) | st.just(framed(ECHO)) | st.just(bytes(4)) | st.just(bytes(8)),
)
VALID = (
    frame(HEADERS, END_HEADERS, 1, block())
    + frame(DATA, END_STREAM, 1, framed(ECHO))
    + frame(WINDOW_UPDATE, 0, 0, b"\0\0\1\0")
    + frame(HEADERS, END_HEADERS, 3, block(STREAM))
    + frame(DATA, 0, 3, framed(ECHO))
    + frame(PING, 0, 0, bytes(8))
    + frame(RST_STREAM, 0, 3, bytes(4))
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 2)):
            case 0:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at : at + draw(st.integers(1, 20))]
            case _:
                data[at:at] = draw(st.binary(min_size=1, max_size=20))
        if not data:
            data += b"x"
    return bytes(data)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.lists(FRAMES, max_size=12).map(b"".join) | mutated() | BYTES, cut=st.integers(0, 400)
)
def test_nothing_that_comes_hurts_anybody_else(
    running: RunningServer, data: bytes, cut: int
) -> None:
    with socket.create_connection(("127.0.0.1", running.grpc_port), timeout=20) as connection:
        whole = START + data
        connection.sendall(whole[: len(PREFACE) + cut])
        connection.sendall(whole[len(PREFACE) + cut :])
        connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
    assert is_up(running)


class Wire:
    """A transport to nobody."""

    def write(self, data: bytes) -> None:
        assert data

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def close(self) -> None:
        pass

    abort = close


async def echo(message: bytes, context: Context) -> bytes:
    await asyncio.sleep(0)
    return message


async def echo_each(messages: AsyncIterator[bytes], context: Context) -> None:
    async for message in messages:
        await context.write(message)


RPCS = {INFER: Rpc(echo, bytes, bytes), STREAM: Rpc(echo_each, bytes, bytes, True, True)}


@settings(max_examples=300, deadline=None)
@given(
    data=st.lists(FRAMES, max_size=12).map(b"".join) | mutated() | BYTES,
    cuts=st.lists(st.integers(1, 400), max_size=4),
    is_paused=st.booleans(),
    most_owed=st.sampled_from([0, 1 << 24]),
)
async def test_nothing_is_left_of_a_connection(
    data: bytes, cuts: list[int], is_paused: bool, most_owed: int
) -> None:
    front = NativeFront(RPCS, max_message_bytes=10_000, tls=None)
    front.most_owed = most_owed
    came: list[Connection] = []
    left: list[Connection] = []
    connection = Connection(front, came.append, left.append)
    wire: Any = Wire()
    connection.connection_made(wire)
    if is_paused:
        connection.pause_writing()
    rest = START + data
    for cut in [*cuts, len(rest)]:
        connection.data_received(rest[:cut])
        rest = rest[cut:]
        await asyncio.sleep(0)
    if is_paused:
        connection.resume_writing()
    for _ in range(3):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    for _ in range(3):
        await asyncio.sleep(0)
    assert came == left == [connection]
    assert (connection.backlog.total, connection.owed, connection._held_back) == (0, 0, {})
    assert (connection.streams, connection.held, len(connection._waiting)) == ({}, 0, 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
