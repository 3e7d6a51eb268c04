"""Small real models and real servers for the tests."""

from __future__ import annotations

import http.client
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from prometheus_client.parser import text_string_to_metric_families

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def write_config(repository: Path, name: str, text: str) -> Path:
    directory = repository / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.pbtxt").write_text(text)
    return directory


def config(
    *,
    backend: str = "onnxruntime",
    datatype: str = "FP32",
    dims: str = "[4]",
    max_batch_size: int = 64,
    extra: str = "dynamic_batching { }",
) -> str:
    """The configuration of a model with one input `x` and one output `y` of the same kind."""
    kind = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    return f"""
backend: "{backend}"
max_batch_size: {max_batch_size}
input [ {{ name: "x" data_type: {kind} dims: {dims} }} ]
output [ {{ name: "y" data_type: {kind} dims: {dims} }} ]
{extra}
"""


def write_model(
    repository: Path,
    name: str,
    *,
    operation: str = "Identity",
    datatype: str = "FP32",
    shape: tuple[int | str, ...] = ("batch", 4),
    version: int = 1,
    **settings: Any,
) -> Path:
    """A one-node ONNX model, y = operation(x) or y = x + x, with its configuration."""
    inputs = ["x", "x"] if operation == "Add" else ["x"]
    graph = helper.make_graph(
        [helper.make_node(operation, inputs, ["y"])],
        name,
        [helper.make_tensor_value_info("x", ONNX_TYPES[datatype], shape)],
        [helper.make_tensor_value_info("y", ONNX_TYPES[datatype], shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    directory = write_config(repository, name, config(datatype=datatype, **settings))
    (directory / str(version)).mkdir(exist_ok=True)
    onnx.save(model, directory / str(version) / "model.onnx")
    return directory


def write_fake(
    repository: Path, name: str, *, delay_ms: int | str = 0, fail_every: int = 0, **settings: Any
) -> Path:
    """A model of the fake engine, which echoes."""
    extra = settings.pop("extra", "dynamic_batching { }")
    for key, value in {"delay_ms": delay_ms, "fail_every": fail_every}.items():
        extra += f'\nparameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
    directory = write_config(repository, name, config(backend="fake", extra=extra, **settings))
    (directory / "1").mkdir(exist_ok=True)
    return directory


@dataclass
class RunningServer:
    process: subprocess.Popen[str]
    log: list[dict[str, Any]] = field(default_factory=list)
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line.get("event") == name]


# The same command without the packages that serving must do without.
WITHOUT_TRAINING = (
    "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'sklearn', 'training']));"
    "from serving.cli import main; main()"
)


@contextmanager
def serving(repository: Path, *options: str, before: str = "") -> Iterator[RunningServer]:
    """`slipway serve` as a process of its own, on free ports; ended with SIGTERM.

    `before` is Python that the process does first.
    """
    command = [sys.executable, "-c", before + WITHOUT_TRAINING, "serve"]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(
        [*command, "--model-repository", str(repository), *ports, *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    server = RunningServer(process)
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, lines, server.log), daemon=True)
    reader.start()
    try:
        _await_ports(server, lines)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            reader.join()
            assert process.stderr is not None
            process.stderr.close()


def _read(
    process: subprocess.Popen[str], lines: queue.Queue[str | None], log: list[dict[str, Any]]
) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        try:
            log.append(json.loads(line))
        except ValueError:
            log.append({"event": "text", "text": line.rstrip()})
        lines.put(line)
    lines.put(None)


def _await_ports(server: RunningServer, lines: queue.Queue[str | None]) -> None:
    while lines.get(timeout=60) is not None:
        for event in server.events("serving"):
            server.http_port = event["http_port"]
            server.grpc_port = event["grpc_port"]
            server.metrics_port = event["metrics_port"]
            return
    raise RuntimeError(f"the server did not start: {server.log}")


WAYS = {"direct": "", "app": "100-continue"}
"""By which a prediction is answered: by the connection itself, and by the application behind it.
And what a caller has to expect for that."""

EXTRA_HEADERS: dict[str, str] = {}
"""That every `call` has; see the fixture `both_ways`."""


def call(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of one HTTP call on a connection of its own."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body, {**EXTRA_HEADERS, **(headers or {})})
        response = connection.getresponse()
        return response.status, response.read()


def metric(server: RunningServer, name: str, **labels: str) -> float:
    """One sample, as Prometheus reads it from the metrics port."""
    _, text = call(server.metrics_port, "GET", "/metrics")
    values = [
        sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(values)


def free_port() -> int:
    """One that nobody listens on, for a process that cannot say which it has taken."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def await_true(condition: Callable[[], bool], within_s: float = 20) -> None:
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.005)


def run_slipway(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """The `slipway` command, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "serving", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def sample(datatype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    """A tensor of varied values, extremes included."""
    random = np.random.default_rng(seed)
    if datatype == "BYTES":
        words = [b"", b"slipway", "größe".encode(), b"a\nb"]
        values = np.empty(int(np.prod(shape)), dtype=object)
        values[:] = [words[i % len(words)] for i in range(values.size)]
        return values.reshape(shape)
    dtype = np.dtype(
        {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}.get(
            datatype, datatype.lower()
        )
    )
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if dtype.kind == "f":
        return random.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    values = random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    values.flat[0], values.flat[-1] = limits.min, limits.max
    return values
