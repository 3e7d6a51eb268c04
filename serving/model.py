"""One loaded version of a model, as a request meets it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from time import monotonic
from typing import Any, Protocol, TypeVar

from serving.cache import ResponseCache
from serving.config import ModelConfig
from serving.errors import InvalidRequest
from serving.scheduling.driver import Driver
from serving.scheduling.sequence import SequenceScheduler
from serving.scheduling.stepping import StepScheduler
from serving.scheduling.streaming import StreamScheduler
from serving.tasks import Task
from serving.types import DATATYPES, InferRequest, InferResponse, Tensors

T = TypeVar("T")
_generations = itertools.count()
_BATCH_NOTE = ". NOTE: the model batches (max_batch_size), so the first dimension counts the rows"


class Scheduler(Protocol):
    """When a request runs, and together with whom."""

    @property
    def depth(self) -> int:
        """Requests that wait, not counting those that run."""
        ...

    async def infer(self, request: InferRequest, rows: int) -> Tensors:
        """Run a request of `rows` rows when its turn comes."""
        ...

    def give_up(self) -> None:
        """Accept nothing more, and fail what waits."""
        ...

    async def stop(self) -> None:
        """Accept nothing more, and finish what was accepted."""
        ...


AnyScheduler = Scheduler | StreamScheduler | StepScheduler[Any]


class Model:
    """Checks requests against the model's specs and lets its scheduler run them.

    A `StreamScheduler` can only stream, a `StepScheduler` can also answer at the end, and every
    other `Scheduler` answers once. `release` frees what the model holds, when nothing runs any
    more.
    """

    def __init__(
        self,
        config: ModelConfig,
        version: str,
        scheduler: AnyScheduler,
        *,
        task: Task | None,
        cache: ResponseCache,
        release: Callable[[], Awaitable[None]],
    ):
        self.config = config
        self.version = version
        self.task = task
        self._scheduler = scheduler
        self._release = release
        self._inputs = {spec.name: spec for spec in config.inputs}
        self._required = {spec.name for spec in config.inputs if not spec.optional}
        self._output_names = [spec.name for spec in config.outputs]
        self._cache = cache if config.cache_responses else None
        self.queue: Driver[Any] | None = None
        """Where a request can be put that is not waited for, if it is so simple with this model."""
        if isinstance(scheduler, Driver) and self._cache is None:
            self.queue = scheduler
        self._memories: dict[type, Any] = {}
        # Tells this model's cached answers from those of the same version loaded before.
        self._generation = next(_generations)

    def memory(self, kind: type[T]) -> T:
        """What a front remembers of this model's calls, for as long as it is there."""
        found: T | None = self._memories.get(kind)
        if found is None:
            found = self._memories[kind] = kind()
        return found

    def renew(self) -> None:
        """What was cached before holds no more: a model that this one uses has changed."""
        self._generation = next(_generations)

    def continues(self, id: int | str) -> bool:
        """Whether a sequence of that id has begun here and not ended."""
        return isinstance(self._scheduler, SequenceScheduler) and self._scheduler.continues(id)

    @property
    def live_sequences(self) -> int:
        """Sequences that have begun and not ended."""
        return self._scheduler.live if isinstance(self._scheduler, SequenceScheduler) else 0

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._scheduler.depth

    @property
    def queue_capacity(self) -> int | None:
        """Requests that may wait; None if that is not bounded."""
        rules = self.config.batching
        if rules is None or self.config.sequences is not None:
            return None
        levels = range(min(1, rules.priority_levels), rules.priority_levels + 1)
        sizes = [rules.policy(level).max_queue_size for level in levels]
        return sum(sizes) if all(sizes) else None

    @property
    def slots(self) -> int:
        """Of a model that answers in steps: the slots that there are."""
        return self._scheduler.slots if isinstance(self._scheduler, StepScheduler) else 0

    @property
    def running_slots(self) -> int:
        """Of a model that answers in steps: the slots that are taken."""
        return self._scheduler.running if isinstance(self._scheduler, StepScheduler) else 0

    @property
    def memory_bytes(self) -> int:
        """Of a model that answers in steps: what is set aside for the requests that run."""
        return self._scheduler.memory_bytes if isinstance(self._scheduler, StepScheduler) else 0

    @property
    def answers_once(self) -> bool:
        """Whether `infer` can answer: all that a decoupled model streams may make one answer."""
        return not isinstance(self._scheduler, StreamScheduler)

    def rows(self, request: InferRequest) -> int:
        """The number of rows a request has (1 for a model without a batch dimension).

        Raises `InvalidRequest`, naming the tensor, for whatever does not fit the model.
        """
        if request.rows:
            return request.rows
        name = self.config.name
        given = request.inputs.keys()
        if given != self._inputs.keys() and not self._required <= given <= self._inputs.keys():
            self._refuse_names(request)
        # In the model's order, so that callers who order them differently can share a batch.
        request.inputs = {key: request.inputs[key] for key in self._inputs if key in given}
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
                    + (_BATCH_NOTE if self.config.max_batch_size else "")
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
        """Run a request of `rows` rows and keep the outputs that it asked for.

        The model must be one that `answers_once`.
        """
        assert not isinstance(self._scheduler, StreamScheduler)
        if self._cache is None or request.sequence is not None:
            return self.response(request, await self._scheduler.infer(request, rows))
        stamps = request.stamps
        key = self._cache.key(request, self._generation)
        found = self._cache.get(key)
        stamps.looked_up = monotonic()
        if found is not None:
            stamps.cached = True
            stamps.answered = stamps.looked_up
            return self.response(request, found)
        response = self.response(request, await self._scheduler.infer(request, rows))
        self._cache.put(key, response.outputs)
        return response

    async def stream(self, request: InferRequest, rows: int) -> AsyncGenerator[InferResponse]:
        """Run a request and pass on its responses as they come: one, unless decoupled."""
        if isinstance(self._scheduler, StreamScheduler | StepScheduler):
            async with aclosing(self._scheduler.stream(request, rows)) as parts:
                async for outputs in parts:
                    yield self.response(request, outputs)
        else:
            yield await self.infer(request, rows)

    def give_up(self) -> None:
        """Accept nothing more, and fail what waits."""
        self._scheduler.give_up()

    async def close(self) -> None:
        """Finish what was accepted, then release the engine."""
        await self._scheduler.stop()
        await self._release()

    def response(self, request: InferRequest, outputs: Tensors) -> InferResponse:
        """Of what a scheduler returned, the outputs that were asked for."""
        wanted: Sequence[str] = request.outputs or self._output_names
        kept: Tensors = {}
        for name in wanted:
            kept[name] = outputs[name]
        return InferResponse(self.config.name, self.version, kept, request.id)

    def _refuse_names(self, request: InferRequest) -> None:
        name = self.config.name
        for unknown in request.inputs.keys() - self._inputs.keys():
            raise InvalidRequest(
                f"unexpected inference input {unknown!r} for model {name!r},"
                f" which has {_names(self._inputs)}"
            )
        missing = self._required - request.inputs.keys()
        raise InvalidRequest(
            f"expected {len(self._required)} inputs but got {len(request.inputs)} inputs for model"
            f" {name!r}. Got input(s) {_names(request.inputs)}, but missing required input(s)"
            f" {_names(missing)}. Please provide all required input(s)."
        )


def _names(names: Iterable[str]) -> str:
    return "[" + ",".join(repr(name) for name in sorted(names)) + "]"


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(str(size) for size in shape) + "]"
