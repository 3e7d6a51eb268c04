"""HTTP/2 of our own: what it refuses, and what nobody may do to it."""

from __future__ import annotations

import socket
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import psutil
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.fronts.http2.connection import MAX_STREAMS, PREFACE_S
from serving.fronts.http2.credit import MOST_IDLE
from serving.fronts.http2.headers import write_block
from serving.fronts.http2.stream import WINDOW
from tests.serving.http2_peer import (
    CONTINUATION,
    DATA,
    ECHO,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM,
    WINDOW_UPDATE,
    Answer,
    Peer,
    block,
    flawless,
    frame,
    framed,
    head,
    infer_message,
    is_up,
    raw_goaway,
)
from tests.support import RunningServer, await_true, metric, write_fake

MAX_BYTES = 3_000_000
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 0x1, 0x3, 0x5, 0x6
REFUSED_STREAM, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x7, 0x9, 0xB
START = PREFACE + frame(SETTINGS, 0, 0)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("http2")
    write_fake(repository, "echo")
    write_fake(repository, "slow", delay_ms=300)
    write_fake(repository, "wide", dims="[-1]")
    with flawless(repository, "--http-max-input-size", str(MAX_BYTES)) as server:
        yield server


@pytest.fixture
def peer(running: RunningServer) -> Iterator[Peer]:
    with Peer(running.grpc_port) as connected:
        yield connected


