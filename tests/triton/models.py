"""The models that both servers have: the same tensors, computed by each in its own way.

Triton runs `python_model.py`, which goes by the model's name; Slipway an ONNX graph, or its fake
engine where there is no graph.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support import ONNX_TYPES

PYTHON_MODEL = Path(__file__).with_name("python_model.py")
DATATYPES = (*ONNX_TYPES, "BF16")


@dataclass(frozen=True)
class Tensor:
    name: str
    datatype: str
    dims: tuple[int, ...]
    setting: str = ""

    def config(self) -> str:
        kind = "STRING" if self.datatype == "BYTES" else self.datatype
        dims = list(self.dims)
        return f'{{ name: "{self.name}" data_type: TYPE_{kind} dims: {dims} {self.setting} }}'

    def value(self, *, batched: bool) -> Any:
        sizes = [f"{self.name}_{i}" if size < 0 else size for i, size in enumerate(self.dims)]
        shape = ["batch", *sizes] if batched else sizes
        return helper.make_tensor_value_info(self.name, ONNX_TYPES[self.datatype], shape)


@dataclass(frozen=True)
class Model:
    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int = 8
    graph: onnx.GraphProto | None = None
    """What Slipway computes; without one, its fake engine echoes."""
    settings: str = ""
    triton_settings: str = ""
    slipway_settings: str = ""
    labels: tuple[str, ...] = ()
    versions: tuple[int, ...] = (1,)

    def write_for_triton(self, repository: Path) -> None:
        directory = self._write(repository, f'backend: "python"\n{self.triton_settings}')
        for version in self.versions:
            shutil.copy(PYTHON_MODEL, directory / str(version) / "model.py")

    def write_for_slipway(self, repository: Path) -> None:
        backend = "onnxruntime" if self.graph else "fake"
        directory = self._write(repository, f'backend: "{backend}"\n{self.slipway_settings}')
        for version in self.versions:
            if self.graph:
                (directory / str(version) / "model.onnx").write_bytes(onnx_file(self.graph))

    def _write(self, repository: Path, settings: str) -> Path:
        directory = repository / self.name
        for version in self.versions:
            (directory / str(version)).mkdir(parents=True)
        config = f"""
max_batch_size: {self.max_batch_size}
input [ {", ".join(tensor.config() for tensor in self.inputs)} ]
output [ {", ".join(tensor.config() for tensor in self.outputs)} ]
"""
        (directory / "config.pbtxt").write_text(config + self.settings + settings)
        if self.labels:
            (directory / "labels.txt").write_text("\n".join(self.labels) + "\n")
        return directory


def onnx_file(graph: onnx.GraphProto) -> bytes:
    opset = helper.make_opsetid("", 18)
    file: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    return file


def identity_graph(datatype: str, dims: tuple[int, ...], *, batched: bool) -> onnx.GraphProto:
    node = helper.make_node("Identity", ["INPUT"], ["OUTPUT"])
    source, result = Tensor("INPUT", datatype, dims), Tensor("OUTPUT", datatype, dims)
    return _graph([node], [source], [result], batched=batched)


def _graph(
    nodes: list[Any],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    batched: bool = True,
    constants: Sequence[Any] = (),
) -> onnx.GraphProto:
    return helper.make_graph(
        nodes,
        "graph",
        [tensor.value(batched=batched) for tensor in inputs],
        [tensor.value(batched=batched) for tensor in outputs],
        list(constants),
    )


def _identity(
    name: str,
    datatype: str = "FP32",
    dims: tuple[int, ...] = (-1,),
    *,
    max_batch_size: int = 8,
    label_filename: str = "",
    engine: str = "onnx",
    **settings: Any,
) -> Model:
    labelled = f'label_filename: "{label_filename}"' if label_filename else ""
    graph = identity_graph(datatype, dims, batched=max_batch_size > 0) if engine == "onnx" else None
    return Model(
        name,
        (Tensor("INPUT", datatype, dims),),
        (Tensor("OUTPUT", datatype, dims, labelled),),
        max_batch_size,
        graph,
        **settings,
    )


def _simple() -> Model:
    inputs = Tensor("INPUT0", "INT32", (16,)), Tensor("INPUT1", "INT32", (16,))
    outputs = Tensor("OUTPUT0", "INT32", (16,)), Tensor("OUTPUT1", "INT32", (16,))
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    return Model("simple", inputs, outputs, graph=_graph(nodes, inputs, outputs))


def _optional() -> Model:
    """Sum of two inputs, of which the second is 7 where it is not given."""
    inputs = Tensor("REQUIRED", "FP32", (1,)), Tensor("OPTIONAL", "FP32", (1,), "optional: true")
    outputs = (Tensor("OUTPUT", "FP32", (1,)),)
    seven = numpy_helper.from_array(np.array([7], np.float32), "OPTIONAL")
    node = helper.make_node("Add", ["REQUIRED", "OPTIONAL"], ["OUTPUT"])
    graph = _graph([node], inputs, outputs, batched=False, constants=[seven])
    return Model("optional", inputs, outputs, 0, graph)


CONTROLS = """
  max_sequence_idle_microseconds: 60000000
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
    { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } ] }
  ]
