"""Which tensors pass between the server and a model's engine, as its configuration has it."""

from __future__ import annotations

from dataclasses import replace

from serving.config import BatchInput, BatchInputKind, ModelConfig
from serving.types import DYNAMIC, TensorSpec


def engine_inputs(config: ModelConfig) -> list[TensorSpec]:
    """Every tensor that an engine is passed: first those of callers, then the server's own."""
    batch = (DYNAMIC,) if config.max_batch_size else ()
    controls = config.sequences.controls if config.sequences else ()
    states = config.sequences.states if config.sequences else ()
    flat = config.ragged if config.batch_inputs or config.batch_outputs else frozenset[str]()
    return [
        *(_as_engine_sees(config, spec, flat=spec.name in flat) for spec in config.inputs),
        *(TensorSpec(made.name, made.datatype, (*batch, 1)) for made in controls),
        *(TensorSpec(kept.input_name, kept.datatype, (*batch, *kept.shape)) for kept in states),
        *(_told(config, told) for told in config.batch_inputs),
    ]


def engine_outputs(config: ModelConfig) -> list[TensorSpec]:
    """The outputs that callers know, as an engine returns them."""
    flat = {output.name for output in config.batch_outputs}
    return [_as_engine_sees(config, spec, flat=spec.name in flat) for spec in config.outputs]


def _as_engine_sees(config: ModelConfig, spec: TensorSpec, *, flat: bool) -> TensorSpec:
    shape = (DYNAMIC,) if flat else config.reshapes.get(spec.name, spec.shape)
    return replace(spec, shape=shape)


def _told(config: ModelConfig, told: BatchInput) -> TensorSpec:
    """A batch input; see `BatchLayout` for what it holds."""
    shape: tuple[int, ...] = (DYNAMIC,)
    if told.kind is BatchInputKind.ITEM_SHAPE:
        [source] = [spec for spec in config.inputs if spec.name == told.source]
        item = config.reshapes.get(source.name, source.shape)[1 if config.max_batch_size else 0 :]
        shape = (DYNAMIC, len(item))
    return TensorSpec(told.name, told.datatype, shape)
