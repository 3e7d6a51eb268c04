"""A model made of models: each step starts when the tensors it needs are there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic

from serving.config import EnsembleStep, ModelConfig
from serving.errors import (
    InferenceFailed,
    ModelLoadError,
    NotFound,
    SlipwayError,
    Unavailable,
)
from serving.scheduling.outcomes import unloading
from serving.types import DYNAMIC, Array, InferRequest, InferResponse, Run, Tensors, TensorSpec


class EnsembleScheduler:
    """Runs the steps of `ensemble_scheduling` for each request by itself.

    Nothing waits here: the members batch the steps of different requests. `infer` asks a member;
    `on_run` is told of each run through all steps.
    """

    depth = 0

    def __init__(
        self,
        config: ModelConfig,
        infer: Callable[[InferRequest], Awaitable[InferResponse]],
        on_run: Callable[[Run], None],
    ):
        self._config = config
        self._infer = infer
        self._on_run = on_run
        self._stopping = False

    async def infer(self, request: InferRequest, rows: int) -> Tensors:
        """The outputs that are wanted; steps that none of them needs are not run.

        Raises what the first step to fail raised, naming that step; the other steps are cancelled.
        """
        name = self._config.name
        if self._stopping:
            raise unloading(name)
        started = monotonic()
        wanted = request.outputs or tuple(spec.name for spec in self._config.outputs)
        steps = self._needed(wanted)
        loop = asyncio.get_running_loop()
        produced: dict[str, asyncio.Future[Array]] = {
            tensor: loop.create_future()
            for step in steps.values()
            for tensor in step.outputs.values()
        }
        for tensor, value in request.inputs.items():
            produced[tensor] = loop.create_future()
            produced[tensor].set_result(value)

        async def run(position: int, step: EnsembleStep) -> None:
            try:
                response = await self._infer(await _step_request(step, request, produced, started))
            except SlipwayError as error:
                where = f"in ensemble {name!r}, step {position} (model {step.model_name!r}): "
                raise _at(where, error) from error
            for output, tensor in step.outputs.items():
                produced[tensor].set_result(response.outputs[output])

        running = [asyncio.create_task(run(*item)) for item in steps.items()]
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
        for task in running:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        ended = monotonic()
        stamps = request.stamps
        stamps.queued = stamps.batched = stamps.started = started
        stamps.computed = stamps.answered = ended
        self._on_run(Run(rows, started, started, ended, ended))
        return {tensor: produced[tensor].result() for tensor in wanted}

    def give_up(self) -> None:
        """Refuse new requests; their members give up those that wait."""
        self._stopping = True

    async def stop(self) -> None:
        """Refuse new requests. Nothing waits here."""
        self._stopping = True

    def _needed(self, wanted: Iterable[str]) -> dict[int, EnsembleStep]:
        """The steps, by position from 1, that lead to the wanted tensors."""
        needed, steps = set(wanted), dict(enumerate(self._config.steps, 1))
        found: dict[int, EnsembleStep] = {}
        while more := {
            position: step
            for position, step in steps.items()
            if position not in found and needed & set(step.outputs.values())
        }:
            found |= more
            needed |= {tensor for step in more.values() for tensor in step.inputs.values()}
        return found


def check_members(config: ModelConfig, find: Callable[[str, str], ModelConfig]) -> None:
    """Check that every step's model is loaded and fits, and does not in turn use this ensemble.

    Raises `ModelLoadError`, naming the step and the tensor.
    """
    specs = {spec.name: spec for spec in config.inputs}
    members: list[tuple[str, EnsembleStep, ModelConfig]] = []
    for position, step in enumerate(config.steps, 1):
        where = f"ensemble {config.name!r}, step {position} (model {step.model_name!r})"
        try:
            member = find(step.model_name, step.model_version)
        except NotFound as error:
            raise ModelLoadError(f"{where}: the model is not loaded") from error
        if way := _way_to(config.name, step, find, set()):
            raise ModelLoadError(f"{where}: the ensemble would use itself: {' → '.join(way)}")
        if member.decoupled:
            raise ModelLoadError(f"{where}: a decoupled model cannot be a step")
        if member.max_batch_size < config.max_batch_size:
            raise ModelLoadError(
                f"{where}: the ensemble takes {config.max_batch_size} rows,"
                f" the model only {member.max_batch_size}"
            )
        members.append((where, step, member))
        outputs = {spec.name: spec for spec in member.outputs}
        for name, tensor in step.outputs.items():
            if name not in outputs:
                raise ModelLoadError(f"{where}: the model has no output {name!r}")
            specs[tensor] = outputs[name]
    for where, step, member in members:
        inputs = {spec.name: spec for spec in member.inputs}
        for name, tensor in step.inputs.items():
            if name not in inputs:
                raise ModelLoadError(f"{where}: the model has no input {name!r}")
            _check_fit(where, tensor, specs[tensor], inputs[name])
        for name in inputs.keys() - step.inputs.keys():
            if not inputs[name].optional:
                raise ModelLoadError(f"{where}: input {name!r} is not in its input_map")
    for spec in config.outputs:
        _check_fit(f"ensemble {config.name!r}", spec.name, specs[spec.name], spec)


def _way_to(
    name: str,
    step: EnsembleStep,
    find: Callable[[str, str], ModelConfig],
    seen: set[tuple[str, str]],
) -> list[str]:
    """The models from this step down to the one of that name; empty if it is not below."""
    model = (step.model_name, step.model_version)
    if step.model_name == name:
        return [name]
    if model in seen:
        return []
    seen.add(model)
    try:
        steps = find(*model).steps
    except NotFound:  # a member's matter; what is not there leads nowhere
        return []
    for below in steps:
        if way := _way_to(name, below, find, seen):
            return [step.model_name, *way]
    return []


def _check_fit(where: str, tensor: str, given: TensorSpec, taken: TensorSpec) -> None:
    agree = len(given.shape) == len(taken.shape) and all(
        DYNAMIC in (have, want) or have == want
        for have, want in zip(given.shape, taken.shape, strict=True)
    )
    if given.datatype != taken.datatype or not agree:
        raise ModelLoadError(
            f"{where}: tensor {tensor!r} is {given.datatype} {list(given.shape)},"
            f" but {taken.datatype} {list(taken.shape)} is expected"
        )


async def _step_request(
    step: EnsembleStep,
    request: InferRequest,
    produced: dict[str, asyncio.Future[Array]],
    started: float,
) -> InferRequest:
    """What a member is asked, when all that it needs is there."""
    # An optional input that the caller left out is left out here, too.
    inputs = {name: await produced[t] for name, t in step.inputs.items() if t in produced}
    elapsed = monotonic() - started
    return InferRequest(
        model_name=step.model_name,
        model_version=step.model_version,
        inputs=inputs,
        outputs=tuple(step.outputs),
        id=request.id,
        priority=request.priority,
        # A microsecond is left where none is: 0 would be no timeout at all.
        timeout_s=max(1e-6, request.timeout_s - elapsed) if request.timeout_s > 0 else 0.0,
        deadline=request.deadline,
        sequence=request.sequence,
        parameters=request.parameters,
        trace=trace.below(trace.compute_id) if (trace := request.trace) is not None else None,
    )


def _at(where: str, error: SlipwayError) -> SlipwayError:
    """The same kind of error, with the place where it happened."""
    if isinstance(error, NotFound):
        return Unavailable(f"{where}{error}")
    if isinstance(error, InferenceFailed):
        return InferenceFailed(str(error), where=where + error.where)
    return type(error)(f"{where}{error}")
