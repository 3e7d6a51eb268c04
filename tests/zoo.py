"""The models that Triton's public client examples ask for, made small: `python -m tests.zoo DIR`.

Names, tensors and arithmetic are those that the examples name and check; the rest is our own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support import ONNX_TYPES, write_config

Tensor = tuple[str, str, tuple[int | str, ...]]
"""Name, datatype and shape."""

CLASSES = ("red", "green", "blue")
"""What the classifiers tell apart: which colour a picture has most of."""

PPM_SIDE = 16
"""Pixels, wide and high, of the pictures that the ensemble takes."""


def build(repository: Path, names: Iterable[str] | None = None) -> None:
    """Write these models, or all, into a directory in Triton's layout."""
    for name in ZOO if names is None else names:
        ZOO[name](repository, name)


def ppm(red: int, green: int, blue: int) -> bytes:
    """A picture of one colour as plain PPM, which is text, with one pixel in each line."""
    pixels = f"{red} {green} {blue}\n" * PPM_SIDE**2
    return f"P3\n{PPM_SIDE} {PPM_SIDE}\n255\n{pixels}".encode()


def _sums(datatype: str) -> Callable[[Path, str], None]:
    """OUTPUT0 = INPUT0 + INPUT1 and OUTPUT1 = INPUT0 - INPUT1, in 32-bit integers."""

    def write(repository: Path, name: str) -> None:
        nodes = [
            _cast("INPUT0", "a", "INT32"),
            _cast("INPUT1", "b", "INT32"),
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("Sub", ["a", "b"], ["difference"]),
            _cast("sum", "OUTPUT0", datatype),
            _cast("difference", "OUTPUT1", datatype),
        ]
        tensors = [(f"{side}{i}", datatype, (16,)) for side in ("INPUT", "OUTPUT") for i in (0, 1)]
        _write(repository, name, nodes, inputs=tensors[:2], outputs=tensors[2:])

    return write


def _identity(datatype: str) -> Callable[[Path, str], None]:
    def write(repository: Path, name: str) -> None:
        _write(
            repository,
            name,
            [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])],
            inputs=[("INPUT0", datatype, (-1,))],
            outputs=[("OUTPUT0", datatype, (-1,))],
        )

    return write


def _simple_sequence(repository: Path, name: str) -> None:
    """OUTPUT = INPUT, and one more at the start of a sequence. It keeps no state."""
    _write(
        repository,
        name,
        [
            helper.make_node("Add", ["INPUT", "START"], ["sum"]),
            helper.make_node("Mul", ["sum", "READY"], ["OUTPUT"]),
        ],
        inputs=[("INPUT", "INT32", (1,))],
        outputs=[("OUTPUT", "INT32", (1,))],
        hidden_inputs=[("START", "INT32", (1,)), ("READY", "INT32", (1,))],
        extra=_sequence_batching(_flag("START"), _flag("READY"), strategy="direct { }"),
    )


def _simple_dyna_sequence(repository: Path, name: str) -> None:
    """As `simple_sequence`, and at the end of a sequence its correlation id on top."""
    _write(
        repository,
        name,
        [
            _cast("CORRID", "id", "INT32"),
            helper.make_node("Mul", ["id", "END"], ["last"]),
            helper.make_node("Add", ["INPUT", "START"], ["sum"]),
            helper.make_node("Add", ["sum", "last"], ["total"]),
            helper.make_node("Mul", ["total", "READY"], ["OUTPUT"]),
        ],
        inputs=[("INPUT", "INT32", (1,))],
        outputs=[("OUTPUT", "INT32", (1,))],
        hidden_inputs=[
            ("START", "INT32", (1,)),
            ("END", "INT32", (1,)),
            ("READY", "INT32", (1,)),
            ("CORRID", "UINT64", (1,)),
        ],
        extra=_sequence_batching(
            _flag("START"), _flag("END"), _flag("READY"), _correlation_id("UINT64")
        ),
    )


