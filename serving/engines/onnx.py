"""In-process ONNX Runtime."""

from __future__ import annotations

import ctypes
import queue
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from serving.config import ModelConfig
from serving.engines.onnx_session import Session, SessionSettings, open_sessions
from serving.engines.pace import Pace, is_fixed, may_repeat
from serving.engines.workers import Workers
from serving.errors import InvalidRequest, ModelLoadError
from serving.types import DYNAMIC, NUMPY_TYPES, Array, Tensors, TensorSpec

# ONNX Runtime's names for element types -> protocol datatypes.
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_BFLOAT16 = 16  # TensorProto.BFLOAT16


class OnnxEngine:
    """One session for each device; each of the instances on it runs a batch in its own thread.

    `sessions` has one entry for each instance; `batches` says that the first dimension is that of
    rows. Raises `ModelLoadError` for a graph with tensors
    that cannot be served.
    """

    def __init__(self, path: Path, sessions: Sequence[Session], *, batches: bool = False):
        graph = sessions[0].session
        self.inputs: Sequence[TensorSpec] = [
            *(tensor_spec(node, path) for node in graph.get_inputs()),
            *(
                replace(tensor_spec(node, path), optional=True)
                for node in graph.get_overridable_initializers()
            ),
        ]
        self.outputs: Sequence[TensorSpec] = [
            tensor_spec(node, path) for node in graph.get_outputs()
        ]
        self._output_names = [spec.name for spec in self.outputs]
        self._converted = {s.name for s in self.inputs if s.datatype in ("BYTES", "BF16")}
        self._returns_text = any(spec.datatype == "BYTES" for spec in self.outputs)
        self._returns_bfloat16 = any(spec.datatype == "BF16" for spec in self.outputs)
        if self._returns_bfloat16 and any(spec.datatype == "BYTES" for spec in self.inputs):
            raise ModelLoadError(
                f"{path}: the graph takes strings and returns BF16,"
                " and ONNX Runtime's Python interface cannot do both"
            )
        fixed = is_fixed(self.inputs, batches=batches) and not may_repeat(path)
        self._pace = Pace(is_fixed=fixed)
        self._free: queue.SimpleQueue[Session] = queue.SimpleQueue()
        for session in sessions:
            self._free.put(session)
        self._workers = Workers(len(sessions), "onnx")

    def infer_at_once(self, inputs: Tensors) -> Tensors | None:
        if self._pace.is_quick(inputs) and not self._free.empty():
            return self._run(inputs)
        return None

    async def infer(self, inputs: Tensors) -> Tensors:
        return await self._workers.run(self._run, inputs)

    async def close(self) -> None:
        self._workers.close()
        # Whoever still holds the engine shall not hold the weights.
        while not self._free.empty():
            self._free.get()

    def _run(self, inputs: Tensors) -> Tensors:
        feed: Mapping[str, Any] = inputs
        if self._converted:
            feed = {name: _to_onnx(name, tensor) for name, tensor in inputs.items()}
        instance = self._free.get()
        clock = self._pace.clock
        began = clock()
        try:
            values = instance.run(self._output_names, feed, as_ort_values=self._returns_bfloat16)
        finally:
            self._free.put(instance)
            self._pace.ran(inputs, clock() - began, clock)
        if self._returns_bfloat16 or self._returns_text:
            values = [_from_onnx(value) for value in values]
        return dict(zip(self._output_names, values, strict=True))


def load(config: ModelConfig, directory: Path) -> OnnxEngine:
    """Open the graph of one version on every device that the config's instance groups name."""
    settings = SessionSettings(
        f"{directory.parent}/config.pbtxt",
        config.parameters,
        config.graph_level,
        config.accelerators,
    )
    if config.decoupled:
        raise settings.error("model_transaction_policy.decoupled", "needs another backend")
    path = directory / config.model_filename
    if path.is_dir():
        path /= "model.onnx"
    if not path.is_file():
        raise ModelLoadError(f"{path}: no such file, and the model's graph is expected there")
    sessions = open_sessions(path, config, settings)
    return OnnxEngine(path, sessions, batches=config.max_batch_size > 0)


def open_graph(path: Path) -> OnnxEngine:
    """Open a graph by itself, on the CPU, as it is served where no config says otherwise."""
    return OnnxEngine(path, [SessionSettings(str(path)).open(path, None)])


def _to_onnx(name: str, tensor: Array) -> Any:
    """What ONNX Runtime takes: text for BYTES, an `OrtValue` for BF16, arrays for all others."""
    if tensor.dtype == object:
        # It would take the repr of `bytes`.
        try:
            text = (element.decode() for element in tensor.flat)
            return np.fromiter(text, object, tensor.size).reshape(tensor.shape)
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"input {name!r} has an element that is not UTF-8, and this model takes text"
            ) from error
    if tensor.dtype == NUMPY_TYPES["BF16"]:
        # It reads the buffer without a look at the strides.
        tensor = np.asarray(tensor, order="C")
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(tensor, _BFLOAT16)
    return tensor


def _from_onnx(value: Any) -> Array:
    if isinstance(value, ort.OrtValue):
        if value.element_type() == _BFLOAT16:
            return _bfloat16(value)
        value = value.numpy()
    tensor: Array = value
    if tensor.dtype == object:
        raw = (element.encode() for element in tensor.flat)
        return np.fromiter(raw, object, tensor.size).reshape(tensor.shape)
    return tensor


def _bfloat16(value: ort.OrtValue) -> Array:
    """A copy: NumPy has no such type of its own, and ONNX Runtime hands out its address only."""
    tensor: Array = np.empty(value.shape(), NUMPY_TYPES["BF16"])
    ctypes.memmove(tensor.ctypes.data, value.data_ptr(), tensor.nbytes)
    return tensor


def tensor_spec(node: ort.NodeArg, path: Path) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise ModelLoadError(
            f"{path}: {node.name!r} has the type {node.type}, and only tensors of the protocol's"
            " datatypes can be served"
        )
    shape = tuple(size if isinstance(size, int) else DYNAMIC for size in node.shape)
    return TensorSpec(node.name, datatype, shape)
