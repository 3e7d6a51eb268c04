"""One loaded version of a model: engine, scheduler and task joined."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from serving.config import ModelConfig
from serving.engines import load_engine
from serving.engines.base import Engine
from serving.errors import InvalidRequest, ModelLoadError
from serving.repository import ModelVersion, verify_checksums
from serving.scheduling.dynamic import DynamicScheduler
from serving.scheduling.policy import BatchPolicy
from serving.tasks import Task, load_task
from serving.types import DATATYPES, DYNAMIC, InferRequest, InferResponse, TensorSpec


class Model:
    """Checks requests against the model's specs and lets the scheduler run them."""

    def __init__(
        self,
        config: ModelConfig,
        version: str,
        engine: Engine,
        task: Task | None,
        on_run: Callable[[int], None],
    ):
        self.config = config
        self.version = version
        self.task = task
        self._engine = engine
        self._inputs = {spec.name: spec for spec in config.inputs}
        self._output_names = {spec.name for spec in config.outputs}
        self._scheduler = DynamicScheduler(
            engine,
            BatchPolicy(config.max_batch_size or 1, config.batching),
            instances=config.instance_count,
            batches=config.max_batch_size > 0,
            on_run=on_run,
        )

    @classmethod
    async def load(cls, found: ModelVersion, on_run: Callable[[int], None]) -> Model:
        """Load one version directory. Raises `ModelLoadError` with what is wrong, and where."""
        engine, task = await asyncio.to_thread(_load_parts, found)
        return cls(found.config, str(found.version), engine, task, on_run)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._scheduler.depth

    def rows(self, request: InferRequest) -> int:
        """The number of rows a request has (1 for a model without a batch dimension).

        Raises `InvalidRequest`, naming the tensor, for whatever does not fit the model.
        """
        name = self.config.name
        if request.inputs.keys() != self._inputs.keys():
            self._refuse_names(request)
        # In the model's order, so that callers who order them differently can share a batch.
        request.inputs = {input_name: request.inputs[input_name] for input_name in self._inputs}
        rows = 0
        for input_name, tensor in request.inputs.items():
            spec = self._inputs[input_name]
            datatype = DATATYPES[tensor.dtype]
            if datatype != spec.datatype:
                raise InvalidRequest(
                    f"inference input {input_name!r} data-type is {datatype!r},"
                    f" but model {name!r} expects {spec.datatype!r}"
                )
            if not spec.admits(tensor.shape):
                raise InvalidRequest(
                    f"unexpected shape for input {input_name!r} for model {name!r}."
                    f" Expected {_shape(spec.shape)}, got {_shape(tensor.shape)}"
                )
            if self.config.max_batch_size:
                if rows not in (0, len(tensor)):
                    raise InvalidRequest(
                        f"input {input_name!r} batch size does not match other inputs for {name!r}"
                    )
                rows = len(tensor)
                if not 1 <= rows <= self.config.max_batch_size:
                    raise InvalidRequest(
                        f"inference request batch-size must be <= {self.config.max_batch_size}"
                        f" and at least 1 for {name!r}, got {rows}"
                    )
        for output_name in request.outputs:
            if output_name not in self._output_names:
                raise InvalidRequest(
                    f"unexpected inference output {output_name!r} for model {name!r},"
                    f" which has {_names(self._output_names)}"
                )
        return rows or 1

    async def infer(self, request: InferRequest, rows: int) -> InferResponse:
        """Run a request of `rows` rows and keep the outputs that it asked for."""
        outputs = await self._scheduler.infer(request, rows)
        wanted = request.outputs or [spec.name for spec in self.config.outputs]
        return InferResponse(
            model_name=self.config.name,
            model_version=self.version,
            outputs={name: outputs[name] for name in wanted},
            id=request.id,
        )

    def give_up(self) -> None:
        """Accept nothing more, and fail what waits."""
        self._scheduler.give_up()

    async def close(self) -> None:
        """Finish what was accepted, then release the engine."""
        await self._scheduler.stop()
        await self._engine.close()

    def _refuse_names(self, request: InferRequest) -> None:
        name = self.config.name
        for unknown in request.inputs.keys() - self._inputs.keys():
            raise InvalidRequest(
                f"unexpected inference input {unknown!r} for model {name!r},"
                f" which has {_names(self._inputs)}"
            )
        missing = self._inputs.keys() - request.inputs.keys()
        raise InvalidRequest(
            f"expected {len(self._inputs)} inputs but got {len(request.inputs)} inputs for model"
            f" {name!r}. Got input(s) {_names(request.inputs)}, but missing required input(s)"
            f" {_names(missing)}. Please provide all required input(s)."
        )


def _load_parts(found: ModelVersion) -> tuple[Engine, Task | None]:
    verify_checksums(found.directory)
    engine = load_engine(found.config, found.directory)
    where = f"{found.directory.parent}/config.pbtxt"
    _check_specs(f"{where}: input", found.config.inputs, engine.inputs, sent=True)
    _check_specs(f"{where}: output", found.config.outputs, engine.outputs)
    for missing in {spec.name for spec in engine.inputs} - {s.name for s in found.config.inputs}:
        raise ModelLoadError(f"{where}: input {missing!r} of the graph is not declared")
    if found.config.task is None:
        return engine, None
    task = load_task(found.config.task, found.directory)
    _check_specs(f"{where}: task input", task.inputs, found.config.inputs, sent=True)
    _check_specs(f"{where}: task output", task.outputs, found.config.outputs)
    return engine, task


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