def _simple_string_dyna_sequence(repository: Path, name: str) -> None:
    """OUTPUT = the sum of a sequence's inputs so far, and at its end its correlation id on top."""
    _write(
        repository,
        name,
        [
            helper.make_node("Sub", ["one", "START"], ["goes_on"]),
            helper.make_node("Mul", ["INPUT_STATE", "goes_on"], ["before"]),
            helper.make_node("Add", ["INPUT", "before"], ["sum"]),
            _cast("CORRID", "id", "INT32"),
            helper.make_node("Mul", ["id", "END"], ["last"]),
            helper.make_node("Add", ["sum", "last"], ["OUTPUT"]),
            helper.make_node("Mul", ["OUTPUT", "READY"], ["OUTPUT_STATE"]),
        ],
        inputs=[("INPUT", "INT32", (1,))],
        outputs=[("OUTPUT", "INT32", (1,))],
        hidden_inputs=[
            ("START", "INT32", (1,)),
            ("END", "INT32", (1,)),
            ("READY", "INT32", (1,)),
            ("CORRID", "BYTES", (1,)),
            ("INPUT_STATE", "INT32", (1,)),
        ],
        hidden_outputs=[("OUTPUT_STATE", "INT32", (1,))],
        constants={"one": np.array([1], np.int32)},
        extra=_sequence_batching(
            _flag("START"),
            _flag("END"),
            _flag("READY"),
            _correlation_id("STRING"),
            state="INPUT_STATE OUTPUT_STATE",
        ),
    )


def _repeat_int32(repository: Path, name: str) -> None:
    """One response for each element of IN: OUT is the element, IDX its place.

    DELAY has the milliseconds before each response, WAIT those before the model takes more work.
    """
    directory = write_config(
        repository,
        name,
        """
backend: "fake"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [
  { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] }
]
output [
  { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] }
]
""",
    )
    (directory / "1").mkdir(exist_ok=True)


def _classifier(layout: str, side: int, input_name: str, output_name: str) -> Any:
    """Average each colour over the picture, and weigh the three."""

    def write(repository: Path, name: str) -> None:
        shape = (3, side, side) if layout == "NCHW" else (side, side, 3)
        _write(
            repository,
            name,
            [
                helper.make_node("ReduceMean", [input_name, "pixels"], ["means"], keepdims=0),
                helper.make_node("MatMul", ["means", "weights"], ["logits"]),
                helper.make_node("Softmax", ["logits"], [output_name]),
            ],
            inputs=[(input_name, "FP32", shape)],
            outputs=[(output_name, "FP32", (len(CLASSES),))],
            constants={
                "pixels": np.array([2, 3] if layout == "NCHW" else [1, 2]),
                "weights": np.eye(3, dtype=np.float32),
            },
            details={input_name: f"format: FORMAT_{layout}"}
            | {output_name: 'label_filename: "labels.txt"'},
        )
        (repository / name / "labels.txt").write_text("\n".join(CLASSES) + "\n")

    return write


def _decode_ppm(repository: Path, name: str) -> None:
    """From pictures as `ppm` writes them to what `image_classifier` takes.

    ONNX can split text; for PNG or JPEG it has no operator that ONNX Runtime implements.
    """
    header = 3  # lines: P3, width and height, greatest value
    _write(
        repository,
        name,
        [
            helper.make_node("StringSplit", ["IMAGE"], ["lines", "line_counts"], delimiter="\n"),
            helper.make_node("Slice", ["lines", "first", "last", "axis"], ["pixel_lines"]),
            helper.make_node("StringSplit", ["pixel_lines"], ["words", "word_counts"]),
            _cast("words", "pixels", "FP32"),
            helper.make_node("Reshape", ["pixels", "height_width_colour"], ["nhwc"]),
            helper.make_node("Transpose", ["nhwc"], ["nchw"], perm=[0, 3, 1, 2]),
            helper.make_node("Resize", ["nchw", "", "scales"], ["large"], mode="nearest"),
            helper.make_node("Div", ["large", "half_range"], ["positive"]),
            helper.make_node("Sub", ["positive", "unit"], ["PIXELS"]),
        ],
        inputs=[("IMAGE", "BYTES", (1,))],
        outputs=[("PIXELS", "FP32", (3, 224, 224))],
        constants={
            "first": np.array([header]),
            "last": np.array([header + PPM_SIDE**2]),
            "axis": np.array([2]),
            "height_width_colour": np.array([-1, PPM_SIDE, PPM_SIDE, 3]),
            "scales": np.array([1, 1, 224 / PPM_SIDE, 224 / PPM_SIDE], np.float32),
            "half_range": np.array(127.5, np.float32),
            "unit": np.array(1, np.float32),
        },
        opset=20,  # StringSplit
    )


