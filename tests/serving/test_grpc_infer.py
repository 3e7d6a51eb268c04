"""ModelInfer and ModelStreamInfer against a real server."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory as SharedObject
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from serving.fronts.v2_grpc_stream import MAX_IN_FLIGHT
from tests.support import RunningServer, await_true, metric, serving, write_config, write_fake

SEQUENCES = """
sequence_batching {
  max_sequence_idle_microseconds: 30000000
  oldest { max_candidate_sequences: 8 }
}
"""
DECOUPLED = """
backend: "fake"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [
  { name: "y" data_type: TYPE_FP32 dims: [ 1 ] },
  { name: "index" data_type: TYPE_UINT32 dims: [ 1 ] }
]
parameters { key: "delay_ms" value { string_value: "DELAY" } }
"""


@pytest.fixture(scope="module", params=["native", "grpcio"])
def front(request: pytest.FixtureRequest) -> str:
    """Each has the same conversations."""
    return str(request.param)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, front: str) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("infer")
    write_fake(repository, "echo")
    write_fake(repository, "slow", delay_ms=400)
    # A batch of 1, so that later requests wait behind earlier ones.
    write_fake(repository, "one", delay_ms=100, max_batch_size=1)
    write_fake(repository, "failing", fail_every=1)
    write_fake(repository, "sequence", extra=SEQUENCES)
    labelled = write_fake(repository, "labelled")
    text = (labelled / "config.pbtxt").read_text()
    output = 'output [ { name: "y" data_type: TYPE_FP32 dims: [4]'
    assert output in text
    labelled_output = output + ' label_filename: "labels.txt"'
    (labelled / "config.pbtxt").write_text(text.replace(output, labelled_output))
    (labelled / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    for name, delay in {"parts": "0", "slow-parts": "150"}.items():
        directory = write_config(repository, name, DECOUPLED.replace("DELAY", delay))
        (directory / "1").mkdir()
    with serving(repository, "--allow-client-shm", "true", "--grpc-front", front) as server:
        yield server
        # gRPC's own word for what we let slip.
        assert [line for line in server.log if "servicer method" in str(line)] == []


@pytest.fixture
def client(running: RunningServer) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(running.grpc) as connected:
        yield connected


@pytest.fixture
def stub(running: RunningServer) -> Iterator[Any]:
    with grpc.insecure_channel(running.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(*values: float, rows: bool = True) -> Any:
    array = np.array([values] if rows else values, np.float32)
    x = tritonclient.grpc.InferInput("x", list(array.shape), "FP32")
    x.set_data_from_numpy(array)
    return x


def request(model: str, *values: float, rows: bool = True, **fields: Any) -> Any:
    array = np.array([values] if rows else values, np.float32)
    message = service_pb2.ModelInferRequest(model_name=model, **fields)
    message.inputs.add(name="x", datatype="FP32", shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    return message


def sequence_step(step: int, last: int, sequence: int = 1) -> Any:
    message = request("sequence", step, 0, 0, 0, id=f"{sequence}/{step}")
    message.parameters["sequence_id"].int64_param = sequence
    message.parameters["sequence_start"].bool_param = step == 0
    message.parameters["sequence_end"].bool_param = step == last
    return message


def first(response: Any) -> float:
    return float(np.frombuffer(response.raw_output_contents[0], np.float32)[0])


def is_final(response: Any) -> bool:
    return bool(response.infer_response.parameters["triton_final_response"].bool_param)


# One request, one response.


def test_classification(client: Any) -> None:
    wanted = tritonclient.grpc.InferRequestedOutput("y", class_count=2)
    for model, expected in {
        "echo": [b"4.000000:1", b"3.000000:3"],
        "labelled": [b"4.000000:1:bee", b"3.000000:3:dog"],
    }.items():
        answer = client.infer(model, [tensor(1, 4, 2, 3)], outputs=[wanted]).as_numpy("y")
        assert answer.tolist() == [expected]


def test_shared_memory_both_ways(client: Any) -> None:
    shared = SharedObject(create=True, size=64)
    view: Any = shared.buf
    try:
        values = np.array([[1, 2, 3, 4]], np.float32)
        view[16:32] = values.tobytes()
        client.register_system_shared_memory("region", f"/{shared.name}", 64)
        x = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
        x.set_shared_memory("region", 16, offset=16)
        y = tritonclient.grpc.InferRequestedOutput("y")
        y.set_shared_memory("region", 16, offset=48)
        result = client.infer("echo", [x], outputs=[y])
        assert list(result.get_response().raw_output_contents) == [b""]
        assert list(result.get_output("y").shape) == [1, 4]
        assert np.frombuffer(bytes(view[48:64]), np.float32).tolist() == [1, 2, 3, 4]
        y.set_shared_memory("region", 8, offset=48)
        with pytest.raises(InferenceServerException, match="at least 16 bytes"):
            client.infer("echo", [x], outputs=[y])
        x.set_shared_memory("region", 16, offset=56)
        with pytest.raises(InferenceServerException, match="Invalid offset"):
            client.infer("echo", [x])
    finally:
        client.unregister_system_shared_memory()
        shared.close()
        shared.unlink()


def test_a_caller_who_waits_no_longer(running: RunningServer, client: Any) -> None:
    def given_up() -> float:
        # The caller's clock and the server's race, and the caller's takes the request back.
        return sum(outcomes(running, model="one", outcome=o) for o in ("expired", "cancelled"))

    before = given_up()
    waiting = [client.async_infer("one", [tensor(1, 2, 3, 4)], ignore) for _ in range(3)]
    with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
        client.infer("one", [tensor(1, 2, 3, 4)], client_timeout=0.05)
    await_true(lambda: given_up() == before + 1)
    assert len(waiting) == 3


def ignore(result: Any, error: Any) -> None:
    """A callback for a call whose answer is of no account."""


def outcomes(server: RunningServer, **labels: str) -> float:
    return metric(server, "slipway_requests_total", **labels)


@pytest.mark.parametrize("spoil", ["version", "datatype", "parameter"])
def test_requests_without_a_form_are_counted(running: RunningServer, stub: Any, spoil: str) -> None:
    before = outcomes(running, model="echo", outcome="invalid")
    message = request("echo", 1, 2, 3, 4)
    match spoil:
        case "version":
            message.model_version = "one"
        case "datatype":
            message.inputs[0].datatype = "FP31"
        case _:
            message.parameters["triton_mine"].bool_param = True
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(message)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    if spoil != "version":
        assert outcomes(running, model="echo", outcome="invalid") == before + 1


def test_a_decoupled_model_needs_a_stream(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(request("parts", 1, rows=False))
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "decoupled" in str(refusal.value.details())


def test_what_fails_inside_is_not_told(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(request("failing", 1, 2, 3, 4))
    assert refusal.value.code() is grpc.StatusCode.INTERNAL
    assert "as configured" not in str(refusal.value.details())


# Streams.


@contextmanager
def streaming(client: Any, **options: Any) -> Iterator[queue.Queue[tuple[Any, Any]]]:
    """An open stream of tritonclient's, and the results and errors that come by it."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), **options)
    try:
        yield answers
    finally:
        client.stop_stream()


