"""A graph for sherpa-onnx with the layers and sizes of a published recogniser, weights at random.

sherpa-onnx computes the spectrogram itself and expects of a graph what NeMo's CTC models have:
`audio_signal` [batch, band, column] and `length` [batch] in, log-probabilities of frames out, and
facts of the model in its metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET = 18
_IR_VERSION = 9
"""As old as the ONNX Runtime inside sherpa-onnx."""
BANDS = 40
_EPSILON = 1e-5


@dataclass(frozen=True)
class _Sizes:
    kernels: tuple[int, int]
    stride: int
    width: int
    hidden: int
    layers: int
    classes: int


def write_graph(published: Path, out: Path) -> tuple[Path, Path]:
    """The graph's file and that of its tokens. Ends the process for another kind of network."""
    sizes = _read(onnx.load(published))
    graph, tokens = out / "sherpa.onnx", out / "sherpa-tokens.txt"
    onnx.save(_build(sizes), graph)
    spelt = ["<blk>", *(chr(ord("a") + place) for place in range(sizes.classes - 1))]
    tokens.write_text("".join(f"{token} {id}\n" for id, token in enumerate(spelt)))
    return graph, tokens


def _read(model: onnx.ModelProto) -> _Sizes:
    """Of two convolutions and bidirectional GRUs."""
    made = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def shape(name: str) -> list[int]:
        # Weights of 16 bits are cast when the graph is loaded.
        return list(stored[name if name in stored else made[name].input[0]].dims)

    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    recurrent = [node for node in model.graph.node if node.op_type == "GRU"]
    if len(convolutions) != 2 or not recurrent:
        raise SystemExit("sherpa-onnx is compared on convolutions and GRUs only")
    narrow, wide = (shape(node.input[1]) for node in convolutions)
    [stride] = next(each.ints for each in convolutions[1].attribute if each.name == "strides")
    [logits] = [tensor for tensor in model.graph.output if tensor.name == "logits"]
    return _Sizes(
        kernels=(narrow[2], wide[2]),
        stride=stride,
        width=narrow[0],
        hidden=shape(recurrent[0].input[2])[2],
        layers=len(recurrent),
        classes=logits.type.tensor_type.shape.dim[2].dim_value,
    )


class _Builder:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._chance = np.random.default_rng(1)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node; returns its output's name."""
        name = f"{kind}-{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, array: npt.NDArray[Any]) -> str:
        name = f"weight-{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def random(self, *shape: int) -> str:
        # So that what goes through a layer stays of a size.
        scale = 1 / np.sqrt(shape[-1])
        return self.constant((scale * self._chance.standard_normal(shape)).astype(np.float32))


def _build(sizes: _Sizes) -> onnx.ModelProto:
    build = _Builder()
    heard = "audio_signal"
    steps = zip(sizes.kernels, (BANDS, sizes.width), (1, sizes.stride), strict=True)
    for kernel, width, stride in steps:
        weights = build.random(sizes.width, width, kernel)
        heard = build.add("Conv", heard, weights, strides=[stride], pads=[kernel - stride, 0])
        heard = build.add("Transpose", heard, perm=[0, 2, 1])
        scale = build.constant(np.ones(sizes.width, np.float32))
        heard = build.add("LayerNormalization", heard, scale, epsilon=_EPSILON)
        heard = build.add("Relu", heard)
        heard = build.add("Transpose", heard, perm=[0, 2, 1])
    heard = build.add("Transpose", heard, perm=[2, 0, 1])
    frames = build.add("Div", "length", build.constant(np.array([sizes.stride], np.int64)))
    frames = build.add("Cast", frames, to=TensorProto.INT32)
    hidden = sizes.hidden
    for layer in range(sizes.layers):
        width = 2 * hidden if layer else sizes.width
        weights, recurrence = (
            build.random(2, 3 * hidden, width),
            build.random(2, 3 * hidden, hidden),
        )
        biases = build.random(2, 6 * hidden)
        heard = build.add(
            *("GRU", heard, weights, recurrence, biases, frames),
            direction="bidirectional",
            hidden_size=hidden,
            linear_before_reset=1,
        )
        heard = build.add("Transpose", heard, perm=[0, 2, 1, 3])
        joined = build.constant(np.array([0, 0, 2 * hidden], np.int64))
        heard = build.add("Reshape", heard, joined)
    heard = build.add("Transpose", heard, perm=[1, 0, 2])
    heard = build.add("MatMul", heard, build.random(2 * hidden, sizes.classes))
    build.nodes.append(helper.make_node("LogSoftmax", [heard], ["logprobs"], axis=2))
    graph = helper.make_graph(
        build.nodes,
        "recogniser",
        [
            helper.make_tensor_value_info("audio_signal", TensorProto.FLOAT, ["N", BANDS, "T"]),
            helper.make_tensor_value_info("length", TensorProto.INT64, ["N"]),
        ],
        [helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, ["N", "F", sizes.classes])],
        build.weights,
    )
    opset = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)
    facts = {
        "model_type": "EncDecCTCModel",
        "vocab_size": str(sizes.classes - 1),
        "subsampling_factor": str(sizes.stride),
        "normalize_type": "",
    }
    helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    return model
