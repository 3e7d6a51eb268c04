"""From a version directory to a model that is ready to serve: engine, scheduler and task joined."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from serving.cache import ResponseCache
from serving.completion import complete
from serving.config import ControlKind, ModelConfig, WarmupInput
from serving.engines import load_engine
from serving.engines.base import Engine, StreamingEngine
from serving.errors import ModelLoadError, SlipwayError
from serving.interface import engine_inputs, engine_outputs
from serving.model import Model, Scheduler
from serving.repository import ModelVersion, verify_checksums
from serving.scheduling.batch import BatchLayout
from serving.scheduling.dynamic import DynamicScheduler
from serving.scheduling.ensemble import EnsembleScheduler, check_members
from serving.scheduling.policy import BatchPolicy
from serving.scheduling.sequence import SequenceScheduler
from serving.scheduling.streaming import StreamScheduler
from serving.tasks import Task, load_task
from serving.types import (
    DYNAMIC,
    NUMPY_TYPES,
    Array,
    InferRequest,
    InferResponse,
    Run,
    SequenceStep,
    TensorSpec,
)


@dataclass(frozen=True)
class Surroundings:
    """What a model needs of the process that it is loaded into."""

    cache: ResponseCache
    infer: Callable[[InferRequest], Awaitable[InferResponse]]
    """How an ensemble asks its members."""
    find: Callable[[str, str], ModelConfig]
    """The config of another model that is loaded. Raises `NotFound`."""


async def load_model(
    found: ModelVersion, surroundings: Surroundings, on_run: Callable[[Run], None]
) -> Model:
    """Load one version directory and run its warm-up requests.

    `on_run` is told of every run of the engine that serves requests. Raises `ModelLoadError` with
    what is wrong, and where.
    """
    version = str(found.version)
    if found.config.steps:
        check_members(found.config, surroundings.find)
        ensemble = EnsembleScheduler(found.config, surroundings.infer, on_run)
        return Model(
            replace(found.config, labels=_labels(found.config, surroundings)),
            version,
            ensemble,
            task=None,
            cache=surroundings.cache,
            release=ensemble.stop,
        )
    config, engine, task = await asyncio.to_thread(_load_parts, found)
    is_warm = False

    def ran(run: Run) -> None:
        if is_warm:
            on_run(run)

    try:
        scheduler = _scheduler(config, engine, ran)
        await _warm_up(config, engine)
    except SlipwayError as error:
        await engine.close()
        raise ModelLoadError(f"{found.directory}: {error}") from error
    except BaseException:
        await engine.close()
        raise
    is_warm = True
    return Model(
        config, version, scheduler, task=task, cache=surroundings.cache, release=engine.close
    )


def _load_parts(found: ModelVersion) -> tuple[ModelConfig, Engine, Task | None]:
    verify_checksums(found.directory)
    engine = load_engine(found.config, found.directory)
    where = f"{found.directory.parent}/config.pbtxt"
    config = complete(found.config, engine.inputs, engine.outputs)
    given = engine_inputs(config)
    _check_specs(f"{where}: input", given, engine.inputs, sent=True)
    _check_specs(f"{where}: output", engine_outputs(config), engine.outputs)
    known = {spec.name for spec in given}
    for spec in engine.inputs:
        if not spec.optional and spec.name not in known:
            raise ModelLoadError(f"{where}: input {spec.name!r} of the graph is not declared")
    if config.task is None:
        return config, engine, None
    task = load_task(config.task, found.directory)
    _check_specs(f"{where}: task input", task.inputs, config.inputs, sent=True)
    _check_specs(f"{where}: task output", task.outputs, config.outputs)
    return config, engine, task


def _scheduler(
    config: ModelConfig, engine: Engine, on_run: Callable[[Run], None]
) -> Scheduler | StreamScheduler:
    instances = config.instance_count
    if config.decoupled:
        return StreamScheduler(
            cast(StreamingEngine, engine),
            instances=instances,
            on_run=on_run,
            layout=BatchLayout(config),
        )
    if config.sequences is not None:
        return SequenceScheduler(
            engine,
            config.sequences,
            max_batch_size=config.max_batch_size,
            instances=instances,
            on_run=on_run,
            layout=BatchLayout(config),
        )
    return DynamicScheduler(
        engine,
        BatchPolicy(config.max_batch_size or 1, config.batching),
        BatchLayout(config),
        instances=instances,
        on_run=on_run,
    )


def _labels(ensemble: ModelConfig, surroundings: Surroundings) -> dict[str, tuple[str, ...]]:
    """An ensemble's own labels, and where it has none those of the steps that make its outputs."""
    members = {
        tensor: surroundings.find(step.model_name, step.model_version).labels.get(output)
        for step in ensemble.steps
        for output, tensor in step.outputs.items()
    }
    outputs = {spec.name: members.get(spec.name) for spec in ensemble.outputs}
    return {name: labels for name, labels in outputs.items() if labels} | dict(ensemble.labels)