def test_a_plain_model_over_a_stream(client: Any) -> None:
    with streaming(client) as answers:
        client.async_stream_infer("echo", [tensor(1, 2, 3, 4)], request_id="r")
        result, error = answers.get(timeout=20)
    assert error is None
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("r", "echo", "1")
    assert response.parameters["triton_final_response"].bool_param
    assert result.as_numpy("y").tolist() == [[1, 2, 3, 4]]
    assert answers.empty()


@pytest.mark.parametrize("wants_final", [False, True])
def test_a_decoupled_model(client: Any, wants_final: bool) -> None:
    with streaming(client) as answers:
        client.async_stream_infer(
            "parts",
            [tensor(5, 6, 7, rows=False)],
            request_id="r",
            enable_empty_final_response=wants_final,
        )
    results = [answers.get(timeout=20) for _ in range(3 + wants_final)]
    assert answers.empty()
    assert all(error is None for _, error in results)
    responses = [result.get_response() for result, _ in results]
    assert [first(response) for response in responses[:3]] == [5, 6, 7]
    flags = [response.parameters["triton_final_response"].bool_param for response in responses]
    assert flags == [False, False, False, True][: len(flags)]
    assert {(response.id, response.model_name) for response in responses} == {("r", "parts")}
    assert not responses[-1].outputs or not wants_final


def test_a_decoupled_model_without_responses(stub: Any) -> None:
    wants_final = request("parts", rows=False, id="final")
    wants_final.parameters["triton_enable_empty_final_response"].bool_param = True
    responses = list(stub.ModelStreamInfer(iter([request("parts", rows=False), wants_final])))
    assert [response.infer_response.id for response in responses] == ["final"]
    assert is_final(responses[0])


def test_errors_leave_the_stream_open(stub: Any) -> None:
    requests = [
        request("nobody", 1, 2, 3, 4, id="a"),
        request("echo", 1, 2, id="b"),
        request("echo", 1, 2, 3, 4, id="c", model_version="one"),
        request("failing", 1, 2, 3, 4, id="d"),
        request("echo", 1, 2, 3, 4, id="e"),
    ]
    answers = {answer.infer_response.id: answer for answer in stub.ModelStreamInfer(iter(requests))}
    assert len(answers) == 5
    assert "Request for unknown model: 'nobody'" in answers["a"].error_message
    assert answers["a"].infer_response.model_name == ""  # as Triton: no model has taken it
    assert "unexpected shape" in answers["b"].error_message
    assert "failed to get model version" in answers["c"].error_message
    assert answers["d"].error_message
    assert "as configured" not in answers["d"].error_message
    assert not answers["e"].error_message
    assert first(answers["e"].infer_response) == 1


