"""Infer over HTTP beyond plain tensors: every way in, every way out, and what is refused."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from starlette.exceptions import HTTPException
from starlette.types import Message
from tritonclient.utils import InferenceServerException, shared_memory

from serving.fronts import asgi
from tests.support import (
    EXTRA_HEADERS,
    RunningServer,
    await_true,
    call,
    metric,
    sample,
    serving,
    write_fake,
    write_model,
)

ROW = [0.5, -1.0, 3.25, 2.0]
DOUBLED = [1.0, -2.0, 6.5, 4.0]

pytestmark = pytest.mark.usefixtures("both_ways")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("http-infer")
    directory = write_model(repository, "double", operation="Add")
    text = (directory / "config.pbtxt").read_text()
    (directory / "config.pbtxt").write_text(
        text.replace('name: "y"', 'name: "y" label_filename: "labels.txt"')
    )
    (directory / "labels.txt").write_text("cress\nleek\npickle\n")
    write_model(repository, "wide", datatype="BYTES", shape=("batch", 1), dims="[1]")
    write_model(
        repository, "flat", datatype="INT32", shape=("n",), dims="[-1]", max_batch_size=0, extra=""
    )
    write_fake(repository, "broken", fail_every=1)
    decoupled = "model_transaction_policy { decoupled: true }"
    write_fake(repository, "repeat", extra=decoupled, max_batch_size=0, dims="[-1]")
    with serving(repository, "--allow-client-shm", "true") as server:
        yield server


def document(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW}
    return {"inputs": [tensor], **changes}


def infer(
    server: RunningServer,
    body: object,
    headers: dict[str, str] | None = None,
    model: str = "double",
) -> tuple[int, http.client.HTTPMessage, bytes]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(server, "POST", f"/v2/models/{model}/infer", raw, headers)


def exchange(
    server: RunningServer,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)) as wire:
        wire.request(method, path, body, {**EXTRA_HEADERS, **(headers or {})})
        response = wire.getresponse()
        return response.status, response.headers, response.read()


def test_a_raw_request_is_the_only_inputs_data(here: RunningServer) -> None:
    body = np.array(ROW, np.float32).tobytes()
    status, headers, answer = infer(here, body, {"Inference-Header-Content-Length": "0"})
    assert status == 200, answer
    length = int(headers["inference-header-content-length"])
    described = json.loads(answer[:length])
    assert described["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
    ]
    assert np.frombuffer(answer[length:], np.float32).tolist() == DOUBLED


def test_a_raw_request_of_text_and_of_a_dynamic_dimension(here: RunningServer) -> None:
    raw = {"inference-header-content-length": "0"}
    status, headers, answer = infer(here, b"so be it", raw, "wide")
    length = int(headers["inference-header-content-length"])
    assert (status, answer[length:]) == (200, b"\x08\0\0\0so be it")
    numbers = np.arange(7, dtype=np.int32)
    status, headers, answer = infer(here, numbers.tobytes(), raw, "flat")
    length = int(headers["inference-header-content-length"])
    assert (status, answer[length:]) == (200, numbers.tobytes())
    status, _, answer = infer(here, b"12345", raw)
    assert status == 400
    assert "takes 16 bytes, got 5" in json.loads(answer)["error"]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_both_ways(here: RunningServer, coding: str) -> None:
    with tritonclient.http.InferenceServerClient(here.http) as client:
        tensor = tritonclient.http.InferInput("x", [64, 4], "FP32")
        value = sample("FP32", (64, 4))
        tensor.set_data_from_numpy(value)
        result = client.infer(
            "double",
            [tensor],
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
    assert np.array_equal(result.as_numpy("y"), value * 2)
    plain = json.dumps(document()).encode()
    body = gzip.compress(plain) if coding == "gzip" else zlib.compress(plain)
    unpack: Callable[[bytes], bytes] = gzip.decompress if coding == "gzip" else zlib.decompress
    headers = {"content-encoding": coding, "ACCEPT-ENCODING": f"br, {coding};q=0.5"}
    status, got, answer = infer(here, body, headers)
    assert (status, got["content-encoding"]) == (200, coding)
    assert json.loads(unpack(answer))["outputs"][0]["data"] == DOUBLED


@pytest.mark.parametrize("count", [3, 30_000])
def test_an_answer_is_packed_for_who_takes_it_so(here: RunningServer, count: int) -> None:
    values = list(range(count))
    tensor = {"name": "x", "datatype": "INT32", "shape": [count], "data": values}
    body = json.dumps({"inputs": [tensor], "id": "a"}).encode()
    accepted = {"Accept-Encoding": "gzip, deflate, br"}
    for _ in range(2):
        status, headers, answer = infer(here, body, accepted, model="flat")
        assert (status, headers["content-encoding"]) == (200, "gzip")
        assert headers["content-length"] == str(len(answer))
        found = json.loads(gzip.decompress(answer))
        assert (found["id"], found["outputs"][0]["data"]) == ("a", values)
    status, headers, answer = infer(here, body.replace(b"INT32", b"INT3"), accepted, model="flat")
    assert (status, headers["content-encoding"]) == (400, None)
    assert "INT3" in json.loads(answer)["error"]


def test_an_answer_that_cannot_be_packed_is_an_error(tmp_path: Path) -> None:
    write_model(
        tmp_path, "flat", datatype="INT32", shape=("n",), dims="[-1]", max_batch_size=0, extra=""
    )
    fails = (
        "from serving.fronts import v2_http\n"
        "def fail(*_): raise MemoryError\n"
        "v2_http.compress = fail\n"
    )
    with serving(tmp_path, before=fails) as server:
        for count in (3, 30_000):
            tensor = {"name": "x", "datatype": "INT32", "shape": [count], "data": [12345] * count}
            document = {"inputs": [tensor]}
            accepted = {"Accept-Encoding": "gzip"}
            status, headers, answer = infer(server, document, accepted, model="flat")
            assert (status, headers["content-encoding"]) == (500, None)
            assert "error" in json.loads(answer)


def test_what_cannot_be_unpacked(here: RunningServer) -> None:
    body = json.dumps(document()).encode()
    status, headers, answer = infer(here, body, {"Content-Encoding": "br"})
    assert (status, headers["accept-encoding"]) == (501, "gzip, deflate"), answer
    assert infer(here, body, {"Content-Encoding": "gzip"})[0] == 400
    assert infer(here, gzip.compress(body)[:-9], {"Content-Encoding": "gzip"})[0] == 400
    bomb = gzip.compress(b" " * (65 << 20))
    status, _, answer = infer(here, bomb, {"Content-Encoding": "gzip"})
    assert (status, b"over the limit" in answer) == (413, True)
    assert infer(here, body, {"Accept-Encoding": "identity"})[1]["content-encoding"] is None


def test_classification(here: RunningServer) -> None:
    wish = {"name": "y", "parameters": {"classification": 2}}
    status, _, answer = infer(here, document(outputs=[wish]))
    assert status == 200, answer
    assert json.loads(answer)["outputs"] == [
        {
            "name": "y",
            "datatype": "BYTES",
            "shape": [1, 2],
            "data": ["6.500000:2:pickle", "4.000000:3"],
        }
    ]
    with tritonclient.http.InferenceServerClient(here.http) as client:
        tensor = tritonclient.http.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.array([ROW], np.float32))
        wanted = tritonclient.http.InferRequestedOutput("y", class_count=3)
        result = client.infer("double", [tensor], outputs=[wanted])
    assert result.as_numpy("y").tolist() == [
        [b"6.500000:2:pickle", b"4.000000:3", b"1.000000:0:cress"]
    ]


def test_no_classes_of_text_and_nothing_is_computed_for_it(here: RunningServer) -> None:
    tensor = {"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}
    wish = {"name": "y", "parameters": {"classification": 1}}
    before = metric(here, "nv_inference_exec_count", model="wide")
    status, _, answer = infer(here, {"inputs": [tensor], "outputs": [wish]}, model="wide")
    assert (status, b"needs numbers" in answer) == (400, True)
    assert metric(here, "nv_inference_exec_count", model="wide") == before


def test_shared_memory_in_and_out(here: RunningServer) -> None:
    value = sample("FP32", (3, 4))
    source = shared_memory.create_shared_memory_region("source", "/slip_test_in", value.nbytes)
    sink = shared_memory.create_shared_memory_region("sink", "/slip_test_out", value.nbytes)
    try:
        shared_memory.set_shared_memory_region(source, [value])
        with tritonclient.http.InferenceServerClient(here.http) as client:
            client.register_system_shared_memory("source", "/slip_test_in", value.nbytes)
            client.register_system_shared_memory("sink", "/slip_test_out", value.nbytes)
            status = client.get_system_shared_memory_status()
            assert [(region["name"], region["byte_size"]) for region in status] == [
                ("sink", value.nbytes),
                ("source", value.nbytes),
            ]
            tensor = tritonclient.http.InferInput("x", [3, 4], "FP32")
            tensor.set_shared_memory("source", value.nbytes)
            wanted = tritonclient.http.InferRequestedOutput("y")
            wanted.set_shared_memory("sink", value.nbytes)
            result = client.infer("double", [tensor], outputs=[wanted])
            assert "data" not in result.get_output("y")
            got = shared_memory.get_contents_as_numpy(sink, np.float32, [3, 4])
            assert np.array_equal(got, value * 2)
            with pytest.raises(InferenceServerException, match="already in manager"):
                client.register_system_shared_memory("sink", "/slip_test_out", 1)
            client.unregister_system_shared_memory("sink")
            before = metric(here, "nv_inference_exec_count", model="double")
            with pytest.raises(InferenceServerException, match="Unable to find shared memory"):
                client.infer("double", [tensor], outputs=[wanted])
            assert metric(here, "nv_inference_exec_count", model="double") == before
            client.unregister_system_shared_memory()
            assert client.get_system_shared_memory_status() == []
    finally:
        shared_memory.destroy_shared_memory_region(source)
        shared_memory.destroy_shared_memory_region(sink)


def test_parameters_of_every_kind_are_taken(here: RunningServer) -> None:
    with tritonclient.http.InferenceServerClient(here.http) as client:
        tensor = tritonclient.http.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.array([ROW], np.float32))
        result = client.infer(
            "double",
            [tensor],
            request_id="seven",
            priority=1,
            timeout=5_000_000,
            sequence_id="s",
            sequence_start=True,
            parameters={"text": "a", "number": 1, "flag": True, "fraction": 0.5},
        )
    assert result.get_response()["id"] == "seven"
    status, _, answer = infer(here, document(parameters={"list": []}))
    assert (status, b"has invalid type" in answer) == (400, True)
    status, _, answer = infer(here, document(parameters={"triton_x": 1}))
    assert (status, b"reserved" in answer) == (400, True)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (method, path)
        for path, method in {
            "/v2": "POST",
            "/v2/health/live": "POST",
            "/v2/health/ready": "PUT",
            "/v2/models/stats": "POST",
            "/v2/models/double": "POST",
            "/v2/models/double/infer": "GET",
            "/v2/models/double/versions/1/infer": "DELETE",
            "/v2/models/double/generate": "GET",
            "/v2/models/double/generate_stream": "GET",
            "/v2/models/double/ready": "POST",
            "/v2/models/double/config": "POST",
            "/v2/models/double/versions/1/stats": "POST",
            "/v2/models/double/trace/setting": "PUT",
            "/v2/trace/setting": "DELETE",
            "/v2/logging": "PUT",
            "/v2/repository/index": "GET",
            "/v2/repository/models/double/load": "GET",
            "/v2/repository/models/double/unload": "GET",
            "/v2/systemsharedmemory/status": "POST",
            "/v2/systemsharedmemory/unregister": "GET",
            "/v2/cudasharedmemory/region/a/register": "GET",
        }.items()
    ]
    + [("HEAD", "/v2"), ("HEAD", "/v2/models/double/infer"), ("HEAD", "/v2/health/ready")],
)
def test_a_wrong_method_is_405(here: RunningServer, method: str, path: str) -> None:
    status, headers, answer = exchange(here, method, path)
    expected = b"" if method == "HEAD" else b'{"error":"Method Not Allowed"}'
    assert (status, answer) == (405, expected)
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2/health/live/",
        "/v2/models",
        "/v2/models/",
        "/v2/models/double/",
        "/v2/models/double/nothing",
        "/v2/models/double/versions/one",
        "/v2/models/double/versions/%D9%A1/infer",
        "/v2/models/double/versions/1/trace/setting",
        "/v2/repository/models",
        "/v2/systemsharedmemory",
        "/v3",
    ],
)
def test_an_unknown_path_is_404(here: RunningServer, path: str) -> None:
    for method in ("GET", "POST"):
        status, headers, answer = exchange(here, method, path)
        assert (status, answer) == (404, b'{"error":"Not Found"}')
        assert headers["content-type"] == "application/json"


def test_queries_are_ignored(here: RunningServer) -> None:
    assert exchange(here, "GET", "/v2/models/double?version=7&name=x")[0] == 200
    assert exchange(here, "GET", "/v2/models/double/ready?version=7")[0] == 200
    body = json.dumps(document()).encode()
    assert exchange(here, "POST", "/v2/models/double/infer?version=7", body)[0] == 200


def test_bodies_that_cannot_be_read_are_counted(here: RunningServer) -> None:
    before = metric(here, "slipway_requests_total", model="double", outcome="invalid")
    infer(here, b"no JSON")
    infer(here, document(inputs=[]))
    infer(here, document(outputs=[{"name": "y"}, {"name": "y"}]))
    after = metric(here, "slipway_requests_total", model="double", outcome="invalid")
    assert after == before + 3
    assert infer(here, b"no JSON", model="nobody")[0] == 404


def test_a_failure_tells_nothing_of_its_cause(here: RunningServer) -> None:
    status, _, answer = infer(here, document(), model="broken")
    assert (status, b"configured" in answer) == (500, False)


def test_a_decoupled_model_is_not_for_infer(here: RunningServer) -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    status, _, answer = infer(here, {"inputs": [tensor]}, model="repeat")
    assert (status, b"decoupled" in answer) == (501, True)


def test_chunks_and_the_wait_for_a_go_ahead(here: RunningServer) -> None:
    body = json.dumps(document()).encode()
    with socket.create_connection(("127.0.0.1", here.http_port), timeout=20) as wire:
        wire.sendall(
            b"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert wire.recv(100).startswith(b"HTTP/1.1 100")
        for at in range(0, len(body), 10):
            piece = body[at : at + 10]
            wire.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        wire.sendall(b"0\r\n\r\n")
        assert wire.recv(15) == b"HTTP/1.1 200 OK"


def test_who_leaves_while_sending_is_forgotten(here: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", here.http_port)) as wire:
        wire.sendall(
            b"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
        )
        time.sleep(0.1)
    await_true(lambda: call(here.http_port, "GET", "/v2/health/live")[0] == 200)


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "SILENCE_S", 0.1)
    messages = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def silent() -> Message:
        if not messages:
            await asyncio.sleep(10)
        return messages.pop()

    with pytest.raises(HTTPException) as refusal:
        await asgi.read_body(silent, 1000)
    assert refusal.value.status_code == 408


async def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "SILENCE_S", 0.1)

    async def trickling() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    started = time.monotonic()
    with pytest.raises(HTTPException) as refusal:
        await asgi.read_body(trickling, 1 << 20)
    assert refusal.value.status_code == 408
    assert time.monotonic() - started < 2
