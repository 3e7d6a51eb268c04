"""ONNX Runtime for steppers: on the caller's thread, and where it pays in the caller's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import onnxruntime as ort

from serving.config import ModelConfig
from serving.engines.onnx import tensor_spec
from serving.engines.onnx_session import SessionSettings, open_sessions
from serving.types import Array, Tensors, TensorSpec


class OnnxGraph:
    """One graph. See `Graph`."""

    def __init__(self, path: Path, session: ort.InferenceSession):
        self._session = session
        self.inputs: Sequence[TensorSpec] = [tensor_spec(n, path) for n in session.get_inputs()]
        self.outputs: Sequence[TensorSpec] = [tensor_spec(n, path) for n in session.get_outputs()]
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, inputs: Tensors) -> Tensors:
        values = self._session.run(self._output_names, inputs)
        return dict(zip(self._output_names, values, strict=True))

    def bind(self, arrays: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        binding = self._session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, _over(array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, _over(array))
        # Held by the callable, for ONNX Runtime does not own what it writes to.
        return partial(_run, self._session, binding, (arrays, outputs))


def open_graph(path: Path, config: ModelConfig) -> OnnxGraph:
    """Open a graph as its model's config says, by default to run on its caller's thread alone.

    Raises `ModelLoadError`.
    """
    where = f"{path.parent.parent}/config.pbtxt"
    parameters = {"intra_op_thread_count": "1", **config.parameters}
    settings = SessionSettings(where, parameters, config.graph_level, config.accelerators)
    return OnnxGraph(path, open_sessions(path, config, settings)[0].session)


def _over(array: Array) -> ort.OrtValue:
    """On the CPU this is a view of the array's own memory."""
    assert array.flags.c_contiguous, "only whole memory can be bound. This is a bug."
    return ort.OrtValue.ortvalue_from_numpy(array)


def _run(session: ort.InferenceSession, binding: ort.IOBinding, held: object) -> None:
    session.run_with_iobinding(binding)
