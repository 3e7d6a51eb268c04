"""Runs the requests of a model that answers in many steps, all of them together."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic

import numpy as np

from serving.config import Batching
from serving.errors import Expired, InferenceFailed, InvalidRequest, SlipwayError
from serving.scheduling.meter import Meter
from serving.scheduling.outcomes import expired, fail, given_up, unloading
from serving.scheduling.step_policy import J, StepDecision, StepPolicy
from serving.scheduling.stepper import News, Stepper
from serving.types import Array, InferRequest, Iteration, Run, Tensors, Work

MOST_UNREAD = 16
"""Responses that may lie unread before their request makes no more."""


@dataclass(slots=True, eq=False)
class _Call(Generic[J]):
    """A request and its jobs, one for each row."""

    request: InferRequest
    jobs: Sequence[J]
    unfinished: int
    answer: asyncio.Future[Tensors]
    """Of a request that streams, done at its end and of no other use."""
    parts: list[Tensors]
    streams: bool
    last_event: float = 0.0
    unread: deque[Tensors] = field(default_factory=deque)
    has_more: asyncio.Event = field(default_factory=asyncio.Event)


class StepScheduler(Generic[J]):
    """Steps all running requests together; they join and leave between any two steps.

    A request that is accepted gets exactly one outcome: it is answered, or it raises `Expired`,
    `InferenceFailed`, `Unavailable` (stopped meanwhile) or `Overloaded` (the queue is full), or its
    caller goes away. None of these touches another that runs beside it.

    While the engine computes a step, what the step before it made is handed out.
    """

    def __init__(
        self,
        stepper: Stepper[J],
        batching: Batching | None,
        meter: Meter,
    ):
        self._stepper = stepper
        self._policy = StepPolicy[J](stepper.capacity, batching)
        self._meter = meter
        self._calls: dict[J, _Call[J]] = {}
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="steps")
        self._task = self._loop.create_task(self._iterate_forever())

    @property
    def depth(self) -> int:
        """Rows of requests that wait, not counting those that have begun."""
        return len(self._policy)

    @property
    def running(self) -> int:
        """Slots that are taken."""
        return self._policy.running

    @property
    def memory_bytes(self) -> int:
        """What is set aside for the requests that run."""
        return self._stepper.memory_bytes

    async def infer(self, request: InferRequest, rows: int) -> Tensors:
        """Run a request of `rows` rows to its end."""
        call = self._accept(request, streams=False)
        try:
            return await call.answer
        except asyncio.CancelledError:
            if not call.answer.cancelled():
                call.answer.exception()  # seen, and of no use to anyone any more
            raise
        finally:
            self._leave(call)

    async def stream(self, request: InferRequest, rows: int) -> AsyncGenerator[Tensors, None]:
        """The responses to a request of one row, as they come.

        The request arrives when the first response is asked for. Whoever does not read to the end
        must `aclose` the iterator, which ends the work.
        """
        if rows != 1:
            raise InvalidRequest(
                f"a stream answers one row, and this request has {rows}; send a request for each"
            )
        call = self._accept(request, streams=True)
        try:
            while True:
                while call.unread:
                    response = call.unread.popleft()
                    if len(call.unread) == MOST_UNREAD // 2:
                        self._policy.unblock(call.jobs[0])
                        self._wake.set()
                    yield response
                if call.answer.done():
                    call.answer.result()
                    return
                call.has_more.clear()
                await call.has_more.wait()
        finally:
            if call.answer.done() and not call.answer.cancelled():
                call.answer.exception()
            self._leave(call)

    def give_up(self) -> None:
        """Refuse new requests and fail those that have not begun. What runs goes on."""
        self._stopping = True
        for job in self._policy.clear():
            self._fail(self._calls[job], given_up())
        self._wake.set()

    async def stop(self) -> None:
        """Refuse new requests and finish the accepted ones, however slowly they are read."""
        self._stopping = True
        await self._idle.wait()
        self._task.cancel()
        await asyncio.wait([self._task])
        self._thread.shutdown(wait=False)

    def _accept(self, request: InferRequest, *, streams: bool) -> _Call[J]:
        if self._stopping:
            raise unloading(request.model_name)
        request.stamps.queued = now = monotonic()
        jobs = self._stepper.plan(request, streams=streams)
        call = _Call(
            request, jobs, len(jobs), self._loop.create_future(), [{}] * len(jobs), streams
        )
        try:
            for job in jobs:
                self._policy.add(job, now)
                self._calls[job] = call
        except SlipwayError:
            self._leave(call)
            raise
        self._idle.clear()
        self._wake.set()
        return call

    def _leave(self, call: _Call[J]) -> None:
        for job in call.jobs:
            self._policy.finish(job)
            self._calls.pop(job, None)
        self._wake.set()

    def _fail(self, call: _Call[J], error: Exception) -> None:
        fail(call.answer, error)
        call.has_more.set()
        self._leave(call)

    async def _iterate_forever(self) -> None:
        news: list[News[J]] = []
        while True:
            self._wake.clear()
            decision = self._policy.decide(monotonic())
            self._expire(decision)
            if decision.has_work:
                self._stamp(decision.begin)
                running = self._loop.run_in_executor(self._thread, self._iterate, decision)
                self._hand_out(news)
                iteration, news = await running
                self._meter.iterated(iteration)
                for item in news:
                    if item.is_last:
                        self._policy.finish(item.job)
                continue
            self._hand_out(news)
            news = []
            if self._policy.is_idle:
                self._idle.set()
            await self._wait(decision.wake_at)

    def _expire(self, decision: StepDecision[J]) -> None:
        for job in decision.expired:
            self._fail(self._calls[job], expired())
        for job in decision.overdue:
            if (call := self._calls.get(job)) is not None:
                self._fail(call, Expired("Request deadline passed before its last step"))

    async def _wait(self, wake_at: float) -> None:
        timer = None
        if wake_at < math.inf:
            timer = self._loop.call_later(max(0.0, wake_at - monotonic()), self._wake.set)
        await self._wake.wait()
        if timer is not None:
            timer.cancel()

    def _stamp(self, jobs: Sequence[J]) -> None:
        for job in jobs:
            if (call := self._calls.get(job)) is not None and not call.request.stamps.batched:
                call.request.stamps.batched = call.request.stamps.started = monotonic()

    def _iterate(self, decision: StepDecision[J]) -> tuple[Iteration, list[News[J]]]:
        """On the stepper's thread."""
        started = monotonic()
        stepper = self._stepper
        for job in decision.end:
            stepper.end(job)
        news: list[News[J]] = []
        for work, jobs in (
            (stepper.suspend, decision.suspend),
            (stepper.resume, decision.resume),
        ):
            if jobs:
                news += _attempt(work, jobs)
        steps = decision.step
        if news or decision.begin:
            others = {item.job for item in news}.union(decision.begin)
            steps = [job for job in steps if job not in others]
        news += self._attempt_iteration(decision.begin, steps)
        iteration = Iteration(
            rows=sum(job.rows for job in steps),
            suspended=len(decision.suspend),
            seconds=monotonic() - started,
            work=stepper.work,
        )
        stepper.work = Work()
        return iteration, news

    def _attempt_iteration(self, begin: Sequence[J], step: Sequence[J]) -> list[News[J]]:
        if not (begin or step):
            return []
        try:
            return self._stepper.iterate(begin, step)
        except Exception:
            iterate = self._stepper.iterate
            begun = _attempt(lambda jobs: iterate(jobs, []), begin, together=False)
            return begun + _attempt(lambda jobs: iterate([], jobs), step, together=False)

    def _hand_out(self, news: Sequence[News[J]]) -> None:
        for item in news:
            call = self._calls.get(item.job)
            if call is None or call.answer.done():
                continue
            if isinstance(item.event, Exception):
                self._fail(call, item.event)
                continue
            try:
                part = self._stepper.render(item.job, item.event, is_last=item.is_last)
            except Exception as error:  # which must not end the iterations of all others
                failure = InferenceFailed(str(error))
                failure.__cause__ = error
                self._fail(call, failure)
                continue
            if call.streams:
                self._pass_on(call, item, part)
            elif item.is_last:
                assert part is not None, "a job ends with its outputs. This is a bug."
                call.parts[call.jobs.index(item.job)] = part
                self._count_down(call)

    def _pass_on(self, call: _Call[J], item: News[J], part: Tensors | None) -> None:
        if part is not None:
            now = monotonic()
            since = call.last_event or call.request.stamps.received or call.request.stamps.queued
            self._meter.event(now - since, is_first=not call.last_event)
            call.last_event = now
            call.unread.append(part)
            if len(call.unread) >= MOST_UNREAD and not item.is_last:
                self._policy.block(item.job)
        if item.is_last:
            self._count_down(call)
        call.has_more.set()

    def _count_down(self, call: _Call[J]) -> None:
        call.unfinished -= 1
        if call.unfinished:
            return
        stamps = call.request.stamps
        stamps.computed = stamps.answered = ended = monotonic()
        rows = len(call.jobs)
        self._meter.ran(Run(rows, stamps.batched, stamps.started, ended, ended))
        call.answer.set_result({} if call.streams else _joined(call.parts))


def _attempt(
    work: Callable[[Sequence[J]], list[News[J]]], jobs: Sequence[J], *, together: bool = True
) -> list[News[J]]:
    """One job's values may be what the model cannot bear: only that one shall fail."""
    if len(jobs) != 1 and not together:
        return [news for job in jobs for news in _attempt(work, [job])]
    try:
        return work(jobs)
    except Exception as error:
        if len(jobs) > 1:
            return _attempt(work, jobs, together=False)
        failure = error if isinstance(error, SlipwayError) else InferenceFailed(str(error))
        failure.__cause__ = None if failure is error else error
        return [News(jobs[0], failure, is_last=True)]


def _joined(parts: Sequence[Tensors]) -> Tensors:
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Array] = {}
    for name in parts[0]:
        joined[name] = np.concatenate([part[name] for part in parts])
    return joined
