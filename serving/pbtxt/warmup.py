"""Requests that a version answers before its first caller's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from serving.config import Warmup, WarmupInput
from serving.errors import shown
from serving.pbtxt.files import check_tensor_size, read_tensor
from serving.pbtxt.source import Source
from serving.pbtxt.tensors import has_open_dims, read_datatype
from serving.types import TensorSpec

FOLDER = "warmup"


def read_warmups(
    source: Source, directory: Path, specs: tuple[TensorSpec, ...], hidden: Collection[str]
) -> tuple[Warmup, ...]:
    """`model_warmup`, with its files.

    `specs` are the declared inputs; with none, nobody knows yet which inputs there are. Values for
    the `hidden` inputs are left out: Triton wants them here, and the server makes its own.

    Raises `ConfigError`.
    """
    warmups = []
    for index, item in enumerate(source.message.model_warmup):
        where = f"model_warmup[{index}]"
        rows = _rows(source, where, item.batch_size)
        inputs = {
            name: _input(source, f"{where}.inputs[{shown(name)}]", directory, value, rows)
            for name, value in item.inputs.items()
            if name not in hidden
        }
        if specs:
            _check_inputs(source, where, inputs, specs)
        warmups.append(Warmup(item.name, rows, item.count, inputs))
    return tuple(warmups)


def _rows(source: Source, where: str, given: int) -> int:
    limit = source.message.max_batch_size
    if given > max(1, limit):
        raise source.error(
            f"{where}.batch_size", f"must be at most {max(1, limit)} for this model, got {given}"
        )
    return (given or 1) if limit else 0


def _input(source: Source, where: str, directory: Path, item: Any, rows: int) -> WarmupInput:
    datatype = read_datatype(source, f"{where}.data_type", item.data_type)
    shape = tuple(item.dims)
    if any(size < 1 for size in shape):
        raise source.error(f"{where}.dims", f"must be 1 or more, got {list(shape)}")
    check_tensor_size(source, f"{where}.dims", datatype, shape, rows or 1)
    choice = item.WhichOneof("input_data_type")
    if choice is None:
        raise source.error(where, "must have zero_data, random_data or input_data_file")
    if choice == "input_data_file":
        name = f"{where}.input_data_file"
        data = read_tensor(source, name, directory, FOLDER, item.input_data_file, datatype, shape)
        return WarmupInput(datatype, shape, data)
    return WarmupInput(datatype, shape, random=choice == "random_data")


def _check_inputs(
    source: Source,
    where: str,
    inputs: Mapping[str, WarmupInput],
    specs: tuple[TensorSpec, ...],
) -> None:
    known = {spec.name: spec for spec in specs}
    undecided = {tensor.name for tensor in source.message.input if has_open_dims(tensor)}
    for name, value in inputs.items():
        if name not in known:
            raise source.error(f"{where}.inputs[{shown(name)}]", "is no input of the model")
        spec = known[name]
        if spec.datatype not in ("", value.datatype):
            raise source.error(
                f"{where}.inputs[{shown(name)}].data_type",
                f"must be that of the input, {spec.datatype}, got {value.datatype}",
            )
        batch = (1,) if source.message.max_batch_size else ()
        if name not in undecided and not spec.admits((*batch, *value.shape)):
            raise source.error(
                f"{where}.inputs[{shown(name)}].dims",
                f"must agree with those of the input {list(spec.shape[len(batch) :])},"
                f" got {list(value.shape)}",
            )
    for spec in specs:
        if not spec.optional and spec.name not in inputs:
            raise source.error(f"{where}.inputs", f"must have the input {shown(spec.name)}")
