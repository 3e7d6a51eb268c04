"""Unmodified public clients against a real server."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from tests.support import ONNX_TYPES, RunningServer, await_true, metric, sample

CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
ASYNC_CLIENTS = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}


def connect(server: RunningServer, protocol: str, **options: Any) -> Any:
    return CLIENTS[protocol].InferenceServerClient(getattr(server, protocol), **options)


def tensor(
    protocol: str, value: np.ndarray[Any, Any], datatype: str, *, binary: bool = True
) -> Any:
    name = CLIENTS[protocol].InferInput("x", list(value.shape), datatype)
    if protocol == "http":
        name.set_data_from_numpy(value, binary_data=binary)
    else:
        name.set_data_from_numpy(value)
    return name


def requested(protocol: str, *, binary: bool = True) -> Any:
    if protocol == "http":
        return tritonclient.http.InferRequestedOutput("y", binary_data=binary)
    return tritonclient.grpc.InferRequestedOutput("y")


@pytest.mark.parametrize("protocol", CLIENTS)
def test_health_and_metadata(server: RunningServer, protocol: str) -> None:
    with connect(server, protocol) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("double")
        assert client.is_model_ready("double", "1")
        assert not client.is_model_ready("double", "2")
        assert not client.is_model_ready("nobody")
        as_json = {"as_json": True} if protocol == "grpc" else {}
        assert client.get_server_metadata(**as_json)["name"] == "slipway"
        metadata = client.get_model_metadata("double", **as_json)
        assert metadata["versions"] == ["1"]
        assert metadata["inputs"][0]["datatype"] == "FP32"
        assert [int(size) for size in metadata["inputs"][0]["shape"]] == [-1, 4]
        config = client.get_model_config("double", **as_json)
        config = config.get("config", config)
        assert config["max_batch_size"] == 64
        assert int(config["dynamic_batching"]["max_queue_delay_microseconds"]) == 2000


FORMS = [
    (protocol, datatype, binary)
    for datatype in sorted(ONNX_TYPES)
    for protocol, binary in (("http", True), ("http", False), ("grpc", True))
    if binary or datatype != "FP16"  # which tritonclient refuses to write as JSON
]


@pytest.mark.parametrize(("protocol", "datatype", "binary"), FORMS)
def test_every_datatype_comes_back_as_it_went(
    server: RunningServer, protocol: str, datatype: str, binary: bool
) -> None:
    value = sample(datatype, (3, 5))
    with connect(server, protocol) as client:
        result = client.infer(
            f"identity-{datatype}",
            [tensor(protocol, value, datatype, binary=binary)],
            outputs=[requested(protocol, binary=binary)],
            request_id="r-7",
        )
    answer = result.as_numpy("y")
    assert answer.shape == value.shape
    if datatype == "BYTES" and not binary:
        answer = np.array([text.encode() for text in answer.ravel()], object).reshape(value.shape)
    assert answer.tolist() == value.tolist()
    response = result.get_response()
    assert (response["id"] if protocol == "http" else response.id) == "r-7"


@pytest.mark.parametrize("protocol", CLIENTS)
def test_a_model_without_batch_dimension(server: RunningServer, protocol: str) -> None:
    value = sample("FP32", (2, 3))
    with connect(server, protocol) as client:
        answer = client.infer("single", [tensor(protocol, value, "FP32")]).as_numpy("y")
    assert np.array_equal(answer, value * 2)


@pytest.mark.parametrize("protocol", CLIENTS)
async def test_asyncio_clients(server: RunningServer, protocol: str) -> None:
    module = ASYNC_CLIENTS[protocol]
    async with module.InferenceServerClient(getattr(server, protocol)) as client:
        assert await client.is_server_ready()
        values = [sample("FP32", (1 + i % 3, 4), seed=i) for i in range(20)]
        results = await asyncio.gather(
            *(client.infer("double", [tensor(protocol, value, "FP32")]) for value in values)
        )
    for value, result in zip(values, results, strict=True):
        assert np.array_equal(result.as_numpy("y"), value * 2)


@pytest.mark.parametrize("protocol", CLIENTS)
def test_64_concurrent_clients_get_what_they_get_alone(
    server: RunningServer, protocol: str
) -> None:
    model, clients, calls = "digits-patient", 64, 12
    images = np.random.default_rng(5).integers(0, 256, (clients, 1, 1, 8, 8), dtype=np.uint8)

    def ask(client: Any, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        sent = CLIENTS[protocol].InferInput("image", list(image.shape), "UINT8")
        sent.set_data_from_numpy(image)
        answer: np.ndarray[Any, Any] = client.infer(model, [sent]).as_numpy("logits")
        return answer

    with connect(server, protocol) as client:
        alone = [ask(client, image) for image in images]
    rows, runs = batches(server, model)

    def storm(index: int) -> list[np.ndarray[Any, Any]]:
        with connect(server, protocol) as client:
            return [ask(client, images[index]) for _ in range(calls)]

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        together = list(pool.map(storm, range(clients)))

    for expected, answers in zip(alone, together, strict=True):
        for answer in answers:
            np.testing.assert_allclose(answer, expected, atol=1e-5)
    more_rows, more_runs = batches(server, model)
    assert more_rows - rows == clients * calls
    mean = (more_rows - rows) / (more_runs - runs)
    print(f"{protocol}: {clients} clients, mean batch {mean:.1f}")
    assert mean > 4


def batches(server: RunningServer, model: str) -> tuple[float, float]:
    """Rows and runs so far."""
    rows = metric(server, "nv_inference_count", model=model)
    return rows, metric(server, "nv_inference_exec_count", model=model)


@pytest.mark.parametrize("protocol", CLIENTS)
def test_a_failing_model_is_an_internal_error_that_tells_nothing(
    server: RunningServer, protocol: str
) -> None:
    with connect(server, protocol) as client, pytest.raises(InferenceServerException) as failure:
        client.infer("failing", [tensor(protocol, sample("FP32", (1, 4)), "FP32")])
    assert "server's log has the cause" in str(failure.value)
    await_true(lambda: "fails, as configured" in str(server.events("inference failed")))


@pytest.mark.parametrize("protocol", CLIENTS)
def test_a_caller_that_gives_up_is_counted_and_harms_nobody(
    server: RunningServer, protocol: str
) -> None:
    value = sample("FP32", (1, 4))

    def given_up() -> float:
        # Over gRPC the server knows the deadline; the caller's clock and its own race.
        outcomes = {"http": ("cancelled",), "grpc": ("cancelled", "expired")}[protocol]
        return sum(
            metric(server, "slipway_requests_total", model="slow", outcome=outcome)
            for outcome in outcomes
        )

    seen = given_up()
    options = {"network_timeout": 0.1} if protocol == "http" else {}
    with connect(server, protocol, **options) as impatient, connect(server, protocol) as client:
        wishes = {"client_timeout": 0.1} if protocol == "grpc" else {}
        with pytest.raises(Exception, match=r"(?i)time|deadline"):
            impatient.infer("slow", [tensor(protocol, value, "FP32")], **wishes)
        answer = client.infer("slow", [tensor(protocol, value, "FP32")]).as_numpy("y")
    assert np.array_equal(answer, value)
    await_true(lambda: given_up() == seen + 1)
