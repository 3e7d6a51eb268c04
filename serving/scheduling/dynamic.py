"""Drives the batching policy with the event loop: the only place that waits for instances."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from serving.engines.base import Engine
from serving.errors import Expired, InferenceFailed, SlipwayError, Unavailable
from serving.scheduling.batch import BatchLayout
from serving.scheduling.policy import BatchPolicy, Ticket
from serving.types import InferRequest, Run, Tensors


@dataclass(slots=True, eq=False, kw_only=True)
class _Entry(Ticket):
    request: InferRequest
    answer: asyncio.Future[Tensors]


class DynamicScheduler:
    """Batches concurrent requests for one engine.

    Every request that `infer` accepts gets exactly one outcome: it returns, or it raises
    `Expired`, `InferenceFailed`, `Unavailable` (stopped meanwhile) or, for a caller that goes
    away, `asyncio.CancelledError`. None of these touches another request of the same batch.

    `layout` knows how requests become a batch; `on_run` is told of every run of the engine.
    """

    def __init__(
        self,
        engine: Engine,
        policy: BatchPolicy[_Entry],
        layout: BatchLayout,
        *,
        instances: int,
        on_run: Callable[[Run], None],
    ):
        self._engine = engine
        self._policy = policy
        self._layout = layout
        self._free_instances = instances
        self._on_run = on_run
        self._runs: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._decision_is_due = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def depth(self) -> int:
        """Requests that wait, not counting those in a running batch."""
        return len(self._policy)

    async def infer(self, request: InferRequest, rows: int) -> Tensors:
        """Wait for a batch, run in it, return this request's rows of every output."""
        if self._stopping:
            raise Unavailable(f"model {request.model_name!r} is being unloaded")
        entry = _Entry(
            request=request,
            answer=self._loop.create_future(),
            rows=rows,
            shape_key=self._layout.key(request.inputs),
            priority=request.priority,
            timeout_s=request.timeout_s,
            deadline=request.deadline,
        )
        request.stamps.queued = now = monotonic()
        self._policy.add(entry, now)
        self._idle.clear()
        self._decide_soon()
        try:
            return await entry.answer
        except asyncio.CancelledError:
            self._policy.discard(entry)
            if not entry.answer.cancelled():
                entry.answer.exception()  # seen, and of no use to anyone any more
            self._decide_soon()
            raise

    def give_up(self) -> None:
        """Refuse new requests and fail those that wait. What runs goes on."""
        self._stopping = True
        for entry in self._policy.clear():
            _fail(entry, Unavailable("the server stopped before this request's turn"))
        self._decide_soon()

    async def stop(self) -> None:
        """Refuse new requests and finish the accepted ones.

        That takes as long as they take: a run of the engine cannot be interrupted.
        """
        self._stopping = True
        await self._idle.wait()

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
        while True:
            now = monotonic()
            decision = self._policy.decide(now, instance_is_free=self._free_instances > 0)
            for entry in decision.expired:
                _fail(entry, Expired("Request timeout expired while it waited in the queue"))
            if not decision.batch:
                break
            self._start(decision.batch, now)
        if decision.wake_at < math.inf:
            self._timer = self._loop.call_later(max(0.0, decision.wake_at - now), self._decide)
        if not self._runs and not len(self._policy):
            self._idle.set()

    def _start(self, batch: list[_Entry], now: float) -> None:
        self._free_instances -= 1
        for entry in batch:
            entry.request.stamps.batched = now
        task = self._loop.create_task(self._occupy_instance(batch))
        self._runs.add(task)
        task.add_done_callback(self._instance_is_free)

    def _instance_is_free(self, task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        self._free_instances += 1
        self._decide_soon()

    async def _occupy_instance(self, batch: list[_Entry]) -> None:
        error = await self._run(batch)
        if error is None:
            return
        if len(batch) > 1:
            # One request's values may be what the model cannot bear: only that one shall fail.
            for entry in batch:
                if not entry.answer.done() and (alone := await self._run([entry])) is not None:
                    _fail(entry, alone)
        else:
            _fail(batch[0], error)

    async def _run(self, batch: list[_Entry]) -> SlipwayError | None:
        """Run one batch and hand out its rows, or return why that failed."""
        rows = [entry.rows for entry in batch]
        requests = [entry.request.inputs for entry in batch]
        batched = monotonic()
        try:
            inputs = self._layout.stack(requests)
            started = monotonic()
            outputs = await self._engine.infer(inputs)
            computed = monotonic()
            parts = self._layout.split(outputs, requests, rows)
        except SlipwayError as error:
            return error
        except Exception as error:
            failure = InferenceFailed(str(error))
            failure.__cause__ = error
            return failure
        answered = monotonic()
        self._on_run(Run(sum(rows), batched, started, computed, answered))
        for entry, part in zip(batch, parts, strict=True):
            stamps = entry.request.stamps
            stamps.started, stamps.computed, stamps.answered = started, computed, answered
            if not entry.answer.done():
                entry.answer.set_result(part)
        return None


def _fail(entry: _Entry, error: Exception) -> None:
    if not entry.answer.done():
        entry.answer.set_exception(error)
