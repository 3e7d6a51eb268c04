"""Starting, failing to start, and stopping: a real process and its exit code."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http

from tests.support import (
    RunningServer,
    await_true,
    call,
    config,
    metric,
    run_slipway,
    serving,
    write_config,
    write_fake,
    write_model,
)


def ask(server: RunningServer, protocol: str, model: str, value: float) -> float:
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    with module.InferenceServerClient(getattr(server, protocol)) as client:
        tensor = module.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.full((1, 4), value, np.float32))
        return float(client.infer(model, [tensor]).as_numpy("y")[0, 0])


def test_sigterm_with_requests_in_flight_loses_none(tmp_path: Path) -> None:
    # A size that is never reached holds them in the queue.
    wait = "dynamic_batching { preferred_batch_size: 64 max_queue_delay_microseconds: 4000000 }"
    write_fake(tmp_path, "slow", delay_ms=500, extra=wait)
    with (
        serving(tmp_path) as server,
        concurrent.futures.ThreadPoolExecutor(50) as pool,
        closing(http.client.HTTPConnection("127.0.0.1", server.http_port)) as kept,
    ):
        assert ready(kept) == 200
        protocols = ["http", "grpc"] * 25
        answers = [pool.submit(ask, server, p, "slow", i) for i, p in enumerate(protocols)]
        await_true(lambda: metric(server, "nv_inference_pending_request_count") == 50)
        server.process.send_signal(signal.SIGTERM)
        await_true(lambda: bool(server.events("draining")))
        assert ready(kept) == 400
        assert not any(answer.done() for answer in answers)
        assert [answer.result(30) for answer in answers] == list(range(50))
        assert server.process.wait(30) == 0
        assert server.events("stopped")


def ready(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/v2/health/ready")
    response = connection.getresponse()
    response.read()
    return response.status


def test_who_still_waits_when_the_time_is_up_is_told_so(tmp_path: Path) -> None:
    write_fake(tmp_path, "slow", delay_ms=3000, max_batch_size=1)
    with (
        serving(tmp_path, "--exit-timeout-secs", "1") as server,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        body = json.dumps(
            {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
        ).encode()
        path = "/v2/models/slow/infer"
        answers = [pool.submit(call, server.http_port, "POST", path, body) for _ in range(4)]
        await_true(lambda: metric(server, "nv_inference_pending_request_count") == 3)
        server.process.send_signal(signal.SIGTERM)
        for answer in answers:
            status, text = answer.result(30)
            assert (status, b"the server stopped before" in text) == (503, True), text
        # What runs cannot be interrupted, and does not hold the process up.
        assert server.process.wait(30) == 1
        assert not server.events("text")


def test_an_idle_server_stops_at_once_with_code_0(tmp_path: Path) -> None:
    write_model(tmp_path, "double", operation="Add")
    with serving(tmp_path) as server:
        assert ask(server, "grpc", "double", 3) == 6
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0


@pytest.mark.parametrize("port_option", ["--http-port", "--grpc-port", "--metrics-port"])
def test_a_port_in_use_is_one_sentence(tmp_path: Path, port_option: str) -> None:
    write_model(tmp_path, "double")
    others = {"--http-port", "--grpc-port", "--metrics-port"} - {port_option}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_slipway(
            "serve",
            "--model-repository",
            str(tmp_path),
            port_option,
            str(port),
            *(part for other in others for part in (other, "0")),
        )
    assert result.returncode == 1
    assert f"Error: cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


# What makes a model of this name, and what is said of it.
BROKEN: dict[str, tuple[Callable[[Path, str], object], str]] = {
    "syntax": (
        lambda path, name: write_config(path, name, 'backend "x\n'),
        "{name}/config.pbtxt:1: ",
    ),
    "unknown field": (
        lambda path, name: write_config(path, name, config() + "\nbatch_size: 3\n"),
        '{name}/config.pbtxt:8: Message type "inference.ModelConfig" has no field named "batch_',
    ),
    "field not honoured": (
        lambda path, name: write_config(path, name, config(extra="model_operations { }")),
        "{name}/config.pbtxt:6: model_operations is not supported",
    ),
    "no version": (
        lambda path, name: write_config(path, name, config()),
        "{name}: no version directory",
    ),
    "no config": (lambda path, name: (path / name).mkdir(), "{name}/config.pbtxt: no such file"),
    "corrupt graph": (
        lambda path, name: (write_model(path, name) / "1" / "model.onnx").write_bytes(b"no graph"),
        "{name}/1/model.onnx: ONNX Runtime cannot load it",
    ),
    "default priority without levels": (
        lambda path, name: write_config(
            path, name, config(extra="dynamic_batching { default_priority_level: 5 }")
        ),
        "{name}/config.pbtxt:6: dynamic_batching.default_priority_level needs priority_levels",
    ),
    "unknown number of an enum": (
        lambda path, name: write_config(path, name, config(extra="instance_group { kind: 99 }")),
        "{name}/config.pbtxt:6: instance_group[0].kind has the unknown value 99",
    ),
    "wrong size in the output": (
        lambda path, name: write_config(
            path, name, config().replace('"y" data_type: TYPE_FP32 dims: [4]', '"y" dims: [0]')
        ),
        "{name}/config.pbtxt:5: output[0]",
    ),
    "manifest of another kind": (
        lambda path, name: (write_model(path, name) / "1" / "manifest.json").write_text(
            '{"sha256": {"model.onnx": 5}}'
        ),
        "{name}/1/model.onnx: damaged or changed",
    ),
    "settings that are no numbers": (
        lambda path, name: write_fake(path, name, delay_ms="soon"),
        "{name}/config.pbtxt: parameters: could not convert string to float: 'soon'",
    ),
    "wider than the graph": (
        lambda path, name: write_model(path, name, dims="[-1]"),
        "{name}/config.pbtxt: input 'x' is declared with shape [-1,-1]",
    ),
    "shape that disagrees": (
        lambda path, name: write_model(path, name, dims="[5]"),
        "{name}/config.pbtxt: input 'x' is declared with shape [-1,5]",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_stops_the_start(tmp_path: Path, case: str) -> None:
    breaks, problem = BROKEN[case]
    write_model(tmp_path, "good", operation="Add")
    breaks(tmp_path, "bad")
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    stopped = run_slipway("serve", "--model-repository", str(tmp_path), *ports)
    print(stopped.stderr)
    assert stopped.returncode == 1
    assert problem.replace("{name}", "bad") in stopped.stderr
    assert "Traceback" not in stopped.stderr


def test_broken_models_stand_beside_the_good(tmp_path: Path) -> None:
    write_model(tmp_path, "good", operation="Add")
    broken = {f"bad-{number}": BROKEN[case] for number, case in enumerate(BROKEN)}
    for name, (breaks, _) in broken.items():
        breaks(tmp_path, name)

    checked = run_slipway("check", str(tmp_path))
    assert checked.returncode == 1
    assert "ok      good 1" in checked.stdout
    for name, (_, problem) in broken.items():
        assert problem.replace("{name}", name) in checked.stdout

    with serving(tmp_path, "--exit-on-error", "false", "--strict-readiness", "false") as server:
        assert ask(server, "http", "good", 3) == 6
        assert call(server.http_port, "GET", "/v2/health/ready")[0] == 200
        index = json.loads(call(server.http_port, "POST", "/v2/repository/index")[1])
        states = {model["name"]: model["state"] for model in index}
        assert states == {"good": "READY", **dict.fromkeys(broken, "UNAVAILABLE")}
        assert str(tmp_path) not in json.dumps(index)
        for name in broken:
            path = f"/v2/models/{name}/infer"
            status, answer = call(server.http_port, "POST", path, b'{"inputs":[]}')
            assert (status, b"has no available versions" in answer) == (404, True)


def test_strict_readiness_is_the_default(tmp_path: Path) -> None:
    write_model(tmp_path, "good")
    write_config(tmp_path, "bad", "")
    with serving(tmp_path, "--exit-on-error", "false") as server:
        assert call(server.http_port, "GET", "/v2/health/ready")[0] == 400


def test_a_damaged_file_is_found_by_its_checksum(tmp_path: Path) -> None:
    directory = write_model(tmp_path, "good") / "1"
    (directory / "manifest.json").write_text(json.dumps({"sha256": {"model.onnx": "0" * 64}}))
    checked = run_slipway("check", str(tmp_path))
    assert "good/1/model.onnx: damaged or changed since it was published" in checked.stdout


def test_no_repository_is_one_sentence(tmp_path: Path) -> None:
    result = run_slipway("check", str(tmp_path / "nowhere"))
    assert result.returncode == 1
    assert "no such directory" in result.stderr


def test_a_server_that_is_not_asked_anything_does_nothing(tmp_path: Path) -> None:
    write_model(tmp_path, "batches", operation="Add")
    write_model(tmp_path, "alone", operation="Add", extra="")
    with serving(tmp_path) as server:
        for model in ("batches", "alone"):
            assert ask(server, "http", model, 1.0) == 2.0
        process = psutil.Process(server.process.pid)
        # Some of it is for building what the first calls did not need.
        await_true(lambda: share_of_a_core(process) < 0.1)


def share_of_a_core(process: psutil.Process) -> float:
    """Over half a second."""
    before = sum(process.cpu_times()[:2])
    time.sleep(0.5)
    return (sum(process.cpu_times()[:2]) - before) / 0.5


def test_more_callers_than_a_process_may_have_files_by_default(tmp_path: Path) -> None:
    write_model(tmp_path, "double", operation="Add")
    few = (
        "import resource\n"
        "most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))\n"
    )
    with serving(tmp_path, before=few) as server, ExitStack() as stack:
        address = ("127.0.0.1", server.http_port)
        callers = [
            stack.enter_context(closing(socket.create_connection(address, 10))) for _ in range(100)
        ]
        for caller in callers:
            caller.sendall(b"GET /v2/health/ready HTTP/1.1\r\nhost: a\r\n\r\n")
        for caller in callers:
            assert caller.recv(1000).startswith(b"HTTP/1.1 200 ")
