"""The networks of wire_speed.py, what they are asked, and how fast they are with nothing around."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bare_session import BareSession, Rows
from onnx import helper, numpy_helper

BATCHES = (1, 2, 4, 8, 16, 32)
MAX_BATCH = max(BATCHES)
EXAMPLES = 16
_WARMUP_S = 0.3
_TURNS = 3


@dataclass(frozen=True)
class Network:
    name: str
    about: str
    shape: tuple[int, ...]
    """Of an input, without the batch."""
    classes: int


NETWORKS: Mapping[str, Network] = {
    "small": Network("small", "16 → 32 → 4, where only the server's own cost counts", (16,), 4),
    "residual": Network("residual", "3×64×64, three residual blocks", (3, 64, 64), 10),
}


@dataclass(frozen=True)
class Rate:
    rows_per_s: float
    cores: float


def write(network: Network, path: Path, seed: int) -> None:
    """The ONNX file, with weights of He's initialisation drawn from `seed`."""
    layers = _Layers(np.random.default_rng(seed))
    if network.name == "small":
        hidden = layers.relu(layers.dense("x", 16, 32))
        layers.dense(hidden, 32, network.classes, "y")
    else:
        # As in a ResNet: a wide first convolution, then blocks that halve the picture.
        image = layers.relu(layers.convolve("x", 3, 32, 7, 2))
        for channels, wider, stride in ((32, 32, 1), (32, 64, 2), (64, 128, 2)):
            image = layers.block(image, channels, wider, stride)
        layers.dense(layers.pooled(image), 128, network.classes, "y")
    graph = helper.make_graph(
        layers.nodes,
        network.name,
        [_tensor("x", network.shape)],
        [_tensor("y", (network.classes,))],
        layers.weights,
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def examples(network: Network, seed: int) -> Rows:
    """Inputs [EXAMPLES, ...], of four decimals, so that JSON tells them in few characters."""
    drawn = np.random.default_rng(seed).standard_normal((EXAMPLES, *network.shape))
    return drawn.round(4).astype(np.float32)


def answers(graph: Path, threads: int, inputs: Rows) -> Rows:
    """Of each input alone."""
    session = BareSession(graph, threads)
    return np.concatenate([session.run(row[np.newaxis]) for row in inputs])


def search(graph: Path, threads: int, inputs: Rows, seconds: float) -> dict[int, Rate]:
    """The bare loop's best rate by batch size, each of which has its turn three times: the machine
    may be busy with something else during one."""
    rates: dict[int, Rate] = {}
    for batch in BATCHES * _TURNS:
        rate = measure(graph, threads, inputs, batch, seconds)
        rates[batch] = max(rate, rates.get(batch, rate), key=lambda each: each.rows_per_s)
    return rates


def measure(graph: Path, threads: int, inputs: Rows, batch: int, seconds: float) -> Rate:
    session = BareSession(graph, threads)
    rows = np.resize(inputs, (batch, *inputs.shape[1:]))
    _run(session, rows, _WARMUP_S)
    started, cpu_s = time.perf_counter(), time.process_time()
    runs = _run(session, rows, seconds)
    elapsed = time.perf_counter() - started
    return Rate(batch * runs / elapsed, (time.process_time() - cpu_s) / elapsed)


def _run(session: BareSession, rows: Rows, seconds: float) -> int:
    runs, deadline = 0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        session.run(rows)
        runs += 1
    return runs


def _tensor(name: str, shape: Sequence[int]) -> Any:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape])


class _Layers:
    """A graph that grows. Each layer takes the name of its input and returns that of its output."""

    def __init__(self, random: np.random.Generator):
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._random = random

    def dense(self, given: str, inputs: int, outputs: int, name: str = "") -> str:
        weights = self._weights(inputs, (inputs, outputs))
        return self._node("Gemm", [given, weights, self._zeros(outputs)], name)

    def convolve(self, given: str, inputs: int, outputs: int, size: int, stride: int) -> str:
        weights = self._weights(inputs * size * size, (outputs, inputs, size, size))
        operands = [given, weights, self._zeros(outputs)]
        return self._node("Conv", operands, strides=[stride] * 2, pads=[size // 2] * 4)

    def relu(self, given: str) -> str:
        return self._node("Relu", [given])

    def block(self, given: str, inputs: int, outputs: int, stride: int) -> str:
        inner = self.relu(self.convolve(given, inputs, outputs, 3, stride))
        inner = self.convolve(inner, outputs, outputs, 3, 1)
        if stride > 1:
            given = self.convolve(given, inputs, outputs, 1, stride)
        return self.relu(self._node("Add", [inner, given]))

    def pooled(self, given: str) -> str:
        return self._node("Flatten", [self._node("GlobalAveragePool", [given])])

    def _node(self, kind: str, inputs: list[str], name: str = "", **settings: Any) -> str:
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **settings))
        return output

    def _weights(self, inputs: int, shape: tuple[int, ...]) -> str:
        return self._constant(self._random.standard_normal(shape) * np.sqrt(2 / inputs))

    def _zeros(self, size: int) -> str:
        return self._constant(np.zeros(size))

    def _constant(self, values: Any) -> str:
        name = f"weights_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name
