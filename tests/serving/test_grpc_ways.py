"""ModelInfer's two ways through our front: one like an earlier one is told its answer, whatever
else is waited for. Their callers see no difference."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc
from h2.settings import SettingCodes

from serving.app import build_server
from serving.fronts.grpc_native import NativeFront
from serving.fronts.http2.connection import Connection
from serving.fronts.restricted import parse
from serving.fronts.v2_grpc import build_rpcs
from serving.settings import Settings
from tests.serving.http2_peer import (
    DATA,
    ECHO,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    Peer,
    block,
    flawless,
    frame,
    framed,
    head,
    infer_message,
)
from tests.support import RunningServer, await_true, metric, serving, write_fake

WIDE = 5000
NOT_KNOWN = "i" * 200
"""The id of a request that is read by protobuf each time: so long a one is never known."""
FULL = """
dynamic_batching { default_queue_policy { max_queue_size: 1 } }
instance_group { count: 1 }
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("ways")
    write_fake(repository, "echo")
    write_fake(repository, "wide", dims=f"[{WIDE}]")
    write_fake(repository, "slow", delay_ms=300)
    write_fake(repository, "full", delay_ms=300, max_batch_size=1, extra=FULL)
    write_fake(repository, "failing", fail_every=1)
    with serving(repository) as server, Peer(server.grpc_port) as peer:
        for model in ("echo", "wide", "slow", "full", "failing"):
            peer.call(message(model))
        yield server
        assert server.events("unexpected error") == []
        assert server.events("text") == []


@pytest.fixture
def peer(running: RunningServer) -> Iterator[Peer]:
    with Peer(running.grpc_port) as connected:
        yield connected


@pytest.fixture(params=["", NOT_KNOWN], ids=["known", "new"])
def id(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def message(model: str, first: float = 0, id: str = "") -> bytes:
    size = WIDE if model == "wide" else 4
    return infer_message(model, first, *[1.0] * (size - 1), id=id)


def ended(running: RunningServer, model: str, outcome: str) -> float:
    return metric(running, "slipway_requests_total", model=model, outcome=outcome)


def test_an_answer(peer: Peer, id: str) -> None:
    for number in range(3):
        answer = peer.call(message("echo", number, id), head(x_request_id=f"mine{number}"))
        assert answer.values() == [number, 1, 1, 1]
        assert answer.trailers == {"grpc-status": "0", "x-request-id": f"mine{number}"}
    ids = {peer.call(message("echo", 1, id)).trailers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_several_at_once(peer: Peer, id: str) -> None:
    calls = {number: peer.open(head()) for number in range(100)}
    for number, call in calls.items():
        peer.send(call, framed(message("slow", number, id)))
    assert [peer.answer(call).values()[0] for call in calls.values()] == list(range(100))


def test_an_answer_for_which_there_is_no_room(running: RunningServer, id: str) -> None:
    settings = {SettingCodes.INITIAL_WINDOW_SIZE: 0}
    with Peer(running.grpc_port, settings) as peer:
        calls = {number: peer.open(head()) for number in range(5)}
        for number, call in calls.items():
            peer.send(call, framed(message("wide", number, id)))
        peer.ping()
        # Of one nothing is wanted any more.
        peer.h2.reset_stream(calls.pop(2))
        peer.ping()
        assert not any(answer.data for answer in peer.answers.values())
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 3000})
        peer.flush()
        for number, call in calls.items():
            assert peer.answer(call).values() == [number, *[1] * (WIDE - 1)]


def test_an_answer_of_many_frames(peer: Peer, id: str) -> None:
    """20 KB, where the peer takes frames of 16."""
    assert peer.call(message("wide", 7, id)).values() == [7, *[1] * (WIDE - 1)]


def test_a_deadline(running: RunningServer, peer: Peer, id: str) -> None:
    before = ended(running, "slow", "expired")
    answer = peer.call(message("slow", 1, id), head(grpc_timeout="50m"))
    assert answer.status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    await_true(lambda: ended(running, "slow", "expired") == before + 1)
    assert peer.call(message("slow", 1, id), head(grpc_timeout="20S")).status == 0


