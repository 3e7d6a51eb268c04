"""Drives a policy with the event loop: the only place that waits for instances."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Generic, Protocol, TypeVar

from serving.calls import Batch
from serving.engines.base import Engine
from serving.errors import SlipwayError
from serving.scheduling.batch import BatchLayout
from serving.scheduling.outcomes import Answer, expired, fail, failure, given_up, unloading
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


class _Batch(Generic[E]):
    """Entries on their way through the engine."""

    __slots__ = ("batched", "entries", "inputs", "parts", "rows", "stacked", "started")

    rows: Sequence[E | None]
    inputs: list[Tensors]
    """Of each row."""
    stacked: Tensors
    started: float
    parts: Sequence[Tensors]
    """Each row's outputs, in the end."""

    def __init__(self, entries: list[E]):
        self.entries = entries
        self.batched = monotonic()


class Driver(ABC, Generic[E]):
    """Sees to it that each request that `infer` accepts gets exactly one outcome.

    It returns, or it raises `Expired`, `InferenceFailed`, `Unavailable` (stopped meanwhile), what
    the policy has against it, or, for a caller that goes away, `asyncio.CancelledError`. None of
    these touches another request of the same batch: when a batch fails, its requests run again
    alone.

    What the engine computes at once is computed and handed out in the turn of the loop in which it
    is decided, one batch a turn; a task waits for everything else.

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
        # Of a driver that is being stopped, when nothing is left.
        self._idle = asyncio.Event()
        # Not within the call of one who asks, or is told and may ask again.
        self._may_compute = True
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
        if not self._decision_is_due:
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
        if self._stopping and not self._runs and not len(self._queue):
            self._idle.set()

    def _expire_again(self, now: float) -> float:
        for entry in [entry for entry in self._again if entry.expires_at <= now]:
            self._again.pop(entry, None)  # Who was told may have asked again, and come here.
            fail(entry.answer, expired())
        return min((entry.expires_at for entry in self._again), default=math.inf)

    def _start(self, entries: list[E], finished: Callable[[Run | None], None]) -> bool:
        """Run a batch on an instance that is free, and again will be when it has `finished`.

        That is told of the run; None if it failed, and what came of it took several. Returns
        whether that is over, and the answers are handed out: then the loop has been kept for long
        enough, and what is next is to be decided in another turn.
        """
        batch = _Batch(entries)
        run = error = None
        try:
            self._stack(batch)
            outputs = self._engine.infer_at_once(batch.stacked) if self._may_compute else None
            if outputs is not None:
                run = self._cut(batch, outputs)
        except Exception as raised:
            error = failure(raised)
        if run is not None:
            finished(run)
            self._hand_out(batch, run)
            return True
        task = self._loop.create_task(self._occupy_instance(batch, error, finished))
        self._runs.add(task)
        task.add_done_callback(self._has_ended)
        return False

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        if self._stopping:
            self._decide_soon()

    async def _occupy_instance(
        self,
        batch: _Batch[E],
        error: SlipwayError | None,
        finished: Callable[[Run | None], None],
    ) -> None:
        run = None
        try:
            if error is None:
                try:
                    run = await self._run(batch)
                except Exception as raised:
                    error = failure(raised)
            if error is not None:
                await self._run_apart(batch.entries, error)
        finally:
            finished(run)
        # Before the answers are handed out: those who get them would keep the loop from the
        # instance, which can run the next batch meanwhile.
        self._decide()
        if run is not None:
            self._hand_out(batch, run)

    async def _run_apart(self, entries: list[E], error: SlipwayError) -> None:
        """One request's values may be what the model cannot bear: only that one shall fail."""
        if len(entries) == 1:
            fail(entries[0].answer, error)
            return
        self._again.update(dict.fromkeys(entries))
        self._decide_soon()  # which also sees to it that they expire in time
        for entry in entries:
            self._expire_again(monotonic())
            self._again.pop(entry, None)
            if entry.answer.done():
                continue
            alone = _Batch([entry])
            try:
                self._stack(alone)
                run = await self._run(alone)
            except Exception as raised:
                fail(entry.answer, failure(raised))
            else:
                self._hand_out(alone, run)

    async def _run(self, batch: _Batch[E]) -> Run:
        return self._cut(batch, await self._engine.infer(batch.stacked))

    def _stack(self, batch: _Batch[E]) -> None:
        """Make of a batch what the engine takes."""
        for entry in batch.entries:
            entry.request.stamps.batched = batch.batched
        batch.rows = self._rows(batch.entries)
        batch.inputs = self._inputs(batch.rows)
        batch.stacked = self._layout.stack(batch.inputs)
        batch.started = monotonic()

    def _cut(self, batch: _Batch[E], outputs: Tensors) -> Run:
        """Make of what the engine returned what each row gets, and keep what has to be kept."""
        computed = monotonic()
        counts = [1 if entry is None else entry.rows for entry in batch.rows]
        batch.parts = self._layout.split(outputs, batch.inputs, counts)
        self._keep(batch.rows, batch.parts)
        own, padding = self._layout.padding(batch.inputs, batch.stacked)
        entries = batch.entries
        rows = sum([entry.rows for entry in entries])
        run = Run(rows, batch.batched, batch.started, computed, monotonic(), own, padding)
        if traces := [e.request.trace for e in entries if e.request.trace is not None]:
            told = Batch(rows, len(entries), batch.batched, run.answered, tuple(traces))
            for trace in traces:
                trace.batch = told
        return run

    def _hand_out(self, batch: _Batch[E], run: Run) -> None:
        self._on_run(run)
        before, self._may_compute = self._may_compute, False
        try:
            for owner, part in zip(batch.rows, batch.parts, strict=True):
                if owner is None:
                    continue
                stamps = owner.request.stamps
                stamps.started, stamps.computed = run.started, run.computed
                stamps.answered = run.answered
                if not owner.answer.done():
                    owner.answer.set_result(part)
        finally:
            self._may_compute = before
