"""HTTP/2 of our own, asked by raw sockets: what it must do, and what nobody may do to it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from h2.events import SettingsAcknowledged
from h2.settings import SettingCodes
from hpack import Decoder, Encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.fronts.grpc_head import read_head
from serving.fronts.grpc_rpc import Rpc
from serving.fronts.http2.connection import MAX_STREAMS, MOST_IDLE
from serving.fronts.http2.headers import BlockReader, write_block
from tests.serving.http2_peer import (
    INFER,
    LIVE,
    PREFACE,
    STREAM,
    Answer,
    Peer,
    frame,
    framed,
    head,
    infer_message,
    raw_goaway,
)
from tests.support import RunningServer, await_true, metric, serving, write_config, write_fake

MAX_BYTES = 3_000_000
PARTS = """
backend: "fake"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [
  { name: "y" data_type: TYPE_FP32 dims: [ 1 ] },
  { name: "index" data_type: TYPE_UINT32 dims: [ 1 ] }
]
"""
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9
END_STREAM, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x4, 0x8, 0x20
ACK = 0x1
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 0x1, 0x3, 0x5, 0x6
REFUSED_STREAM, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x7, 0x9, 0xB
START = PREFACE + frame(SETTINGS, 0, 0)
ECHO = infer_message("echo", 1, 2, 3, 4)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("http2")
    write_fake(repository, "echo")
    write_fake(repository, "wide", dims="[-1]")
    write_fake(repository, "slow", delay_ms=300)
    directory = write_config(repository, "parts", PARTS)
    (directory / "1").mkdir()
    with serving(repository, "--http-max-input-size", str(MAX_BYTES)) as server:
        yield server
        assert server.events("unexpected error") == []
        # asyncio's and Python's own words for what we let slip.
        assert server.events("text") == []


@pytest.fixture
def peer(running: RunningServer) -> Iterator[Peer]:
    with Peer(running.grpc_port) as connected:
        yield connected


def block(path: str = INFER) -> bytes:
    """Headers of a call, for raw frames."""
    return bytes(Encoder().encode(head(path)))


def is_up(server: RunningServer) -> bool:
    with Peer(server.grpc_port) as honest:
        return honest.call(ECHO).values() == [1, 2, 3, 4]


# What it must do.


def test_a_call(peer: Peer) -> None:
    answer = peer.call(ECHO, head(x_request_id="mine"))
    assert answer.http_status == 200
    assert answer.headers["content-type"] == "application/grpc"
    assert answer.headers["grpc-accept-encoding"] == "identity,gzip,deflate"
    assert answer.values() == [1, 2, 3, 4]
    assert answer.trailers == {"grpc-status": "0", "x-request-id": "mine"}
    assert any(isinstance(event, SettingsAcknowledged) for event in peer.events)
    # The same headers are short now, for the peer has them in its table; and others between.
    for number in (2, 3):
        assert peer.call(infer_message("echo", number, 0, 0, 0)).values()[0] == number
        assert peer.call(b"", head(LIVE)).status == 0


def test_frames_in_any_form(running: RunningServer) -> None:
    data, headers = framed(ECHO), block()
    with Peer(running.grpc_port) as peer:
        calls = {
            1: [frame(HEADERS, END_HEADERS, 1, headers), frame(DATA, END_STREAM, 1, data)],
            3: [
                frame(
                    HEADERS,
                    END_HEADERS | PADDED | HAS_PRIORITY,
                    3,
                    b"\x07" + b"\0\0\0\x01\x10" + headers + bytes(7),
                ),
                frame(PRIORITY, 0, 3, bytes(5)),
                frame(DATA, PADDED, 3, b"\x03" + data + bytes(3)),
                frame(DATA, END_STREAM | PADDED, 3, b"\x02" + bytes(2)),
            ],
            5: [
                frame(HEADERS, 0, 5, headers[:1]),
                *(frame(CONTINUATION, 0, 5, headers[i : i + 9]) for i in range(1, 100, 9)),
                frame(CONTINUATION, END_HEADERS, 5, headers[100:]),
                *(frame(DATA, 0, 5, data[i : i + 1]) for i in range(len(data))),
                frame(0xBE, 0xFF, 5, b"an extension"),
                frame(DATA, END_STREAM, 5),
            ],
            # Trailers end a stream, too.
            7: [
                frame(HEADERS, END_HEADERS, 7, headers),
                frame(DATA, 0, 7, data),
                frame(HEADERS, END_HEADERS | END_STREAM, 7, write_block([(b"x", b"y")])),
            ],
        }
        for id, frames in calls.items():
            # h2 must know of the stream to read the answer.
            peer.h2.send_headers(id, head())
            peer.h2.data_to_send()
            answer = peer.answers[id] = Answer()
            for byte in b"".join(frames):
                peer.socket.send(bytes([byte]))
            assert peer.answer(id) is answer
            assert answer.values() == [1, 2, 3, 4], id


def test_settings_and_pings_are_answered(peer: Peer) -> None:
    peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 70_000})
    peer.ping()
    acknowledged = [event for event in peer.events if isinstance(event, SettingsAcknowledged)]
    assert len(acknowledged) == 2


@pytest.mark.parametrize("window", [0, 999, 65_535])
def test_large_messages_through_small_windows(running: RunningServer, window: int) -> None:
    values = np.random.default_rng(1).random(150_000 if window > 1000 else 20_000, np.float32)
    message = infer_message("wide", *values)
    with Peer(running.grpc_port, {SettingCodes.INITIAL_WINDOW_SIZE: window}) as peer:
        if not window:
            id = peer.open(head())
            peer.send(id, framed(message))
            peer.ping()
            assert not peer.answers[id].data
            # What is granted later counts for streams that there are.
            peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 5000})
            peer.flush()
            answer = peer.answer(id)
        else:
            answer = peer.call(message)
        assert np.array_equal(np.array(answer.values(), np.float32), values)


def test_200_calls_at_once_on_one_connection(peer: Peer) -> None:
    started = time.monotonic()
    ids = {}
    for number in range(200):
        id = ids[number] = peer.open(head())
        peer.send(id, framed(infer_message("slow", number, 0, 0, 0)))
    assert [peer.answer(ids[number]).values()[0] for number in range(200)] == list(range(200))
    # They shared batches of 64.
    assert time.monotonic() - started < 5


def test_many_large_answers_share_a_small_connection(running: RunningServer) -> None:
    with Peer(running.grpc_port) as peer:
        ids = {}
        for number in range(20):
            id = ids[number] = peer.open(head())
            peer.send(id, framed(infer_message("wide", *[number] * 20_000)))
        for number, id in ids.items():
            assert set(peer.answer(id).values()) == {number}


def test_who_does_not_read_is_waited_for(running: RunningServer) -> None:
    process = psutil.Process(running.process.pid)
    with Peer(running.grpc_port, reads=False) as peer:
        id = peer.open(head(STREAM))
        peer.send(id, framed(infer_message("parts", *range(300_000), rows=False)), ends=False)
        peer.read_until(lambda: len(peer.answers[id].data) > 60_000)
        before = process.memory_info().rss
        time.sleep(0.5)
        assert process.memory_info().rss - before < 10_000_000
        assert len(peer.answers[id].data) <= 65_535
        assert is_up(running)
        peer.h2.reset_stream(id)
        peer.flush()
        await_true(
            lambda: (
                metric(running, "slipway_requests_total", model="parts", outcome="cancelled") > 0
            )
        )


def test_who_sends_more_than_is_read_is_held_back(running: RunningServer) -> None:
    with Peer(running.grpc_port, reads=False) as peer:
        id = peer.open(head(STREAM))
        # Nothing of the answers is read, so in the end nothing of the requests is.
        message = framed(infer_message("wide", *range(5000)))
        sent = 0
        while peer.h2.local_flow_control_window(id) >= len(message):
            peer.send(id, message, ends=False)
            sent += 1
            peer.ping()
            assert sent < 1000
        assert is_up(running)


def test_a_deadline_is_the_servers_to_keep(running: RunningServer, peer: Peer) -> None:
    answer = peer.call(infer_message("slow", 1, 2, 3, 4), head(grpc_timeout="50m"))
    assert answer.status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    id = peer.open(head(STREAM, grpc_timeout="100m"))
    assert peer.answer(id).status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    # It is the stream that ended, not the connection.
    assert peer.call(ECHO, head(grpc_timeout="99999999H")).values() == [1, 2, 3, 4]


def test_a_reset_takes_the_request_back(running: RunningServer, peer: Peer) -> None:
    def cancelled() -> float:
        return metric(running, "slipway_requests_total", model="slow", outcome="cancelled")

    before = cancelled()
    id = peer.open(head())
    peer.send(id, framed(infer_message("slow", 1, 2, 3, 4)))
    peer.ping()
    peer.h2.reset_stream(id)
    peer.flush()
    await_true(lambda: cancelled() == before + 1)
    assert peer.call(ECHO).values() == [1, 2, 3, 4]
    peer.send(peer.open(head()), framed(infer_message("slow", 1, 2, 3, 4)))
    peer.ping()
    peer.socket.close()
    await_true(lambda: cancelled() == before + 2)


def test_what_is_in_flight_is_answered_before_the_end(tmp_path: Path) -> None:
    write_fake(tmp_path, "slow", delay_ms=700)
    with (
        serving(tmp_path) as running,
        Peer(running.grpc_port) as peer,
        Peer(running.grpc_port) as idle,
    ):
        id = peer.open(head())
        peer.send(id, framed(infer_message("slow", 1, 2, 3, 4)))
        peer.ping()
        running.process.terminate()
        peer.read_until(lambda: peer.answers[id].ended)
        assert peer.answers[id].values() == [1, 2, 3, 4]
        for each, last in ((peer, id), (idle, 0)):
            each.raw(frame(PING, ACK, 0, b"last one"))
            goaways = [payload for kind, _, payload in each.rest() if kind == GOAWAY]
            # First that it will end, if h2 has not read that, then what was taken.
            expected = [n.to_bytes(4, "big") + bytes(4) for n in (2**31 - 1, last)]
            assert goaways == expected[-len(goaways) :]
        assert running.process.wait(10) == 0


# What is refused.

GZIP = {"grpc_encoding": "gzip"}


def gzipped(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


REFUSED: dict[str, tuple[list[tuple[str, str]], bytes, str, str]] = {
    "an unknown method": (head("/inference.X/Y"), framed(b""), "UNIMPLEMENTED", "not found"),
    "a path without a method": (head("/"), framed(b""), "UNIMPLEMENTED", "not found"),
    "a message of another kind": (
        head(),
        framed(b"\xff\xff"),
        "INVALID_ARGUMENT",
        "not a message of this method",
    ),
    "the same of another method": (
        head("/inference.GRPCInferenceService/ModelReady"),
        framed(b"\xff\xff"),
        "INVALID_ARGUMENT",
        "not a message of this method",
    ),
    "two messages": (head(), framed(ECHO) * 2, "UNIMPLEMENTED", "one message"),
    "no message": (head(), b"", "UNIMPLEMENTED", "one message"),
    "half a message": (head(), framed(ECHO)[:-1], "INVALID_ARGUMENT", "cut short"),
    "a message without a length": (head(), b"\0\0", "INVALID_ARGUMENT", "cut short"),
    "no flag": (head(), b"\x02" + framed(ECHO)[1:], "INTERNAL", "no message of gRPC"),
    "too long": (
        head(),
        framed(bytes(MAX_BYTES + 1)),
        "RESOURCE_EXHAUSTED",
        f"({MAX_BYTES + 1} vs. {MAX_BYTES})",
    ),
    "too long once unpacked": (
        head(**GZIP),
        framed(gzipped(bytes(MAX_BYTES + 1)), compressed=True),
        "RESOURCE_EXHAUSTED",
        f"limit of {MAX_BYTES}",
    ),
    "damaged": (head(**GZIP), framed(b"gzip", compressed=True), "INVALID_ARGUMENT", "not gzip"),
    "an unknown encoding": (
        head(grpc_encoding="snappy"),
        framed(ECHO),
        "UNIMPLEMENTED",
        "expected one of gzip, deflate",
    ),
    "a time in words": (head(grpc_timeout="soon"), framed(ECHO), "INVALID_ARGUMENT", "'soon'"),
    "binary metadata in words": (
        head(mine_bin="ä!"),
        framed(ECHO),
        "INVALID_ARGUMENT",
        "'mine-bin' is not base64",
    ),
    "too much metadata": (
        head(mine="x" * 17_000),
        framed(ECHO),
        "RESOURCE_EXHAUSTED",
        "of 16384 at most",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_calls_that_are_refused(peer: Peer, case: str) -> None:
    headers, data, status, problem = REFUSED[case]
    id = peer.open(headers)
    answer = peer.answers[id]
    if data:
        # Whoever is refused early need not send the rest.
        for at in range(0, len(data), 16_000):
            peer.read_until(lambda: answer.ended or peer.h2.local_flow_control_window(id) >= 16_000)
            if answer.ended:
                break
            peer.h2.send_data(id, data[at : at + 16_000])
            peer.flush()
    if not answer.ended:
        peer.h2.end_stream(id)
        peer.flush()
    peer.answer(id)
    assert answer.http_status == 200
    assert answer.status == getattr(grpc.StatusCode, status).value[0]
    assert problem in answer.message
    assert peer.call(ECHO).values() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"content_type": "application/json"}, 415),
        ({"content_type": None}, 415),
        ({"content_type": "application/grpc-web"}, 415),
        ({"_method": "GET"}, 405),
    ],
)
def test_what_is_not_grpc(peer: Peer, changes: dict[str, Any], status: int) -> None:
    assert peer.answer(peer.open(head(**changes), ends=True)).http_status == status
    assert peer.call(ECHO, head(content_type="application/grpc+proto")).status == 0


def test_browsers_are_told_what_this_port_is(running: RunningServer) -> None:
    code, text = raw_goaway(running.grpc_port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (code, text) == (PROTOCOL_ERROR, "this port speaks gRPC, over HTTP/2")


BAD_HEADERS = {
    "a capital": [*head(), ("X-Mine", "1")],
    "the other protocol's": [*head(), ("connection", "close")],
    "pseudo-headers last": head()[4:] + head()[:4],
    "the same twice": [head()[0], *head()],
    "one that is not known": [(":mine", "1"), *head()],
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_headers_that_cannot_be(peer: Peer, case: str) -> None:
    id = peer.open(head())
    peer.send(id, framed(ECHO))
    peer.answer(id)
    # h2 would not send them.
    bad = id + 2
    peer.h2.send_headers(bad, head())
    peer.h2.data_to_send()
    answer = peer.answers[bad] = Answer()
    peer.raw(frame(HEADERS, END_HEADERS | END_STREAM, bad, plain_block(BAD_HEADERS[case])))
    peer.read_until(lambda: answer.reset is not None)
    assert answer.reset == PROTOCOL_ERROR
    peer.ping()


def plain_block(headers: list[tuple[str, str]]) -> bytes:
    return write_block([(name.encode(), value.encode()) for name, value in headers])


def test_more_streams_than_there_may_be(peer: Peer) -> None:
    ids = [peer.h2.get_next_available_stream_id() + 2 * i for i in range(MAX_STREAMS + 1)]
    headers = plain_block(head())
    peer.raw(*(frame(HEADERS, END_HEADERS, id, headers) for id in ids))
    refused = frame(RST_STREAM, 0, ids[-1], REFUSED_STREAM.to_bytes(4, "big"))
    data = b""
    while refused not in data:
        data += peer.socket.recv(1 << 16)
    # The others are still waited for.
    peer.raw(frame(DATA, END_STREAM, ids[0], framed(ECHO)))
    while b"grpc-status\x010" not in data:
        data += peer.socket.recv(1 << 16)


WRONG: dict[str, tuple[bytes, int]] = {
    "an even stream": (frame(HEADERS, END_HEADERS, 2, block()), PROTOCOL_ERROR),
    "stream 0": (frame(HEADERS, END_HEADERS, 0, block()), PROTOCOL_ERROR),
    "data for no stream": (frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    "data for stream 0": (frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
    "a reset for no stream": (frame(RST_STREAM, 0, 9, bytes(4)), PROTOCOL_ERROR),
    "a window for no stream": (frame(WINDOW_UPDATE, 0, 9, b"\0\0\0\1"), PROTOCOL_ERROR),
    "a push": (frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4) + block()), PROTOCOL_ERROR),
    "half a block": (frame(HEADERS, 0, 1, block()) + frame(PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
    "a block that goes on elsewhere": (
        frame(HEADERS, 0, 1, block()) + frame(CONTINUATION, END_HEADERS, 3),
        PROTOCOL_ERROR,
    ),
    "a block that nobody began": (frame(CONTINUATION, END_HEADERS, 1, block()), PROTOCOL_ERROR),
    "more padding than there is": (
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + block()),
        PROTOCOL_ERROR,
    ),
    "padded data without a length": (
        frame(HEADERS, END_HEADERS, 1, block()) + frame(DATA, PADDED, 1),
        PROTOCOL_ERROR,
    ),
    "no such index": (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\x7f"), COMPRESSION_ERROR),
    "half a header": (frame(HEADERS, END_HEADERS, 1, block()[:-1]), COMPRESSION_ERROR),
    "a table larger than it may be": (
        frame(HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\x03" + block()),
        COMPRESSION_ERROR,
    ),
    "half a setting": (frame(SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
    "settings of a stream": (frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
    "an acknowledgement that says something": (frame(SETTINGS, 1, 0, bytes(6)), PROTOCOL_ERROR),
    "a window that is too large": (
        frame(SETTINGS, 0, 0, b"\0\x04\xff\xff\xff\xff"),
        FLOW_CONTROL_ERROR,
    ),
    "frames that are too small": (frame(SETTINGS, 0, 0, b"\0\x05\0\0\0\1"), PROTOCOL_ERROR),
    "a push that is half wanted": (frame(SETTINGS, 0, 0, b"\0\x02\0\0\0\2"), PROTOCOL_ERROR),
    "a connection's window that is too large": (
        frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
        FLOW_CONTROL_ERROR,
    ),
    "a window that grows by nothing": (frame(WINDOW_UPDATE, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "half a window": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
    "half a ping": (frame(PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "half a reset": (
        frame(HEADERS, END_HEADERS, 1, block()) + frame(RST_STREAM, 0, 1, bytes(3)),
        FRAME_SIZE_ERROR,
    ),
    "a frame that is too long": (b"\x04\x00\x01" + bytes(2) + bytes(4), FRAME_SIZE_ERROR),
    "a very long block": (
        frame(HEADERS, END_HEADERS, 1, block() + bytes(40_000)),
        ENHANCE_YOUR_CALM,
    ),
    # 4,000 bytes that are put into the table, and then named twenty times.
    "a bomb of headers": (
        frame(
            HEADERS,
            END_HEADERS,
            1,
            b"\x40\x01x" + b"\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * 20,
        ),
        ENHANCE_YOUR_CALM,
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_breaks_the_protocol_ends_the_connection(running: RunningServer, case: str) -> None:
    data, code = WRONG[case]
    assert raw_goaway(running.grpc_port, START, data)[0] == code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (
            frame(DATA, END_STREAM, 1, framed(infer_message("slow", 1, 2, 3, 4)))
            + frame(DATA, 0, 1, b"x"),
            STREAM_CLOSED,
        ),
        (frame(WINDOW_UPDATE, 0, 1, bytes(4)), PROTOCOL_ERROR),
        (frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), FLOW_CONTROL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, write_block([(b"x", b"y")])), PROTOCOL_ERROR),
    ],
    ids=["data after the end", "no room", "too much room", "headers in the midst"],
)
def test_what_is_wrong_with_a_stream_ends_only_that(peer: Peer, data: bytes, code: int) -> None:
    id = peer.open(head(STREAM))
    peer.raw(data)
    peer.read_until(lambda: peer.answers[id].reset is not None)
    assert peer.answers[id].reset == code
    assert peer.call(ECHO).values() == [1, 2, 3, 4]


# Floods.

COUNT = 2 * MOST_IDLE
FLOODS: dict[str, Callable[[], bytes]] = {
    "pings": lambda: frame(PING, 0, 0, bytes(8)) * COUNT,
    "settings": lambda: frame(SETTINGS, 0, 0) * COUNT,
    "priorities": lambda: frame(PRIORITY, 0, 1, bytes(5)) * COUNT,
    "extensions": lambda: frame(0xEE, 0, 0) * COUNT,
    "resets": lambda: b"".join(
        frame(HEADERS, END_HEADERS, 2 * i + 1, plain_block(head()))
        + frame(RST_STREAM, 0, 2 * i + 1, bytes(4))
        for i in range(COUNT)
    ),
    "resets of calls": lambda: b"".join(
        frame(HEADERS, END_HEADERS, 2 * i + 1, plain_block(head()))
        + frame(DATA, END_STREAM, 2 * i + 1, framed(infer_message("slow", 1, 2, 3, 4)))
        + frame(RST_STREAM, 0, 2 * i + 1, bytes(4))
        for i in range(COUNT)
    ),
    "faults that we reset": lambda: b"".join(
        frame(HEADERS, END_HEADERS, 2 * i + 1, plain_block([*head(), ("X", "y")]))
        for i in range(COUNT)
    ),
    "empty data": lambda: frame(HEADERS, END_HEADERS, 1, block()) + frame(DATA, 0, 1) * COUNT,
    "padding": lambda: (
        frame(HEADERS, END_HEADERS, 1, block()) + frame(DATA, PADDED, 1, b"\x00") * COUNT
    ),
    "data for a stream that was": lambda: (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block()) + frame(DATA, 0, 1, b"x") * COUNT
    ),
    "windows": lambda: frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * COUNT,
    "trailers": lambda: frame(HEADERS, END_HEADERS | END_STREAM, 1, block()) * COUNT,
    "continuations": lambda: frame(HEADERS, 0, 1, block()) + frame(CONTINUATION, 0, 1) * COUNT,
    "long continuations": lambda: frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1, bytes(9000)) * 5,
}


@pytest.mark.parametrize("case", FLOODS)
def test_floods_end_the_connection(running: RunningServer, case: str) -> None:
    assert raw_goaway(running.grpc_port, START, FLOODS[case]())[0] == ENHANCE_YOUR_CALM
    assert is_up(running)


def test_what_gets_something_done_is_no_flood(peer: Peer) -> None:
    for _ in range(MOST_IDLE // 2):
        assert peer.call(ECHO).status == 0
        peer.raw(frame(PING, 0, 0, bytes(8)) * 3)
    peer.ping()


def test_connections_that_say_nothing_are_not_kept(
    running: RunningServer,
) -> None:
    with socket.create_connection(("127.0.0.1", running.grpc_port), timeout=20) as silent:
        started = time.monotonic()
        try:
            while silent.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        assert 5 < time.monotonic() - started < 15


def test_held_bytes_are_bounded(running: RunningServer) -> None:
    """Many messages of which the end does not come."""
    with Peer(running.grpc_port) as peer:
        ids = []
        while all(not answer.ended for answer in peer.answers.values()):
            ids.append(peer.open(head()))
            peer.send(ids[-1], framed(bytes(MAX_BYTES))[: 1 << 19], ends=False)
            peer.ping()
            assert len(ids) < 20
        refused = [answer for answer in peer.answers.values() if answer.ended]
        assert refused[0].status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert 2 * MAX_BYTES < len(ids) << 19 <= 2 * MAX_BYTES + (1 << 20)


# Whatever comes.

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


# Headers.

NAMES = st.sampled_from([b"a", b"grpc-timeout", b":path", b"user-agent", b"x" * 40])
FIELDS = st.tuples(NAMES, st.sampled_from([b"", b"1", b"2", b"y" * 900]))


@settings(deadline=None)
@given(
    blocks=st.lists(
        st.tuples(st.lists(FIELDS, min_size=1, max_size=4), st.booleans(), st.integers(0, 5)),
        max_size=30,
    )
)
def test_blocks_that_come_again_say_what_they_say(
    blocks: list[tuple[list[tuple[bytes, bytes]], bool, int]],
) -> None:
    encoder, plain = Encoder(), Decoder()
    reader: BlockReader[list[tuple[bytes, bytes]]] = BlockReader(list)
    for fields, is_indexed, resize in blocks:
        if resize == 5:
            encoder.header_table_size = 4096 if encoder.header_table_size < 4096 else 100
        data = encoder.encode([(*each, not is_indexed) for each in fields])
        expected = [tuple(each) for each in plain.decode(data, raw=True)]
        assert [tuple(each) for each in reader.read(data)] == expected == fields


def test_metadata() -> None:
    async def behavior(message: Any, context: Any) -> None:
        """Nobody calls it."""

    rpcs = {"/a/B": Rpc(behavior, bytes, bytes)}
    fields = [
        *((name.encode(), value.encode()) for name, value in head("/a/B", user_agent="me")),
        (b"plain", b"text"),
        (b"some-bin", b"AAH/"),
        (b"some-bin", b"AA,AA=="),
        (b"grpc-timeout", b"2M"),
    ]
    found = read_head(fields, rpcs)
    assert found.rpc is rpcs["/a/B"]
    assert found.timeout_s == 120
    assert found.metadata == (
        ("user-agent", "me"),
        ("plain", "text"),
        ("some-bin", b"\0\x01\xff"),
        ("some-bin", b"\0"),
        ("some-bin", b"\0"),
    )


# Clients that are none of ours.


def test_grpcio_with_everything_on_one_channel(running: RunningServer) -> None:
    with grpc.insecure_channel(running.grpc) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        message = service_pb2.ModelInferRequest.FromString(infer_message("wide", *range(200_000)))
        waiting = [stub.ModelInfer.future(message) for _ in range(10)]
        for each in waiting:
            data = each.result().raw_output_contents[0]
            assert np.array_equal(np.frombuffer(data, np.float32), np.arange(200_000))


NODE = """
const http2 = require('http2');
const client = http2.connect('http://127.0.0.1:' + process.argv[1]);
const body = Buffer.from(process.argv[2], 'hex');
let left = 50, found = [];
for (let i = 0; i < 50; i++) {
  const call = client.request({':method': 'POST', ':path': process.argv[3],
    'content-type': 'application/grpc', te: 'trailers'});
  let data = [];
  call.on('data', piece => data.push(piece));
  call.on('trailers', trailers => found.push(
    [trailers['grpc-status'], Buffer.concat(data).subarray(-16).toString('hex')]));
  call.on('close', () => { if (--left === 0) {
    client.close(); console.log(JSON.stringify(found)); } });
  call.end(body);
}
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js, for its HTTP/2")
def test_node(running: RunningServer) -> None:
    arguments = [str(running.grpc_port), framed(ECHO).hex(), INFER]
    result = subprocess.run(
        ["node", "-e", NODE, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    values = np.array([1, 2, 3, 4], np.float32).tobytes().hex()
    assert json.loads(result.stdout) == [["0", values]] * 50


@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load (nghttp2-client)")
def test_h2load(running: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(framed(ECHO))
    command = ["h2load", "-n2000", "-c4", "-m100", "-d", str(tmp_path / "body")]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    result = subprocess.run(
        [*command, f"http://{running.grpc}{INFER}"], capture_output=True, text=True, check=True
    )
    assert "2000 succeeded, 0 failed, 0 errored" in result.stdout
