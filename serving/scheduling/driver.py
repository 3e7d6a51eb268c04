"""Drives a policy with the event loop: the only place that waits for instances."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Generic, Protocol, TypeVar

from serving.calls import Batch
from serving.engines.base import Engine
from serving.errors import InferenceFailed, SlipwayError
from serving.scheduling.batch import BatchLayout
from serving.scheduling.outcomes import Answer, expired, fail, given_up, unloading
from serving.types import InferRequest, Run, Tensors


class Entry(Protocol):
    """A request in the hands of a driver."""

    request: InferRequest
    answer: Answer[Tensors]
    rows: int
    expires_at: float
    """When it is answered at the latest, unless it runs by then."""


E = TypeVar("E", bound=Entry)


class Queue(Protocol[E]):
    """What a driver needs to know of any policy."""

    def __len__(self) -> int: ...

    def clear(self) -> list[E]:
        """Give up on all that wait, and return them."""
        ...


@dataclass(frozen=True, slots=True)
class _Computed(Generic[E]):
    """The rows of a run, each row's outputs, and what is told of the run."""

    rows: Sequence[E | None]
    parts: Sequence[Tensors]
    run: Run


class Driver(ABC, Generic[E]):
    """Sees to it that each request that `infer` accepts gets exactly one outcome.

    It returns, or it raises `Expired`, `InferenceFailed`, `Unavailable` (stopped meanwhile), what
    the policy has against it, or, for a caller that goes away, `asyncio.CancelledError`. None of
    these touches another request of the same batch: when a batch fails, its requests run again
    alone.

    `layout` knows how requests become a batch; `on_run` is told of every run of the engine, with
    the rows that were asked for.
    """

    def __init__(
        self,
        engine: Engine,
        queue: Queue[E],
        layout: BatchLayout,
        *,
        on_run: Callable[[Run], None],
    ):
        self._engine = engine
        self._queue = queue
        self._layout = layout
        self._on_run = on_run
        self._runs: set[asyncio.Task[None]] = set()
        # Those of failed batches that have yet to run alone.
        self._again: dict[E, None] = {}
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._decision_is_due = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def depth(self) -> int:
        """Requests that wait, not counting those in a running batch."""
        return len(self._queue)

    async def infer(self, request: InferRequest, rows: int) -> Tensors:
        """Wait for a batch, run in it, return this request's rows of every output."""
        answer: asyncio.Future[Tensors] = self._loop.create_future()
        entry = self.submit(request, rows, answer)
        try:
            return await answer
        except asyncio.CancelledError:
            if not answer.cancelled():
                answer.exception()  # seen, and of no use to anyone any more
            self.withdraw(entry)
            raise

    def submit(self, request: InferRequest, rows: int, answer: Answer[Tensors]) -> E:
        """As `infer`, for a caller that is told and need not be woken."""
        if self._stopping:
            raise unloading(request.model_name)
        request.stamps.queued = now = monotonic()
        entry = self._accept(request, rows, answer, now)
        self._idle.clear()
        self._decide_soon()
        return entry

    def withdraw(self, entry: E) -> None:
        """Nobody waits for this request any more; its answer is `done`."""
        self._forget(entry)
        self._decide_soon()

    def give_up(self) -> None:
        """Refuse new requests and fail those that wait. What runs goes on."""
        self._refuse()
        for entry in (*self._queue.clear(), *self._again):
            fail(entry.answer, given_up())
        self._again.clear()
        self._decide_soon()

    async def stop(self) -> None:
        """Refuse new requests and finish the accepted ones.

        That takes as long as they take: a run of the engine cannot be interrupted.
        """
        self._refuse()
        self._decide()
        await self._idle.wait()

    @abstractmethod
    def _accept(self, request: InferRequest, rows: int, answer: Answer[Tensors], now: float) -> E:
        """Check a request and queue it."""

    @abstractmethod
    def _forget(self, entry: E) -> None:
        """Take a request whose caller is gone out of the queue, if it is still there."""

    @abstractmethod
    def _act(self, now: float) -> float:
        """Do what the policy decides; returns when to ask it again."""

    def _refuse(self) -> None:
        self._stopping = True

    def _rows(self, batch: list[E]) -> Sequence[E | None]:
        """What the rows of a run are; None is a row of nobody's."""
        return batch

    def _inputs(self, rows: Sequence[E | None]) -> list[Tensors]:
        """The inputs of each."""
        return [entry.request.inputs for entry in rows if entry is not None]

    def _keep(self, rows: Sequence[E | None], outputs: Sequence[Tensors]) -> None:
        """Remember what has to be of the outputs of each. If this raises, the run has failed."""

    def _decide_soon(self) -> None:
        """Decide once in the next turn of the loop, when all that came in this one is queued."""
        if not self._decision_is_due:
            self._decision_is_due = True
            self._loop.call_soon(self._decide)

    def _decide(self) -> None:
        self._decision_is_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = monotonic()
        wake_at = self._act(now)
        if self._again:
            wake_at = min(wake_at, self._expire_again(now))
        if wake_at < math.inf:
            self._timer = self._loop.call_later(max(0.0, wake_at - now), self._decide)
        if not self._runs and not len(self._queue):
            self._idle.set()

    def _expire_again(self, now: float) -> float:
        for entry in [entry for entry in self._again if entry.expires_at <= now]:
            del self._again[entry]
            fail(entry.answer, expired())
        return min((entry.expires_at for entry in self._again), default=math.inf)

    def _start(self, batch: list[E], finished: Callable[[Run | None], None]) -> None:
        """Run a batch on an instance that is free, and again will be when it has `finished`.

        That is told of the run; None if it failed, and what came of it took several.
        """
        task = self._loop.create_task(self._occupy_instance(batch, finished))
        self._runs.add(task)
        task.add_done_callback(self._has_ended)

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        self._decide_soon()

    async def _occupy_instance(
        self, batch: list[E], finished: Callable[[Run | None], None]
    ) -> None:
        run = None
        try:
            computed = await self._compute(batch)
            if isinstance(computed, SlipwayError):
                await self._run_apart(batch, computed)
            else:
                run = computed.run
        finally:
            finished(run)
        # Before the answers are handed out: those who get them would keep the loop from the
        # instance, which can run the next batch meanwhile.
        self._decide()
        if isinstance(computed, _Computed):
            self._hand_out(computed)

    async def _run_apart(self, batch: list[E], error: SlipwayError) -> None:
        """One request's values may be what the model cannot bear: only that one shall fail."""
        if len(batch) == 1:
            fail(batch[0].answer, error)
            return
        self._again.update(dict.fromkeys(batch))
        self._decide_soon()  # which also sees to it that they expire in time
        for entry in batch:
            self._expire_again(monotonic())
            self._again.pop(entry, None)
            if entry.answer.done():
                continue
            computed = await self._compute([entry])
            if isinstance(computed, SlipwayError):
                fail(entry.answer, computed)
            else:
                self._hand_out(computed)

    async def _compute(self, batch: list[E]) -> _Computed[E] | SlipwayError:
        """Run one batch, and keep what has to be kept of it; or say why that failed."""
        batched = monotonic()
        for entry in batch:
            entry.request.stamps.batched = batched
        try:
            rows = self._rows(batch)
            inputs = self._inputs(rows)
            stacked = self._layout.stack(inputs)
            started = monotonic()
            outputs = await self._engine.infer(stacked)
            computed = monotonic()
            counts = [1 if entry is None else entry.rows for entry in rows]
            parts = self._layout.split(outputs, inputs, counts)
            self._keep(rows, parts)
        except SlipwayError as error:
            return error
        except Exception as error:
            failure = InferenceFailed(str(error))
            failure.__cause__ = error
            return failure
        own, padding = self._layout.padding(inputs, stacked)
        count = sum(entry.rows for entry in batch)
        run = Run(count, batched, started, computed, monotonic(), own, padding)
        if traces := tuple(e.request.trace for e in batch if e.request.trace is not None):
            told = Batch(count, len(batch), batched, run.answered, traces)
            for trace in traces:
                trace.batch = told
        return _Computed(rows, parts, run)

    def _hand_out(self, computed: _Computed[E]) -> None:
        run = computed.run
        self._on_run(run)
        for owner, part in zip(computed.rows, computed.parts, strict=True):
            if owner is None:
                continue
            stamps = owner.request.stamps
            stamps.started, stamps.computed = run.started, run.computed
            stamps.answered = run.answered
            if not owner.answer.done():
                owner.answer.set_result(part)