@pytest.fixture(scope="module", autouse=True)
def silent(running: RunningServer) -> Iterator[tuple[socket.socket, float]]:
    """A connection that says nothing, and when it began."""
    with socket.create_connection(("127.0.0.1", running.grpc_port), timeout=20) as connection:
        yield connection, time.monotonic()


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
    "compressed, nobody knows how": (
        head(),
        framed(gzipped(ECHO), compressed=True),
        "INTERNAL",
        "without a grpc-encoding",
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
    "a name with a colon": [*head(), ("x:mine", "1")],
    "a name with a space": [*head(), ("x mine", "1")],
    "a name with a control character": [*head(), ("x\x7f", "1")],
    "NUL in a value": [*head(), ("x-mine", "1\x002")],
    "CR in a value": [*head(), ("x-request-id", "1\r2")],
    "LF in a value": [*head(), ("x-mine", "1\n")],
    "LF in a path": head("/inference.GRPCInferenceService/ModelInfer\nx"),
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
    "an acknowledgement that says something": (frame(SETTINGS, 1, 0, bytes(6)), FRAME_SIZE_ERROR),
    "a ping of a stream": (frame(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "half a block of stream 0": (
        frame(HEADERS, 0, 0, block()) + frame(PING, 0, 0, bytes(8)),
        PROTOCOL_ERROR,
    ),
    "a number that does not end": (
        frame(HEADERS, END_HEADERS, 1, b"\0\x7f" + b"\xff" * 30_000),
        COMPRESSION_ERROR,
    ),
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
    found, text = raw_goaway(running.grpc_port, START, data)
    assert found == code
    assert 10 < len(text) < 100


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


def test_what_was_on_its_way_to_a_stream_that_ended_is_no_flood(peer: Peer) -> None:
    id = peer.open([*head(STREAM), ("triton_grpc_error", "true")])
    peer.send(id, framed(infer_message("nowhere", 1, 2, 3, 4)), ends=False)
    assert peer.answer(id).status == grpc.StatusCode.NOT_FOUND.value[0]
    peer.raw(frame(DATA, 0, id, framed(infer_message("echo", 1, 2, 3, 4))) * COUNT)
    assert peer.call(ECHO).values() == [1, 2, 3, 4]


def test_settings_that_change_back_and_forth_hold_up_nobody(peer: Peer) -> None:
    """The window of each stream changes with them."""
    headers = plain_block(head(STREAM))
    peer.raw(*(frame(HEADERS, END_HEADERS, 2 * i + 1, headers) for i in range(MAX_STREAMS)))
    peer.ping()
    changes = b"".join(b"\0\x04" + (65_535 + i).to_bytes(4, "big") for i in range(32))
    since = time.monotonic()
    peer.raw(frame(SETTINGS, 0, 0, changes) * 100)
    peer.ping()
    assert time.monotonic() - since < 1


def test_what_gets_something_done_is_no_flood(peer: Peer) -> None:
    for _ in range(MOST_IDLE // 10):
        for _ in range(3):
            assert peer.call(ECHO).status == 0
        peer.raw(frame(PING, 0, 0, bytes(8)) * 11)
    peer.ping()


def test_a_thousand_calls_at_once_are_no_flood(running: RunningServer) -> None:
    """gRPC widens the window of each; and those that have waited too long are taken back."""
    message = service_pb2.ModelInferRequest.FromString(infer_message("slow", 1, 2, 3, 4))
    with grpc.insecure_channel(running.grpc) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        waiting = [stub.ModelInfer.future(message) for _ in range(1300)]
        assert {each.code() for each in waiting} == {grpc.StatusCode.OK}
        for _ in range(2):
            waiting = [stub.ModelInfer.future(message, timeout=0.2) for _ in range(1000)]
            codes = {each.code() for each in waiting}
            assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}


def test_messages_that_are_not_whole_take_turns(running: RunningServer) -> None:
    """Beyond a bound only the first is given room to go on, and then the next; none fails."""
    data, half = framed(bytes(MAX_BYTES)), WINDOW // 2
    with Peer(running.grpc_port) as peer:
        ids = [peer.open(head()) for _ in range(20)]
        for id in ids:
            peer.send(id, data[:half], ends=False)
        peer.ping()
        room = [peer.h2.local_flow_control_window(id) for id in ids]
        free = 2 * MAX_BYTES // half
        assert min(room[:free]) > WINDOW - half
        # What each has sent last is not counted yet.
        assert set(room[free + 4 :]) == {WINDOW - half}
        for id in ids:
            peer.send(id, data[half:])
            assert peer.answer(id).status == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_many_large_messages_at_once_are_all_answered(running: RunningServer) -> None:
    message = service_pb2.ModelInferRequest.FromString(infer_message("wide", *range(700_000)))
    with grpc.insecure_channel(running.grpc) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        waiting = [stub.ModelInfer.future(message) for _ in range(8)]
        assert {each.exception(timeout=60) for each in waiting} == {None}


def test_calls_that_end_before_they_have_begun(running: RunningServer) -> None:
    """All of it comes at once, before anything has been done about the first of it."""
    with Peer(running.grpc_port) as peer:
        id = peer.open(head())
        peer.send(id, framed(ECHO))
        peer.answer(id)
        for _ in range(2 * MAX_BYTES // 50_000 + 10):
            id += 2
            peer.h2.send_headers(id, head(STREAM))
            peer.h2.send_data(id, framed(bytes(50_000))[:16_000])
            peer.h2.send_data(id, bytes(16_000))
            peer.h2.send_data(id, bytes(18_005))
            peer.h2.reset_stream(id)
            peer.flush()
            peer.ping()
        # Nothing is held on their account any more.
        id = peer.open(head())
        peer.send(id, framed(ECHO)[:9], ends=False)
        peer.ping()
        peer.send(id, framed(ECHO)[9:])
        assert peer.answer(id).values() == [1, 2, 3, 4]
        id += 2
        peer.answers[id] = Answer()
        peer.h2.send_headers(id, head(STREAM))
        peer.h2.send_data(id, framed(bytes(MAX_BYTES + 1))[:100])
        peer.flush()
        assert peer.answer(id).status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


def test_empty_messages_are_held_back_or_refused(running: RunningServer) -> None:
    """Each takes up room, though there is nothing in it."""
    with Peer(running.grpc_port, reads=False) as peer:
        id = peer.open(head(STREAM))
        empty = framed(b"") * 3000
        answer = peer.answers[id]
        for _ in range(1000):
            peer.read_until(
                lambda: answer.ended or peer.h2.local_flow_control_window(id) >= len(empty)
            )
            if answer.ended:
                break
            peer.h2.send_data(id, empty)
            peer.ping()
        assert answer.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert is_up(running)


LONG = framed(infer_message("wide", *range(25_000)))
"""100 KB, and so is its answer."""


def test_nothing_more_is_begun_for_who_does_not_read(running: RunningServer) -> None:
    """Beyond a bound what it asks waits; and then it reads."""

    def answered() -> float:
        return metric(running, "slipway_requests_total", model="wide", outcome="answered")

    # Each is owed with what it asks, and with its answer.
    before, bound, calls = answered(), (1 << 24) // (2 * len(LONG)), 400
    with Peer(running.grpc_port, reads=False) as peer:
        ids = [peer.open(head()) for _ in range(calls)]
        for id in ids:
            peer.send(id, LONG)
        peer.ping()
        await_true(lambda: answered() - before >= bound)
        time.sleep(0.2)
        assert answered() - before < 3 * bound
        assert is_up(running)
        # Of some that wait nothing is wanted any more.
        for _ in range(20):
            peer.h2.reset_stream(ids.pop())
        peer.reads = True
        for id in ids:
            if size := len(peer.answers[id].data):
                peer.h2.acknowledge_received_data(size, id)
        peer.flush()
        assert {peer.answer(id).status for id in ids} == {0}
        assert answered() - before == calls - 20
        assert peer.call(ECHO).values() == [1, 2, 3, 4]


def test_streams_of_who_does_not_read_are_held_back(running: RunningServer) -> None:
    with Peer(running.grpc_port, reads=False) as peer:
        ids = [peer.open(head(STREAM)) for _ in range(10)]
        sent = 0
        for _ in range(100):
            for id in ids:
                if peer.answers[id].ended:  # too much, when all had sent what they may at first
                    continue
                if peer.h2.local_flow_control_window(id) >= len(LONG):
                    peer.send(id, LONG, ends=False)
                    sent += len(LONG)
            peer.ping()
        # What may be owed, what may wait to be read, and first windows.
        assert sent < (1 << 24) + 2 * MAX_BYTES + len(ids) * WINDOW
        assert is_up(running)


def test_who_asks_and_does_not_read_is_sent_away(running: RunningServer) -> None:
    process = psutil.Process(running.process.pid)
    before = process.memory_info().rss
    headers = plain_block(head("/unknown"))
    batches = (
        b"".join(
            frame(HEADERS, END_HEADERS | END_STREAM, id, headers)
            for id in range(first, first + 2000, 2)
        )
        for first in range(1, 2_000_000, 2000)
    )
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(30)
        deaf.connect(("127.0.0.1", running.grpc_port))
        deaf.sendall(START)
        with pytest.raises(ConnectionError):
            deque(map(deaf.sendall, batches), maxlen=0)
    assert process.memory_info().rss - before < 50_000_000
    assert is_up(running)


def test_connections_that_say_nothing_are_not_kept(silent: tuple[socket.socket, float]) -> None:
    connection, since = silent
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    assert time.monotonic() - since < PREFACE_S + 60
