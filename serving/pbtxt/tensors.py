"""Inputs and outputs, and what the server makes of them on the way to the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from serving.config import BatchInput, BatchInputKind, BatchOutput
from serving.errors import shown
from serving.pbtxt.files import read_labels
from serving.pbtxt.source import Source
from serving.types import DYNAMIC, NUMPY_TYPES, TensorSpec

_INVALID = "TYPE_INVALID"


def read_datatype(source: Source, name: str, number: int) -> str:
    """The protocol's name of a data type. Raises `ConfigError`, also if there is none."""
    enum_name = source.enum_name(name, model_config_pb2.DataType, number)
    if enum_name == _INVALID:
        raise source.error(name, "is required")
    datatype = enum_name.removeprefix("TYPE_").replace("STRING", "BYTES")
    if datatype not in NUMPY_TYPES:
        raise source.error(name, f"{enum_name} is not supported")
    return datatype


def read_tensors(source: Source, group: str, *, may_be_open: bool) -> tuple[TensorSpec, ...]:
    """The specs of "input" or "output".

    With `may_be_open` they, their data types and their dims may be missing: `serving/completion.py`
    fills them in. The data type is empty then. Raises `ConfigError`.
    """
    message = source.message
    specs: dict[str, TensorSpec] = {}
    for index, tensor in enumerate(getattr(message, group)):
        where = f"{group}[{index}]"
        if not tensor.name:
            raise source.error(f"{where}.name", "is required")
        if tensor.name in specs:
            raise source.error(f"{where}.name", f"{shown(tensor.name)} is declared twice")
        datatype = ""
        if tensor.data_type or not may_be_open:
            datatype = read_datatype(source, f"{where}.data_type", tensor.data_type)
        if has_open_dims(tensor) and not message.max_batch_size and not may_be_open:
            raise source.error(f"{where}.dims", "is required")
        check_dims(source, f"{where}.dims", tensor.dims)
        specs[tensor.name] = TensorSpec(
            tensor.name,
            datatype,
            _with_batch(message, tensor.dims),
            optional=group == "input" and tensor.optional,
        )
    if not specs and not may_be_open:
        raise source.error(group, "is required: the model declares none")
    return tuple(specs.values())


def has_open_dims(tensor: Any) -> bool:
    """Whether a graph may still say what the dims of a declared tensor are."""
    return not tensor.dims and not tensor.HasField("reshape")


def check_dims(source: Source, name: str, dims: Sequence[int]) -> None:
    """Raises `ConfigError` for a size that is neither positive nor dynamic."""
    if any(size < 1 and size != DYNAMIC for size in dims):
        raise source.error(name, f"must be 1 or more, or -1, got {list(dims)}")


def check_formats(source: Source) -> None:
    """`format` says what the three dims of an image mean. Raises `ConfigError` if they are not."""
    for index, tensor in enumerate(source.message.input):
        name = f"input[{index}].format"
        layout = source.enum_name(name, model_config_pb2.ModelInput.Format, tensor.format)
        if layout != "FORMAT_NONE" and len(tensor.dims) != 3:
            raise source.error(name, f"{layout} needs 3 dims, got {list(tensor.dims)}")


