"""HTTP/2 of our own, asked by raw sockets and by clients of others: what it must do."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from h2.events import SettingsAcknowledged
from h2.settings import SettingCodes
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.fronts.grpc_head import read_head
from serving.fronts.grpc_rpc import Rpc
from serving.fronts.http2.headers import BlockReader, write_block
from serving.fronts.http2.outgoing import Outgoing
from serving.fronts.listening import SILENT_S
from tests.serving.http2_peer import (
    ACK,
    CONTINUATION,
    DATA,
    ECHO,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    INFER,
    LIVE,
    PADDED,
    PING,
    PRIORITY,
    STREAM,
    Answer,
    Peer,
    block,
    flawless,
    frame,
    framed,
    head,
    infer_message,
    is_up,
)
from tests.support import RunningServer, await_true, metric, serving, write_config, write_fake

KEEPALIVE = "02"
"""In /proc/net/tcp."""
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


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("http2")
    write_fake(repository, "echo")
    write_fake(repository, "wide", dims="[-1]")
    write_fake(repository, "slow", delay_ms=300)
    directory = write_config(repository, "parts", PARTS)
    (directory / "1").mkdir()
    with flawless(repository) as server:
        yield server


@pytest.fixture
def peer(running: RunningServer) -> Iterator[Peer]:
    with Peer(running.grpc_port) as connected:
        yield connected


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


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux, which tells")
def test_whoever_says_nothing_is_asked_whether_it_is_there(
    running: RunningServer, peer: Peer
) -> None:
    peer.call(ECHO)
    ends = running.grpc_port, peer.socket.getsockname()[1]

    def timer() -> tuple[str, float]:
        """Of the server's side of the connection: which, and how many seconds it has left."""
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:]):
            if tuple(int(end.split(":")[1], 16) for end in fields[1:3]) == ends:
                what, left = fields[5].split(":")
                return what, int(left, 16) / os.sysconf("SC_CLK_TCK")
        raise AssertionError("the connection is not there")

    # Until the peer has acknowledged the answer, it is another one.
    await_true(lambda: timer()[0] == KEEPALIVE)
    assert timer()[1] == pytest.approx(SILENT_S, abs=10)


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
        found = reader.known.get(data) or reader.read(data)
        assert [tuple(each) for each in found] == expected == fields


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


async def test_room_is_given_to_one_after_the_other() -> None:
    outgoing = Outgoing(1000)
    outgoing.window_out = 0
    had: list[int] = []

    async def take(number: int) -> None:
        await outgoing.wait_for_room()
        had.append(number)

    tasks = [asyncio.create_task(take(number)) for number in range(4)]
    await asyncio.sleep(0)
    outgoing.wake()
    assert outgoing.room() == 0
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    outgoing.widen(1)
    await asyncio.wait(tasks[1:2])
    assert had == [1]
    # Who has been given room and is cancelled before it has it passes it on.
    outgoing.wake()
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert had == [1, 3]
    assert outgoing.room() == 1


async def test_those_held_back_proceed_in_turn_as_far_as_that_goes() -> None:
    outgoing = Outgoing(10)
    order: list[int] = []

    class Asker:
        def __init__(self, number: int, size: int):
            self.number, self.size = number, size

        def proceed(self) -> None:
            order.append(self.number)
            outgoing.owe(self.size)
            if not self.size:
                outgoing.owe(1)
                outgoing.owe(-1)

    first = Asker(-1, 0)
    assert not outgoing.holds_back(first)
    outgoing.owe(11)
    # More than may call each other.
    askers = [Asker(number, 20 if number == 2000 else 0) for number in range(2002)]
    assert all(map(outgoing.holds_back, [first, *askers]))
    outgoing.forget(first)
    assert order == []
    outgoing.owe(-1)
    assert order == list(range(2001))
    outgoing.owe(-20)
    assert order == list(range(2002))
    assert outgoing.owed == 10


async def test_none_proceeds_when_the_peer_is_gone() -> None:
    outgoing = Outgoing(10)
    order: list[str] = []

    class Asker:
        def proceed(self) -> None:
            order.append("proceeded")

    outgoing.owe(11)
    assert outgoing.holds_back(Asker())
    outgoing.is_ending = True
    outgoing.owe(-11)
    assert order == []


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
