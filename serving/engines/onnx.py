"""In-process ONNX Runtime."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort

from serving.config import InstanceKind, ModelConfig
from serving.errors import InvalidRequest, ModelLoadError
from serving.types import DYNAMIC, Array, Tensors, TensorSpec

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"

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
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxEngine:
    """One session, shared by `instances` threads: they share the weights, and each runs a batch."""

    def __init__(self, path: Path, *, instances: int = 1, kind: InstanceKind = InstanceKind.AUTO):
        self._session = _open_session(path, kind)
        self.inputs = [_spec(node, path) for node in self._session.get_inputs()]
        self.outputs = [_spec(node, path) for node in self._session.get_outputs()]
        self._output_names = [spec.name for spec in self.outputs]
        self._has_strings = any(spec.datatype == "BYTES" for spec in (*self.inputs, *self.outputs))
        self._threads = ThreadPoolExecutor(instances, thread_name_prefix="onnx")

    async def infer(self, inputs: Tensors) -> Tensors:
        loop = asyncio.get_running_loop()
        if self._has_strings:
            inputs = {name: _decoded(name, tensor) for name, tensor in inputs.items()}
        values = await loop.run_in_executor(
            self._threads, self._session.run, self._output_names, inputs
        )
        if self._has_strings:
            values = [_encoded(tensor) for tensor in values]
        return dict(zip(self._output_names, values, strict=True))

    async def close(self) -> None:
        self._threads.shutdown()


def load(config: ModelConfig, directory: Path) -> OnnxEngine:
    path = directory / config.model_filename
    if not path.is_file():
        raise ModelLoadError(f"{path}: no such file, and the model's graph is expected there")
    return OnnxEngine(path, instances=config.instance_count, kind=config.instance_kind)


def _open_session(path: Path, kind: InstanceKind) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # Threads that spin between runs take the core from the fronts: 5 to 10 % of throughput.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(path, options, providers=_providers(kind))
    except Exception as error:  # ONNX Runtime's errors share no narrower base
        raise ModelLoadError(f"{path}: ONNX Runtime cannot load it: {error}") from error
    # It falls back to the CPU when CUDA or the GPU cannot be used.
    if kind is InstanceKind.GPU and session.get_providers()[0] != _CUDA:
        raise ModelLoadError(
            f"{path}: config.pbtxt asks for KIND_GPU, and ONNX Runtime finds no usable CUDA here"
        )
    return session


def _providers(kind: InstanceKind) -> list[str]:
    if kind is InstanceKind.CPU or _CUDA not in ort.get_available_providers():
        return [_CPU]
    # CUDA's libraries may have come as Python packages, where no loader looks for them.
    ort.preload_dlls()
    return [_CUDA, _CPU]


def _decoded(name: str, tensor: Array) -> Array:
    """ONNX strings are text: ONNX Runtime would take the repr of `bytes`."""
    if tensor.dtype != object:
        return tensor
    text = np.empty(tensor.shape, dtype=object)
    try:
        text.flat[:] = [element.decode() for element in tensor.flat]
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"input {name!r} has an element that is not UTF-8, and this model takes text"
        ) from error
    return text


def _encoded(tensor: Array) -> Array:
    if tensor.dtype != object:
        return tensor
    raw = np.empty(tensor.shape, dtype=object)
    raw.flat[:] = [element.encode() for element in tensor.flat]
    return raw


def _spec(node: ort.NodeArg, path: Path) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise ModelLoadError(f"{path}: tensor {node.name!r} has the unsupported type {node.type}")
    shape = tuple(size if isinstance(size, int) else DYNAMIC for size in node.shape)
    return TensorSpec(node.name, datatype, shape)
