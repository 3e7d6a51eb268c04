"""From a version directory to a model that is ready to serve: engine, scheduler and task joined."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from serving.cache import ResponseCache
from serving.completion import complete
from serving.config import STEPPER, ModelConfig
from serving.engines import load_engine
from serving.engines.base import Engine, StreamingEngine
from serving.errors import ModelLoadError, SlipwayError
from serving.interface import engine_inputs, engine_outputs
from serving.model import Model, Scheduler
from serving.repository import ModelVersion, verify_checksums
from serving.scheduling.batch import BatchLayout
from serving.scheduling.dynamic import DynamicScheduler
from serving.scheduling.ensemble import EnsembleScheduler, check_members
from serving.scheduling.meter import Meter
from serving.scheduling.padding import PaddingRule
from serving.scheduling.policy import BatchPolicy
from serving.scheduling.returns import Returns
from serving.scheduling.sequence import SequenceScheduler
from serving.scheduling.stepper import Stepper
from serving.scheduling.stepping import StepScheduler
from serving.scheduling.streaming import StreamScheduler
from serving.steppers import load_stepper
from serving.tasks import Task, load_task
from serving.types import DYNAMIC, InferRequest, InferResponse, Run, TensorSpec
from serving.warmup import warm_up


@dataclass(frozen=True)
class Surroundings:
    """What a model needs of the process that it is loaded into."""

    cache: ResponseCache
    infer: Callable[[InferRequest], Awaitable[InferResponse]]
    """How an ensemble asks its members."""
    find: Callable[[str, str], ModelConfig]
    """The config of another model that is loaded. Raises `NotFound`."""


async def load_model(found: ModelVersion, surroundings: Surroundings, meter: Meter) -> Model:
    """Load one version directory and run its warm-up requests.

    `meter` is told of all that the model does. Raises `ModelLoadError` with what is wrong, and
    where.
    """
    version, config = str(found.version), found.config
    if config.steps:
        check_members(config, surroundings.find)
        ensemble = EnsembleScheduler(config, surroundings.infer, meter.ran)
        config = replace(config, labels=_labels(config, surroundings))
        return Model(
            config,
            version,
            ensemble,
            task=None,
            cache=surroundings.cache,
            release=ensemble.stop,
        )
    if STEPPER in config.parameters:
        return await _load_stepped(found, surroundings, meter)
    config, engine, task = await asyncio.to_thread(_load_parts, found)
    try:
        scheduler = _scheduler(config, engine, meter.ran)
        # Past any queue.
        await warm_up(config, _scheduler(replace(config, batching=None), engine, lambda run: None))
    except SlipwayError as error:
        await engine.close()
        raise ModelLoadError(f"{found.directory}: {error}") from error
    except BaseException:
        await engine.close()
        raise
    return Model(
        config, version, scheduler, task=task, cache=surroundings.cache, release=engine.close
    )


async def _load_stepped(found: ModelVersion, surroundings: Surroundings, meter: Meter) -> Model:
    config = found.config

    def load() -> tuple[Stepper[Any], Task | None]:
        verify_checksums(found.directory)
        stepper = load_stepper(config.parameters[STEPPER], config, found.directory)
        where = f"{found.directory.parent}/config.pbtxt"
        try:
            _check_specs(f"{where}: input", config.inputs, stepper.inputs, sent=True)
            _check_specs(f"{where}: output", config.outputs, stepper.outputs)
            stepper.warm()
            return stepper, _task(found, config)
        except BaseException:
            stepper.close()
            raise

    stepper, task = await asyncio.to_thread(load)
    scheduler = StepScheduler(stepper, config.batching, meter=meter)

    async def release() -> None:
        stepper.close()

    try:
        await warm_up(config, scheduler)
    except BaseException:
        await scheduler.stop()
        await release()
        raise
    return Model(
        config,
        str(found.version),
        scheduler,
        task=task,
        cache=surroundings.cache,
        release=release,
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
    return config, engine, _task(found, config)


def _task(found: ModelVersion, config: ModelConfig) -> Task | None:
    if config.task is None:
        return None
    where = f"{found.directory.parent}/config.pbtxt"
    task = load_task(config.task, found.directory)
    _check_specs(f"{where}: task input", task.inputs, config.inputs, sent=True)
    _check_specs(f"{where}: task output", task.outputs, config.outputs)
    return task


def _scheduler(
    config: ModelConfig, engine: Engine, on_run: Callable[[Run], None]
) -> Scheduler | StreamScheduler:
    instances = config.instance_count
    padding = PaddingRule.read(config)
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
    returns = Returns(instances=instances)
    return DynamicScheduler(
        engine,
        BatchPolicy(config.max_batch_size or 1, config.batching, padding, returns),
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