def read_reshapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Tensor name -> its shape in the model. Raises `ConfigError` if elements would get lost."""
    reshapes: dict[str, tuple[int, ...]] = {}
    plain: set[str] = set()
    for group in ("input", "output"):
        for index, tensor in enumerate(getattr(source.message, group)):
            if not tensor.HasField("reshape"):
                plain.add(tensor.name)
                continue
            name = f"{group}[{index}].reshape.shape"
            wanted = tensor.reshape.shape
            check_dims(source, name, wanted)
            if _runs(tensor.dims) != _runs(wanted):
                raise source.error(
                    name,
                    f"must have the elements of dims {list(tensor.dims)} between the same dynamic"
                    f" ones, got {list(wanted)}",
                )
            shape = _with_batch(source.message, wanted)
            if reshapes.setdefault(tensor.name, shape) != shape:
                raise source.error(name, f"differs from that of the input {shown(tensor.name)}")
    for both in sorted(plain & reshapes.keys()):
        raise source.error("output", f"and input {shown(both)} must have the same reshape")
    return reshapes


def read_ragged(source: Source) -> frozenset[str]:
    """The inputs with `allow_ragged_batch`. Raises `ConfigError` for a model without batches."""
    for index, tensor in enumerate(source.message.input):
        if tensor.allow_ragged_batch and not source.message.max_batch_size:
            raise source.error(
                f"input[{index}].allow_ragged_batch", "needs max_batch_size of 1 or more"
            )
    return frozenset(tensor.name for tensor in source.message.input if tensor.allow_ragged_batch)


def read_batch_inputs(source: Source) -> tuple[BatchInput, ...]:
    """Raises `ConfigError`."""
    message = source.message
    found: dict[str, BatchInput] = {}
    for index, item in enumerate(message.batch_input):
        where = f"batch_input[{index}]"
        _check_batching(source, where)
        kind = source.enum_name(f"{where}.kind", model_config_pb2.BatchInput.Kind, item.kind)
        datatype = read_datatype(source, f"{where}.data_type", item.data_type)
        if datatype not in ("INT32", "FP32"):
            raise source.error(
                f"{where}.data_type", f"must be TYPE_INT32 or TYPE_FP32, got TYPE_{datatype}"
            )
        origin = _source_input(source, where, item.source_input)
        for name in _target_names(source, where, item.target_name):
            if name in found or name in _names(message.input):
                raise source.error(f"{where}.target_name", f"{shown(name)} is declared twice")
            found[name] = BatchInput(name, BatchInputKind(kind), datatype, origin)
    return tuple(found.values())


def read_batch_outputs(source: Source) -> tuple[BatchOutput, ...]:
    """Raises `ConfigError`."""
    found: dict[str, BatchOutput] = {}
    for index, item in enumerate(source.message.batch_output):
        where = f"batch_output[{index}]"
        _check_batching(source, where)
        source.enum_name(f"{where}.kind", model_config_pb2.BatchOutput.Kind, item.kind)
        origin = _source_input(source, where, item.source_input)
        for name in _target_names(source, where, item.target_name):
            if name in found:
                raise source.error(f"{where}.target_name", f"{shown(name)} is declared twice")
            if name not in _names(source.message.output):
                raise source.error(f"{where}.target_name", f"{shown(name)} is no output")
            found[name] = BatchOutput(name, origin)
    return tuple(found.values())


def read_all_labels(source: Source, directory: Path) -> Mapping[str, tuple[str, ...]]:
    """Output name -> the lines of its `label_filename`. Raises `ConfigError`."""
    return {
        output.name: read_labels(
            source, f"output[{index}].label_filename", directory, output.label_filename
        )
        for index, output in enumerate(source.message.output)
        if output.label_filename
    }


def _with_batch(message: Any, dims: Iterable[int]) -> tuple[int, ...]:
    return (DYNAMIC, *dims) if message.max_batch_size else tuple(dims)


def _runs(dims: Sequence[int]) -> list[int]:
    """How many elements lie before, between and after the dynamic dimensions."""
    dynamic = [-1, *(at for at, size in enumerate(dims) if size == DYNAMIC), len(dims)]
    return [math.prod(dims[start + 1 : end]) for start, end in pairwise(dynamic)]


def _check_batching(source: Source, where: str) -> None:
    if not source.message.max_batch_size:
        raise source.error(where, "needs max_batch_size of 1 or more")


def _source_input(source: Source, where: str, names: Sequence[str]) -> str:
    if len(names) != 1:
        raise source.error(f"{where}.source_input", f"must name one input, got {len(names)}")
    if names[0] not in _names(source.message.input):
        raise source.error(f"{where}.source_input", f"{shown(names[0])} is no input")
    return names[0]


def _target_names(source: Source, where: str, names: Sequence[str]) -> Sequence[str]:
    if not names or not all(names):
        raise source.error(f"{where}.target_name", "is required")
    return names


def _names(tensors: Any) -> set[str]:
    return {tensor.name for tensor in tensors}