def test_a_reset_and_a_connection_that_is_lost(running: RunningServer, peer: Peer, id: str) -> None:
    before = ended(running, "slow", "cancelled")
    call = peer.open(head())
    peer.send(call, framed(message("slow", 1, id)))
    peer.ping()
    peer.h2.reset_stream(call)
    peer.flush()
    await_true(lambda: ended(running, "slow", "cancelled") == before + 1)
    peer.send(peer.open(head()), framed(message("slow", 1, id)))
    peer.ping()
    peer.socket.close()
    await_true(lambda: ended(running, "slow", "cancelled") == before + 2)


def test_a_failure(running: RunningServer, peer: Peer, id: str) -> None:
    before = ended(running, "failing", "failed")
    answer = peer.call(message("failing", 1, id), head(x_request_id="mine"))
    assert answer.status == grpc.StatusCode.INTERNAL.value[0]
    assert answer.message == "inference failed; the server's log has the cause"
    assert (answer.headers | answer.trailers)["x-request-id"] == "mine"
    await_true(lambda: ended(running, "failing", "failed") == before + 1)


def test_a_queue_that_is_full(running: RunningServer, peer: Peer, id: str) -> None:
    before = ended(running, "full", "refused")
    calls = [peer.open(head()) for _ in range(5)]
    for call in calls:
        peer.send(call, framed(message("full", 1, id)))
    answers = [peer.answer(call) for call in calls]
    refused = [answer for answer in answers if answer.status]
    assert 2 <= len(refused) <= 4
    for answer in refused:
        assert answer.status == grpc.StatusCode.UNAVAILABLE.value[0]
        assert answer.message.startswith("Exceeds maximum queue size")
    assert ended(running, "full", "refused") == before + len(refused)


def test_a_model_that_is_another_now(tmp_path: Path) -> None:
    """What was good for the one need not be for the next."""
    write_fake(tmp_path, "echo")
    with (
        serving(tmp_path, "--model-control-mode", "explicit", "--load-model", "echo") as running,
        tritonclient.grpc.InferenceServerClient(running.grpc) as client,
        Peer(running.grpc_port) as peer,
    ):
        for _ in range(2):
            assert peer.call(ECHO).values() == [1, 2, 3, 4]
        write_fake(tmp_path, "echo", dims="[5]")
        client.load_model("echo")
        for _ in range(2):
            answer = peer.call(ECHO)
            assert answer.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert "Expected [-1,5], got [1,4]" in answer.message
        write_fake(tmp_path, "echo")
        client.load_model("echo")
        for _ in range(2):
            assert peer.call(ECHO).values() == [1, 2, 3, 4]
        client.unload_model("echo")
        for _ in range(2):
            assert peer.call(ECHO).status in (
                grpc.StatusCode.NOT_FOUND.value[0],
                grpc.StatusCode.UNAVAILABLE.value[0],
            )


def test_who_has_no_key_has_no_short_way(tmp_path: Path) -> None:
    write_fake(tmp_path, "echo")
    option = ("--grpc-restricted-protocol", "inference:secret=word")
    with flawless(tmp_path, *option) as running, Peer(running.grpc_port) as peer:
        key = [*head(), ("triton-grpc-protocol-secret", "word")]
        for _ in range(2):
            assert peer.call(ECHO, key).values() == [1, 2, 3, 4]
            assert peer.call(ECHO).status == grpc.StatusCode.UNAVAILABLE.value[0]


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        pass

    abort = close


async def test_what_is_known_takes_no_task(tmp_path: Path) -> None:
    write_fake(tmp_path, "echo")
    server = build_server(Settings(model_repositories=(tmp_path,)))
    assert not await server.control.start(())
    rpcs = build_rpcs(server, restrictions=parse("", ()), strict=False)
    connection = Connection(
        NativeFront(rpcs, max_message_bytes=10_000, tls=None), lambda _: None, lambda _: None
    )
    wire: Any = Wire()
    connection.connection_made(wire)
    connection.data_received(PREFACE + frame(SETTINGS, 0, 0))
    before, tasks = len(asyncio.all_tasks()), []
    for number, data in enumerate((ECHO, ECHO, infer_message("echo", 5, 6, 7, 8, id=NOT_KNOWN))):
        id = 2 * number + 1
        connection.data_received(
            frame(HEADERS, END_HEADERS, id, block()) + frame(DATA, END_STREAM, id, framed(data))
        )
        tasks.append(len(asyncio.all_tasks()) - before)
        while connection.streams:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.001)
    assert tasks == [1, 0, 1]
    assert wire.written.count(b"grpc-status\x010") == 3
    connection.connection_lost(None)
    await server.close()
