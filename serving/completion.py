"""What a configuration leaves open and the model's graph can tell, as in Triton."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from serving.config import Batching, ModelConfig
from serving.errors import ConfigError, shown
from serving.types import DYNAMIC, TensorSpec

DEFAULT_MAX_BATCH_SIZE = 4
"""That of Triton, for a graph that can batch and a config that does not say how much."""


def complete(
    config: ModelConfig, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> ModelConfig:
    """The config with what it leaves open taken from the tensors of the graph.

    Without inputs, or without outputs, all of the graph's are declared, save those that the server
    fills and reads itself, and optional inputs: many a graph lists its weights as such. Such a
    model batches dynamically if every one of these tensors has a dynamic first dimension and
    nothing else is said. A tensor without data type or dims gets those
    of the graph's tensor of that name. A config that leaves nothing open is returned as it is.

    Raises `ConfigError`, naming the tensor, when the graph does not have what the config needs.
    """
    message: Any = type(config.message)()
    message.CopyFrom(config.message)
    completed = replace(config, message=message)
    required = [spec for spec in inputs if not spec.optional]
    if not config.inputs or not config.outputs:
        completed = _with_batching(completed, [*required, *outputs])
    filled = {item.name for item in config.batch_inputs}
    read: set[str] = set()
    if config.sequences is not None:
        filled |= {item.name for item in config.sequences.controls}
        filled |= {item.input_name for item in config.sequences.states}
        read = {item.output_name for item in config.sequences.states}
    reshapes = dict(config.reshapes)
    completed = replace(
        completed,
        inputs=_tensors(
            completed,
            "input",
            config.inputs,
            inputs if config.inputs else required,
            filled,
            reshapes,
        ),
        outputs=_tensors(completed, "output", config.outputs, outputs, read, reshapes),
        reshapes=reshapes,
    )
    if completed == config:
        return config
    _check_warmups(completed)
    return completed


def _with_batching(config: ModelConfig, graph: Sequence[TensorSpec]) -> ModelConfig:
    """With the batching of a graph that allows it, where there is no scheduler yet."""
    can_batch = all(spec.shape[:1] == (DYNAMIC,) for spec in graph)
    if not can_batch or config.batching is not None or config.sequences is not None:
        return config
    size, warmups = config.max_batch_size, config.warmups
    if not size and not config.inputs and not config.outputs:
        size = DEFAULT_MAX_BATCH_SIZE
        warmups = tuple(replace(warmup, rows=1) for warmup in warmups)
    if size <= 1:
        return config
    message: Any = config.message
    message.max_batch_size = size
    message.dynamic_batching.preferred_batch_size.append(size)
    return replace(config, max_batch_size=size, batching=Batching(), warmups=warmups)


def _tensors(
    config: ModelConfig,
    group: str,
    declared: Sequence[TensorSpec],
    graph: Sequence[TensorSpec],
    hidden: Collection[str],
    reshapes: dict[str, tuple[int, ...]],
) -> tuple[TensorSpec, ...]:
    """The specs of "input" or "output"; also adds to `reshapes` and to the message."""
    entries = getattr(config.message, group)
    if not declared:
        return tuple(
            _taken(config, group, spec, entries.add(name=spec.name), reshapes)
            for spec in graph
            if spec.name not in hidden
        )
    by_name = {spec.name: spec for spec in graph}
    return tuple(
        _filled(config, group, spec, by_name.get(spec.name), entry)
        for spec, entry in zip(declared, entries, strict=True)
    )


def _taken(
    config: ModelConfig,
    group: str,
    spec: TensorSpec,
    entry: Any,
    reshapes: dict[str, tuple[int, ...]],
) -> TensorSpec:
    """A tensor of the graph, as callers will see it."""
    entry.data_type = _data_type(entry, spec.datatype)
    batch, dims = _split(config, group, spec)
    if not dims:
        # Callers of Triton cannot send scalars, and so expect to send one element instead.
        reshapes[spec.name] = batch
        entry.reshape.SetInParent()
        dims = (1,)
    entry.dims.extend(dims)
    return replace(spec, shape=(*batch, *dims))


def _filled(
    config: ModelConfig, group: str, spec: TensorSpec, found: TensorSpec | None, entry: Any
) -> TensorSpec:
    """A declared tensor, with what its declaration lacks."""
    lacks_dims = not entry.dims and not entry.HasField("reshape")
    if spec.datatype and not lacks_dims:
        return spec
    if found is None:
        raise ConfigError(
            f"model {config.name!r}: {group} {shown(spec.name)} needs data_type and dims,"
            " for there is no such tensor in the graph"
        )
    if not spec.datatype:
        entry.data_type = _data_type(entry, found.datatype)
        spec = replace(spec, datatype=found.datatype)
    if lacks_dims:
        batch, dims = _split(config, group, found)
        entry.dims.extend(dims)
        spec = replace(spec, shape=(*batch, *dims))
    return spec


def _split(
    config: ModelConfig, group: str, spec: TensorSpec
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A graph's shape as its batch dimension, if there is to be one, and the rest."""
    if not config.max_batch_size:
        return (), spec.shape
    if spec.shape[:1] != (DYNAMIC,):
        raise ConfigError(
            f"model {config.name!r}: {group} {shown(spec.name)} has the shape {list(spec.shape)} in"
            f" the graph, without the batch dimension that max_batch_size"
            f" {config.max_batch_size} needs"
        )
    return spec.shape[:1], spec.shape[1:]


def _data_type(entry: Any, datatype: str) -> int:
    name = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    values = entry.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
    return int(values[name].number)


def _check_warmups(config: ModelConfig) -> None:
    """What could not be checked before the inputs were known."""
    known = {spec.name: spec for spec in config.inputs}
    batch = (1,) if config.max_batch_size else ()
    for index, warmup in enumerate(config.warmups):
        where = f"model {config.name!r}: model_warmup[{index}].inputs"
        for name, value in warmup.inputs.items():
            spec = known.get(name)
            if spec is None:
                raise ConfigError(f"{where}: {shown(name)} is no input of the graph")
            if value.datatype != spec.datatype or not spec.admits((*batch, *value.shape)):
                raise ConfigError(
                    f"{where}: {shown(name)} must be {spec.datatype}"
                    f" {list(spec.shape[len(batch) :])}, got {value.datatype} {list(value.shape)}"
                )
        for spec in config.inputs:
            if not spec.optional and spec.name not in warmup.inputs:
                raise ConfigError(f"{where}: {shown(spec.name)} is missing")