def test_an_error_ends_the_stream_of_who_wants_that(client: Any, stub: Any) -> None:
    with streaming(client, headers={"triton_grpc_error": "true"}) as answers:
        client.async_stream_infer("nobody", [tensor(1, 2, 3, 4)])
        result, error = answers.get(timeout=20)
    assert result is None
    assert error.status() == "StatusCode.NOT_FOUND"
    assert "Request for unknown model: 'nobody'" in error.message()

    def requests() -> Iterator[Any]:
        yield request("slow", 1, 2, 3, 4)
        yield request("echo", 1, 2)
        time.sleep(2)

    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as refusal:
        list(stub.ModelStreamInfer(requests(), metadata=[("triton_grpc_error", "true")]))
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert time.monotonic() - started < 1


def test_an_error_ends_a_stream_that_is_being_answered(stub: Any) -> None:
    good, bad = request("echo", 1, 2, 3, 4), request("echo", 1, 2)
    for _ in range(30):
        with pytest.raises(grpc.RpcError) as refusal:
            list(
                stub.ModelStreamInfer(
                    iter([good, bad, good]), metadata=[("triton_grpc_error", "true")], timeout=5
                )
            )
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_requests_of_one_stream_run_together_and_are_answered_in_order(stub: Any) -> None:
    requests = [request("slow", i, 2, 3, 4, id=str(i)) for i in range(20)]
    requests.append(request("echo", 1, 2, 3, 4, id="fast"))
    started = time.monotonic()
    ids = [answer.infer_response.id for answer in stub.ModelStreamInfer(iter(requests))]
    assert time.monotonic() - started < 3
    assert ids == [*(str(i) for i in range(20)), "fast"]


def test_200_steps_of_a_sequence_keep_their_order(stub: Any) -> None:
    steps = [sequence_step(step, last=199) for step in range(200)]
    answers = list(stub.ModelStreamInfer(iter(steps)))
    assert [answer.error_message for answer in answers] == [""] * 200
    assert [first(answer.infer_response) for answer in answers] == list(range(200))


def test_many_sequences_on_one_stream(stub: Any) -> None:
    steps = [
        sequence_step(step, last=9, sequence=sequence)
        for step in range(10)
        for sequence in range(1, 41)
    ]
    answers = list(stub.ModelStreamInfer(iter(steps)))
    assert [answer.error_message for answer in answers if answer.error_message] == []
    for sequence in range(1, 41):
        ids = [answer.infer_response.id for answer in answers]
        of_this = [number for number in ids if number.startswith(f"{sequence}/")]
        assert of_this == [f"{sequence}/{step}" for step in range(10)]


def test_more_requests_than_a_stream_may_have_in_flight(stub: Any) -> None:
    count = MAX_IN_FLIGHT * 3
    requests = (request("echo", i, 2, 3, 4, id=str(i)) for i in range(count))
    ids = [answer.infer_response.id for answer in stub.ModelStreamInfer(requests)]
    assert ids == [str(i) for i in range(count)]


@pytest.mark.parametrize(
    ("model", "parts", "calls"), [("slow-parts", 100, 3), ("parts", 200_000, 1)]
)
def test_a_caller_who_goes_away_takes_his_requests_along(
    running: RunningServer, stub: Any, model: str, parts: int, calls: int
) -> None:
    labels = {"model": model, "outcome": "cancelled"}
    before = outcomes(running, **labels)

    def requests() -> Iterator[Any]:
        for _ in range(calls):
            yield request(model, *range(parts), rows=False)
        time.sleep(5)

    answers = stub.ModelStreamInfer(requests())
    next(answers)
    answers.cancel()
    await_true(lambda: outcomes(running, **labels) == before + calls)
    assert running.events("unexpected error") == []


def test_the_deadline_of_a_stream(stub: Any) -> None:
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as refusal:
        list(
            stub.ModelStreamInfer(iter([request("slow-parts", *range(100), rows=False)]), timeout=1)
        )
    assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 5


async def test_the_asyncio_client(running: RunningServer) -> None:
    async def requests() -> Any:
        for i in range(30):
            yield {"model_name": "echo", "inputs": [tensor(i, 0, 0, 0)], "request_id": str(i)}
            await asyncio.sleep(0)

    async with tritonclient.grpc.aio.InferenceServerClient(running.grpc) as client:
        got = {}
        async for result, error in client.stream_infer(requests()):
            assert error is None
            got[result.get_response().id] = result.as_numpy("y")[0, 0]
    assert got == {str(i): i for i in range(30)}


def test_an_open_stream_does_not_hold_up_the_end(tmp_path: Path, front: str) -> None:
    write_fake(tmp_path, "slow", delay_ms=1000)
    with (
        serving(tmp_path, "--grpc-front", front) as running,
        grpc.insecure_channel(running.grpc) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        more: queue.Queue[Any] = queue.Queue()
        more.put(request("slow", 1, 2, 3, 4))
        answers = stub.ModelStreamInfer(until_none(more))
        time.sleep(0.3)
        running.process.terminate()
        assert first(next(answers).infer_response) == 1
        with pytest.raises(grpc.RpcError) as refusal:
            next(answers)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        running.process.wait(10)
        more.put(None)


def until_none(items: queue.Queue[Any]) -> Iterable[Any]:
    return iter(items.get, None)