def _ensemble(repository: Path, name: str) -> None:
    """`decode_ppm`, then `image_classifier`, whose labels are the ensemble's too."""
    directory = write_config(
        repository,
        name,
        f"""
platform: "ensemble"
max_batch_size: 8
input [ {{ name: "INPUT" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: "PREDICTIONS" data_type: TYPE_FP32 dims: [ {len(CLASSES)} ] }} ]
ensemble_scheduling {{
  step [
    {{
      model_name: "decode_ppm"
      model_version: -1
      input_map {{ key: "IMAGE" value: "INPUT" }}
      output_map {{ key: "PIXELS" value: "pixels" }}
    }},
    {{
      model_name: "image_classifier"
      model_version: -1
      input_map {{ key: "data" value: "pixels" }}
      output_map {{ key: "scores" value: "PREDICTIONS" }}
    }}
  ]
}}
""",
    )
    (directory / "1").mkdir(exist_ok=True)


ZOO: dict[str, Callable[[Path, str], None]] = {
    "simple": _sums("INT32"),
    "simple_int8": _sums("INT8"),
    "simple_string": _sums("BYTES"),
    "simple_identity": _identity("BYTES"),
    "custom_identity_int32": _identity("INT32"),
    "simple_sequence": _simple_sequence,
    "simple_dyna_sequence": _simple_dyna_sequence,
    "simple_string_dyna_sequence": _simple_string_dyna_sequence,
    "repeat_int32": _repeat_int32,
    "image_classifier": _classifier("NCHW", 224, "data", "scores"),
    # The name is one network's and the tensors are another's: grpc_client.py asks for both.
    "densenet_onnx": _classifier("NHWC", 299, "input", "InceptionV3/Predictions/Softmax"),
    "decode_ppm": _decode_ppm,
    "preprocess_inception_ensemble": _ensemble,
}


def _write(
    repository: Path,
    name: str,
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    hidden_inputs: Sequence[Tensor] = (),
    hidden_outputs: Sequence[Tensor] = (),
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
    details: dict[str, str] | None = None,
    extra: str = "dynamic_batching { }",
    opset: int = 18,
) -> None:
    """A graph and its configuration. Shapes go without the batch dimension, which each tensor has.

    Hidden tensors are the server's business; `config.pbtxt` has them in `extra`.
    """
    graph = helper.make_graph(
        nodes,
        name,
        [_value(tensor) for tensor in (*inputs, *hidden_inputs)],
        [_value(tensor) for tensor in (*outputs, *hidden_outputs)],
        [numpy_helper.from_array(value, key) for key, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    directory = write_config(
        repository,
        name,
        f"""
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ {_specs(inputs, details or {})} ]
output [ {_specs(outputs, details or {})} ]
{extra}
""",
    )
    (directory / "1").mkdir(exist_ok=True)
    onnx.save(model, directory / "1" / "model.onnx")


def _value(tensor: Tensor) -> onnx.ValueInfoProto:
    name, datatype, shape = tensor
    sizes = [f"{name}_{i}" if size == -1 else size for i, size in enumerate(shape)]
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], ["batch", *sizes])


def _specs(tensors: Sequence[Tensor], details: dict[str, str]) -> str:
    return ", ".join(
        f'{{ name: "{name}" data_type: TYPE_{datatype.replace("BYTES", "STRING")}'
        f" dims: {list(shape)} {details.get(name, '')} }}"
        for name, datatype, shape in tensors
    )


def _cast(source: str, target: str, datatype: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=ONNX_TYPES[datatype])


def _sequence_batching(
    *controls: str,
    strategy: str = "oldest { max_candidate_sequences: 1024 max_queue_delay_microseconds: 10000 }",
    state: str = "",
) -> str:
    states = ""
    if state:
        before, after = state.split()
        states = f"""
  state [
    {{ input_name: "{before}" output_name: "{after}" data_type: TYPE_INT32 dims: [ 1 ] }}
  ]"""
    return f"""
sequence_batching {{
  max_sequence_idle_microseconds: 5000000
  {strategy}
  control_input [
    {", ".join(controls)}
  ]{states}
}}
"""


def _flag(kind: str) -> str:
    return (
        f'{{ name: "{kind}" control [ {{ kind: CONTROL_SEQUENCE_{kind}'
        " int32_false_true: [ 0, 1 ] } ] }"
    )


def _correlation_id(datatype: str) -> str:
    return (
        '{ name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID'
        f" data_type: TYPE_{datatype} }} ] }}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", metavar="DIR", type=Path)
    build(parser.parse_args().repository)