async def _warm_up(config: ModelConfig, engine: Engine) -> None:
    """Run the warm-up requests, past any queue. Raises `ModelLoadError`."""
    scheduler = _scheduler(replace(config, batching=None), engine, lambda run: None)
    for warmup in config.warmups:
        # A sequence has one row at a time, so many rows are as many sequences.
        requests = range(max(1, warmup.rows) if config.sequences else 1)
        rows = 1 if config.sequences and warmup.rows else warmup.rows
        inputs = {name: _tensor(item, rows) for name, item in warmup.inputs.items()}
        for _ in range(max(1, warmup.count)):
            try:
                await asyncio.gather(
                    *(
                        _run(scheduler, InferRequest(config.name, inputs, sequence=step), rows or 1)
                        for step in (_warmup_step(config, number) for number in requests)
                    )
                )
            except SlipwayError as error:
                raise ModelLoadError(f"warm-up {warmup.name!r} failed: {error}") from error


async def _run(scheduler: Scheduler | StreamScheduler, request: InferRequest, rows: int) -> None:
    if isinstance(scheduler, StreamScheduler):
        async with aclosing(scheduler.stream(request, rows)) as responses:
            async for _ in responses:
                pass
    else:
        await scheduler.infer(request, rows)


def _warmup_step(config: ModelConfig, number: int) -> SequenceStep | None:
    if config.sequences is None:
        return None
    has_text_ids = any(
        control.kind is ControlKind.CORRID and control.datatype == "BYTES"
        for control in config.sequences.controls
    )
    return SequenceStep(str(number + 1) if has_text_ids else number + 1, start=True, end=True)


def _tensor(item: WarmupInput, rows: int) -> Array:
    """The tensor of a warm-up input, with a batch dimension if `rows` is not 0."""
    shape = (rows, *item.shape) if rows else item.shape
    dtype = NUMPY_TYPES[item.datatype]
    if item.data is not None:
        is_text = item.datatype == "BYTES"
        one = _strings(item.data) if is_text else np.frombuffer(item.data, dtype)
        return np.ascontiguousarray(np.broadcast_to(one.reshape(item.shape), shape))
    if item.datatype == "BYTES":
        empty = np.empty(shape, dtype)
        empty.fill(b"")
        return empty
    if item.random:
        return np.random.default_rng(0).random(shape, np.float32).astype(dtype)
    return np.zeros(shape, dtype)


def _strings(data: bytes) -> Array:
    """Elements that each follow their length, four bytes little-endian, as the wire has them."""
    elements, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        elements.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return np.fromiter(elements, object, len(elements))


def _check_specs(
    where: str, wanted: Iterable[TensorSpec], present: Iterable[TensorSpec], *, sent: bool = False
) -> None:
    """Every wanted tensor must be present, with its type and a shape that agrees.

    Of tensors that are `sent`, every wanted shape must be taken; of those received, some suffice.
    """
    by_name: Mapping[str, TensorSpec] = {spec.name: spec for spec in present}
    for spec in wanted:
        found = by_name.get(spec.name)
        if found is None:
            raise ModelLoadError(
                f"{where} {spec.name!r} does not exist in the model, which has {_names(by_name)}"
            )
        if spec.datatype != found.datatype:
            raise ModelLoadError(
                f"{where} {spec.name!r} is declared {spec.datatype}, the model has {found.datatype}"
            )
        agree = len(spec.shape) == len(found.shape) and all(
            have in (DYNAMIC, want) or (want == DYNAMIC and not sent)
            for want, have in zip(spec.shape, found.shape, strict=True)
        )
        if not agree:
            raise ModelLoadError(
                f"{where} {spec.name!r} is declared with shape {_shape(spec.shape)} (batch"
                f" dimension included), the model has {_shape(found.shape)}"
            )


def _names(names: Iterable[str]) -> str:
    return "[" + ",".join(repr(name) for name in sorted(names)) + "]"


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(str(size) for size in shape) + "]"