"""
STATE = """
  state [ { input_name: "SUM" output_name: "NEXT_SUM" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""


def _sequence() -> Model:
    """The sum of a sequence so far. Triton's Python backend cannot leave keeping it to Triton."""
    value, sum_before = Tensor("INPUT", "INT32", (1,)), Tensor("SUM", "INT32", (1,))
    total, sum_after = Tensor("OUTPUT", "INT32", (1,)), Tensor("NEXT_SUM", "INT32", (1,))
    controls = Tensor("START", "INT32", (1,)), Tensor("READY", "INT32", (1,))
    nodes = [
        helper.make_node("Sub", ["one", "START"], ["continues"]),
        helper.make_node("Mul", ["continues", "SUM"], ["kept"]),
        helper.make_node("Add", ["kept", "INPUT"], ["OUTPUT"]),
        helper.make_node("Identity", ["OUTPUT"], ["NEXT_SUM"]),
    ]
    one = numpy_helper.from_array(np.array([1], np.int32), "one")
    graph = _graph(nodes, [value, *controls, sum_before], [total, sum_after], constants=[one])
    return Model(
        "sequence",
        (value,),
        (total,),
        graph=graph,
        triton_settings=f"sequence_batching {{ {CONTROLS} }}",
        slipway_settings=f"sequence_batching {{ {CONTROLS} {STATE} }}",
    )


def _parameter(key: str, value: object) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


SIMPLE = _simple()
CROWDED = """
dynamic_batching { default_queue_policy { max_queue_size: 1 } }
"""
HURRIED = """
dynamic_batching {
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy { default_timeout_microseconds: 250000 allow_timeout_override: true }
}
"""
LABELS = ("ant", "bee", "cat", "dog")

MODELS = (
    SIMPLE,
    # What an ONNX graph cannot have: brain floats, and strings that are not text.
    *(
        _identity(f"identity-{datatype}", datatype, engine=engine)
        for datatype in DATATYPES
        for engine in ["fake" if datatype in ("BF16", "BYTES") else "onnx"]
    ),
    _identity("plain", dims=(2, 3), max_batch_size=0),
    _identity("flexible", dims=(-1, -1), max_batch_size=0),
    _identity("labels", dims=(4,), label_filename="labels.txt", labels=LABELS),
    _identity("plain-labels", "INT32", (4,), max_batch_size=0),
    _identity("text", "BYTES", (1,)),
    _identity(
        "versions",
        dims=(1,),
        versions=(1, 3),
        settings="version_policy { specific { versions: [ 1, 3 ] } }\n",
    ),
    _identity("raises", dims=(1,), engine="fake", slipway_settings=_parameter("fail_every", 1)),
    _identity(
        "crowded",
        dims=(1,),
        max_batch_size=1,
        engine="fake",
        settings=CROWDED + _parameter("delay_ms", 150),
    ),
    _identity(
        "hurried",
        dims=(1,),
        max_batch_size=1,
        engine="fake",
        settings=HURRIED + _parameter("delay_ms", 150),
    ),
    _optional(),
    _sequence(),
    Model(
        "decoupled",
        (Tensor("INPUT", "INT32", (-1,)),),
        (Tensor("OUTPUT", "INT32", (1,)),),
        0,
        settings="model_transaction_policy { decoupled: true }\n",
    ),
)

NOT_LOADED = (_identity("spare", dims=(4,)),)
