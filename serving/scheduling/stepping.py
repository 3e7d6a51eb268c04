"""Answers the requests of a model that answers in many steps, all of which run together."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic

import numpy as np

from serving.calls import Trace
from serving.config import Batching
from serving.errors import InferenceFailed, InvalidRequest
from serving.scheduling.iterations import Iterations, Report
from serving.scheduling.meter import Meter
from serving.scheduling.outcomes import fail, failure, given_up, unloading
from serving.scheduling.step_policy import J
from serving.scheduling.stepper import News, Stepper
from serving.types import Array, InferRequest, Iteration, Run, Tensors

log = logging.getLogger(__name__)

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

    Everything here belongs to the event loop. What `Iterations` makes on its own thread is handed
    out here while the engine computes the next step.
    """

    def __init__(self, stepper: Stepper[J], batching: Batching | None, meter: Meter):
        self._stepper = stepper
        self._meter = meter
        self._calls: dict[J, _Call[J]] = {}
        self._traced: dict[_Call[J], Trace] = {}
        self._is_stopping = False
        self._is_broken = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._reports: deque[Report[J]] = deque()
        self._loop = asyncio.get_running_loop()
        self._iterations = Iterations(stepper, batching, tell=self._told, broke=self._broke)

    @property
    def depth(self) -> int:
        """Rows of requests that wait, not counting those that have begun."""
        return self._iterations.waiting

    @property
    def slots(self) -> int:
        """Slots that there are."""
        return self._stepper.capacity.slots

    @property
    def running(self) -> int:
        """Slots that are taken."""
        return self._iterations.running

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
                        self._iterations.unblock(call.jobs[0])
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
        self._is_stopping = True
        for job in self._iterations.clear():
            self._fail(self._calls[job], given_up())

    async def stop(self) -> None:
        """Refuse new requests and finish the accepted ones, however slowly they are read."""
        self._is_stopping = True
        await self._idle.wait()
        await asyncio.to_thread(self._iterations.stop)

    def _accept(self, request: InferRequest, *, streams: bool) -> _Call[J]:
        if self._is_stopping:
            raise unloading(request.model_name)
        if self._is_broken:
            raise _broken()
        request.stamps.queued = monotonic()
        jobs = self._stepper.plan(request, streams=streams)
        self._iterations.add(jobs)
        call = _Call(
            request, jobs, len(jobs), self._loop.create_future(), [{}] * len(jobs), streams
        )
        for job in jobs:
            self._calls[job] = call
        if request.trace is not None:
            self._traced[call] = request.trace
        self._idle.clear()
        return call

    def _leave(self, call: _Call[J]) -> None:
        """Does nothing for jobs that have ended already."""
        self._traced.pop(call, None)
        left = [job for job in call.jobs if self._forget(job) is not None]
        if left:
            self._iterations.finish(left)

    def _forget(self, job: J) -> _Call[J] | None:
        call = self._calls.pop(job, None)
        if not self._calls:
            self._idle.set()
        return call

    def _fail(self, call: _Call[J], error: Exception) -> None:
        fail(call.answer, error)
        call.has_more.set()
        self._leave(call)

    def _told(self, reports: Sequence[Report[J]]) -> None:
        """On the stepper's thread."""
        self._reports.extend(reports)
        if len(self._reports) == len(reports):  # or else the loop is about to read on
            self._loop.call_soon_threadsafe(self._read_reports)

    def _broke(self, error: Exception) -> None:
        """On the stepper's thread, which ends with this."""
        self._loop.call_soon_threadsafe(self._fail_all, error)

    def _fail_all(self, error: Exception) -> None:
        log.error("a model that answers in steps stepped for the last time", exc_info=error)
        self._is_broken = True
        for call in set(self._calls.values()):
            self._fail(call, _broken())

    def _read_reports(self) -> None:
        while self._reports:
            report = self._reports.popleft()
            for job in report.begun:
                if (call := self._calls.get(job)) is not None and not call.request.stamps.batched:
                    call.request.stamps.batched = call.request.stamps.started = report.begun_at
            if report.iteration is not None:
                self._meter.iterated(report.iteration)
                if self._traced:
                    self._note_steps(report, report.iteration)
            self._hand_out(report.news)

    def _note_steps(self, report: Report[J], iteration: Iteration) -> None:
        stepped, rows = set(report.stepped), sum(job.rows for job in report.stepped)
        for call, trace in self._traced.items():
            if not stepped.isdisjoint(call.jobs):
                trace.stepped(report.begun_at, report.begun_at + iteration.seconds, rows)

    def _hand_out(self, news: Sequence[News[J]]) -> None:
        for item in news:
            forget = self._forget if item.is_last else self._calls.get
            call = forget(item.job)
            if call is None or call.answer.done():
                continue
            if isinstance(item.event, Exception):
                self._fail(call, item.event)
                continue
            try:
                part = self._stepper.render(item.job, item.event, is_last=item.is_last)
            except Exception as error:  # which must not end the iterations of all others
                self._fail(call, failure(error))
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
                self._iterations.block(item.job)
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


def _broken() -> InferenceFailed:
    return InferenceFailed("the model's steps have come to an end by a fault of the server")


def _joined(parts: Sequence[Tensors]) -> Tensors:
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Array] = {}
    for name in parts[0]:
        joined[name] = np.concatenate([part[name] for part in parts])
    return joined
