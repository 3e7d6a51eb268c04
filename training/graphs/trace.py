"""From a wrapper module to the graph that is served."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from torch import nn

WEIGHTS_SUFFIX = ".data"

SMALLEST_HALVED = 1024
"""Numbers of the smallest tensor that is worth storing in half the bytes."""


def trace(
    module: nn.Module,
    inputs: Mapping[str, Any],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Mapping[str, Any],
) -> ModelProto:
    """Trace a module. Its arguments may be nested; the names are their tensors', in order."""
    graph: ModelProto = _traced(
        module, inputs, input_names, output_names, dynamic_shapes
    ).model_proto
    _halve(graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def trace_into(
    path: Path,
    module: nn.Module,
    inputs: Mapping[str, Any],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Mapping[str, Any],
) -> None:
    """The same of a module of any size: its weights are written into a second file.

    That has the graph's name and `WEIGHTS_SUFFIX`, and has to stay beside it.
    """
    program = _traced(module, inputs, input_names, output_names, dynamic_shapes)
    ir.save(program.model, path, external_data=path.name + WEIGHTS_SUFFIX)
    onnx.checker.check_model(path, full_check=True)


def _traced(
    module: nn.Module,
    inputs: Mapping[str, Any],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Mapping[str, Any],
) -> torch.onnx.ONNXProgram:
    with quiet("torch.onnx"), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            kwargs=dict(inputs),
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=dict(dynamic_shapes),
            external_data=False,
            verbose=False,
        )
    assert program is not None, "torch.onnx.export(dynamo=True) returns a program. This is a bug."
    # Notes on where each node comes from hold the paths of source files.
    ClearMetadataAndDocStringPass()(program.model)
    _leave_shapes(program.model)
    return program


def _leave_shapes(model: ir.Model) -> None:
    """Drop what is reshaped and reshaped back, as heads are that are split and joined again.

    In a step of one token per row each takes as long as a small product, and ONNX Runtime keeps
    them where an axis is dynamic.
    """
    for node in model.graph:
        if node.op_type != "Reshape":
            continue
        source, [output] = node.inputs[0], node.outputs
        while source is not None and (before := source.producer()) and before.op_type == "Reshape":
            source = before.inputs[0]
        if source is None or output.is_graph_output():
            continue
        if _is_known(source.shape) and source.shape == output.shape:
            output.replace_all_uses_with(source)
    RemoveUnusedNodesPass()(model)


def _is_known(shape: ir.Shape | None) -> bool:
    return shape is not None and None not in (
        axis.value if isinstance(axis, ir.SymbolicDim) else axis for axis in shape
    )


def _halve(model: ModelProto) -> None:
    """Store as FP16 every weight that is the same number there; it is computed with as FP32.

    ONNX Runtime casts it once, when it loads the graph.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        weights = numpy_helper.to_array(tensor)
        if weights.size < SMALLEST_HALVED:
            continue
        with np.errstate(over="ignore"):
            halved = weights.astype(np.float16)
        if not np.array_equal(halved.astype(np.float32), weights):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(halved, f"{name}.fp16"))
        casts.append(
            helper.make_node("Cast", [tensor.name], [name], f"{name}.cast", to=TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@contextmanager
def quiet(logger_name: str | None) -> Iterator[None]:
    """Without what a tool says about itself, here or, for None, to the root logger.

    What goes wrong is raised.
    """
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch 2.13 uses names of its own that it has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            # Said of every axis that several tensors share.
            warnings.filterwarnings("ignore", "# The axis name: ", UserWarning)
            yield
    finally:
        logger.setLevel(level)
