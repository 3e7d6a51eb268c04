"""What a request to a model that answers in steps can expect, whoever runs beside it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

import numpy as np
import pytest

from serving.config import Batching, QueuePolicy
from serving.errors import (
    Expired,
    InferenceFailed,
    InvalidRequest,
    Overloaded,
    SlipwayError,
    Unavailable,
)
from serving.scheduling.iterations import MOST_UNTOLD, Iterations, Report
from serving.scheduling.meter import LateMeter
from serving.scheduling.step_policy import Capacity, Job
from serving.scheduling.stepper import News
from serving.scheduling.stepping import MOST_UNREAD, StepScheduler
from serving.types import InferRequest, Iteration, Run, Tensors, TensorSpec, Work

UNTELLABLE = 13


@dataclass(slots=True, eq=False, kw_only=True)
class Count(Job):
    """Counts from 1 to `target`, one a step."""

    target: int
    streams: bool
    has_begun: bool = False
    is_suspended: bool = False
    value: int = 0
    made: list[int] = field(default_factory=list)


class Counting:
    """A stepper that counts. A target below zero breaks every step that it is a part of.

    It sees to it that nothing is stepped, suspended or ended which should not be.
    """

    inputs: Sequence[TensorSpec] = (TensorSpec("target", "INT64", (-1, 1)),)
    outputs: Sequence[TensorSpec] = (TensorSpec("counted", "INT64", (-1, -1)),)
    memory_bytes = 0

    def __init__(self, slots: int = 4, *, step_s: float = 0.0, quantum: int = 8):
        self.capacity = Capacity(slots, 1000, (1,), quantum=quantum)
        self.work = Work()
        self.held: set[Count] = set()
        self.steps = 0
        self._step_s = step_s

    def plan(self, request: InferRequest, *, streams: bool) -> Sequence[Count]:
        return [
            Count(
                rows=1,
                extents=(1,),
                target=int(target),
                streams=streams,
                priority=request.priority,
                timeout_s=request.timeout_s,
                deadline=request.deadline,
            )
            for target in request.inputs["target"].ravel()
        ]

    def begin(self, jobs: Sequence[Count]) -> list[News[Count]]:
        if any(job.target == 0 for job in jobs):
            raise RuntimeError("cannot begin")
        for job in jobs:
            assert not job.has_begun
            job.has_begun = True
            self.held.add(job)
        return []

    def step(self, jobs: Sequence[Count]) -> list[News[Count]]:
        self.steps += 1
        time.sleep(self._step_s)
        if any(job.target < 0 for job in jobs):
            raise RuntimeError("cannot step")
        assert len({*jobs}) == len(jobs) <= self.capacity.slots
        news = []
        for job in jobs:
            assert job in self.held
            assert not job.is_suspended
            job.value += 1
            job.made.append(job.value)
            is_last = job.value == job.target
            if job.streams or is_last:
                event, job.made = job.made, []
                news.append(News(job, event, is_last))
        self.work.made += len(jobs)
        return news

    def suspend(self, jobs: Sequence[Count]) -> list[News[Count]]:
        for job in jobs:
            assert job in self.held
            assert not job.is_suspended
            job.is_suspended = True
        return []

    def resume(self, jobs: Sequence[Count]) -> list[News[Count]]:
        for job in jobs:
            assert job.is_suspended
            job.is_suspended = False
        return []

    def end(self, job: Count) -> None:
        self.held.discard(job)

    def render(self, job: Count, event: object, *, is_last: bool) -> Tensors | None:
        if job.target == UNTELLABLE:
            raise RuntimeError("cannot be told")
        return {"counted": np.array([event], np.int64)}

    def warm(self) -> None: ...

    def close(self) -> None: ...


class Meter(LateMeter):
    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []
        self.iterations: list[Iteration] = []
        self.firsts = 0
        self.others = 0

    def ran(self, run: Run) -> None:
        self.runs.append(run)

    def iterated(self, iteration: Iteration) -> None:
        self.iterations.append(iteration)

    def event(self, seconds: float, *, is_first: bool) -> None:
        assert seconds >= 0
        self.firsts += is_first
        self.others += not is_first


@asynccontextmanager
async def scheduling(
    stepper: Counting, batching: Batching | None = None, meter: Meter | None = None
) -> AsyncIterator[StepScheduler[Count]]:
    """Everything is released at the end, whatever happened."""
    scheduler = StepScheduler(stepper, batching, meter=meter or Meter())
    yield scheduler
    await asyncio.wait_for(scheduler.stop(), 10)
    assert stepper.held == set()
    with pytest.raises(Unavailable, match="is being unloaded"):
        await scheduler.infer(asked(1), 1)


def asked(*targets: int, **wishes: object) -> InferRequest:
    return InferRequest(
        "counting",
        {"target": np.array(targets, np.int64)[:, None]},
        **wishes,  # type: ignore[arg-type]
    )


def counted(target: int) -> list[int]:
    return list(range(1, target + 1))


async def read(scheduler: StepScheduler[Count], request: InferRequest) -> list[int]:
    values: list[int] = []
    async with aclosing(scheduler.stream(request, 1)) as responses:
        async for response in responses:
            values += response["counted"][0].tolist()
    return values


async def test_a_request_of_several_rows_gets_all_of_them() -> None:
    meter = Meter()
    async with scheduling(Counting(), meter=meter) as scheduler:
        outputs = await scheduler.infer(asked(5, 5, 5), 3)
        assert outputs["counted"].tolist() == [counted(5)] * 3
    assert [run.rows for run in meter.runs] == [3]
    assert sum(iteration.work.made for iteration in meter.iterations) == 15


async def test_events_are_streamed_as_they_are_made() -> None:
    meter = Meter()
    async with (
        scheduling(Counting(step_s=0.01), meter=meter) as scheduler,
        aclosing(scheduler.stream(asked(5), 1)) as responses,
    ):
        arrived = [(monotonic(), answer["counted"].tolist()) async for answer in responses]
    assert [values for _, values in arrived] == [[[value]] for value in counted(5)]
    assert arrived[-1][0] - arrived[0][0] > 0.03
    assert (meter.firsts, meter.others) == (1, 4)


async def test_a_short_one_overtakes_long_ones() -> None:
    async with scheduling(Counting(slots=2, step_s=0.001)) as scheduler:
        long = [asyncio.create_task(scheduler.infer(asked(300), 1)) for _ in range(2)]
        await asyncio.sleep(0.02)
        outputs = await scheduler.infer(asked(3), 1)
        assert outputs["counted"].tolist() == [counted(3)]
        assert not any(task.done() for task in long)
        for task in long:
            assert (await task)["counted"].tolist() == [counted(300)]


async def test_who_leaves_is_stepped_no_more() -> None:
    stepper = Counting(step_s=0.002)
    async with scheduling(stepper) as scheduler:
        leaving = asyncio.create_task(scheduler.infer(asked(10_000), 1))
        staying = asyncio.create_task(scheduler.infer(asked(50), 1))
        await asyncio.sleep(0.02)
        leaving.cancel()
        assert (await staying)["counted"].tolist() == [counted(50)]
        await asyncio.sleep(0.01)
        assert stepper.held == set()
    assert stepper.steps < 200


async def test_only_what_cannot_be_computed_fails() -> None:
    async with scheduling(Counting(slots=8)) as scheduler:
        results = await asyncio.gather(
            *(scheduler.infer(asked(target), 1) for target in (4, -1, 6, 0, 2)),
            return_exceptions=True,
        )
    assert [type(result) for result in (results[1], results[3])] == [InferenceFailed] * 2
    for result, target in ((results[0], 4), (results[2], 6), (results[4], 2)):
        assert isinstance(result, dict)
        assert result["counted"].tolist() == [counted(target)]


async def test_one_failing_row_fails_its_request_and_frees_the_other_rows() -> None:
    stepper = Counting()
    async with scheduling(stepper) as scheduler:
        with pytest.raises(InferenceFailed, match="cannot step"):
            await scheduler.infer(asked(10_000, -1), 2)
        await scheduler.infer(asked(1), 1)
        assert 10_000 not in {job.target for job in stepper.held}


async def test_what_cannot_be_told_fails_alone() -> None:
    async with scheduling(Counting()) as scheduler:
        told, untold = await asyncio.gather(
            scheduler.infer(asked(20), 1),
            scheduler.infer(asked(UNTELLABLE), 1),
            return_exceptions=True,
        )
    assert isinstance(untold, InferenceFailed)
    assert isinstance(told, dict)


async def test_a_fault_between_two_steps_is_told_to_all() -> None:
    class Faulty(Counting):
        def end(self, job: Count) -> None:
            raise RuntimeError("a fault")

    scheduler = StepScheduler(Faulty(step_s=0.001), None, meter=Meter())
    long = asyncio.create_task(scheduler.infer(asked(10_000), 1))
    assert (await scheduler.infer(asked(2), 1))["counted"].tolist() == [[1, 2]]
    with pytest.raises(InferenceFailed, match="a fault of the server"):
        await asyncio.wait_for(long, 10)
    with pytest.raises(InferenceFailed, match="a fault of the server"):
        await scheduler.infer(asked(1), 1)
    await asyncio.wait_for(scheduler.stop(), 10)


@pytest.mark.alone
async def test_a_slow_reader_holds_up_itself_only() -> None:
    stepper = Counting(slots=1)
    async with scheduling(stepper) as scheduler, aclosing(scheduler.stream(asked(1000), 1)) as slow:
        first = await anext(slow)
        assert first["counted"].tolist() == [[1]]
        await asyncio.sleep(0.05)
        [job] = stepper.held
        assert job.value <= MOST_UNREAD + 3  # one step is on the way, one is being handed out
        # The only slot goes to whoever has use for it.
        assert (await scheduler.infer(asked(20), 1))["counted"].tolist() == [counted(20)]
        values = [1]
        async for response in slow:
            values += response["counted"][0].tolist()
        assert values == counted(1000)


def test_only_news_is_told_at_once() -> None:
    told: list[Sequence[Report[Count]]] = []
    broken: list[Exception] = []
    stepper = Counting()
    iterations = Iterations(stepper, None, tell=told.append, broke=broken.append)
    iterations.add(stepper.plan(asked(3 * MOST_UNTOLD - 1), streams=False))
    iterations.stop()
    reports = [report for each in told for report in each]
    # In the first the job begins; the last is that in which its place is given back.
    lengths = [len(each) for each in told]
    assert lengths == [1, MOST_UNTOLD, MOST_UNTOLD, MOST_UNTOLD - 2, 1]
    done = [report.iteration.work.made for report in reports if report.iteration is not None]
    assert sum(done) == 3 * MOST_UNTOLD - 1
    [news] = [news for report in reports for news in report.news]
    assert news.is_last
    assert not broken


async def test_a_stream_is_for_one_row() -> None:
    async with scheduling(Counting()) as scheduler:
        with pytest.raises(InvalidRequest, match="one row, and this request has 2"):
            await anext(scheduler.stream(asked(1, 2), 2))


@pytest.mark.alone
async def test_timeouts_and_deadlines() -> None:
    rules = Batching(default_policy=QueuePolicy(allow_timeout_override=True))
    async with scheduling(Counting(slots=1, step_s=0.005, quantum=10_000), rules) as scheduler:
        running = asyncio.create_task(scheduler.infer(asked(40), 1))
        await asyncio.sleep(0.02)
        began = monotonic()
        with pytest.raises(Expired, match="waited in the queue"):
            await scheduler.infer(asked(1, timeout_s=0.05), 1)
        assert 0.05 <= monotonic() - began < 0.15
        assert (await running)["counted"].tolist() == [counted(40)]
        with pytest.raises(Expired, match="before its last step"):
            await scheduler.infer(asked(10_000, deadline=monotonic() + 0.05), 1)


async def test_a_full_queue_refuses_a_request_whole() -> None:
    stepper = Counting(slots=1, step_s=0.001, quantum=10_000)
    rules = Batching(default_policy=QueuePolicy(max_queue_size=2))
    async with scheduling(stepper, rules) as scheduler:
        running = asyncio.create_task(scheduler.infer(asked(100), 1))
        await asyncio.sleep(0.02)
        with pytest.raises(Overloaded):
            await scheduler.infer(asked(1, 1, 1), 3)
        assert scheduler.depth == 0
        await running


async def test_giving_up_fails_what_waits_and_lets_the_rest_finish() -> None:
    async with scheduling(Counting(slots=1, step_s=0.001, quantum=10_000)) as scheduler:
        running = asyncio.create_task(scheduler.infer(asked(50), 1))
        await asyncio.sleep(0.02)
        waiting = asyncio.create_task(scheduler.infer(asked(1), 1))
        await asyncio.sleep(0.005)
        scheduler.give_up()
        with pytest.raises(Unavailable, match="before this request's turn"):
            await waiting
        assert (await running)["counted"].tolist() == [counted(50)]


@pytest.mark.parametrize("seed", range(5))
async def test_in_a_storm_everybody_gets_exactly_one_outcome(seed: int) -> None:
    chance = random.Random(seed)
    meter = Meter()
    stepper = Counting(slots=8)
    answered = 0

    async def one(scheduler: StepScheduler[Count]) -> None:
        nonlocal answered
        await asyncio.sleep(chance.random() * 0.3)
        target = chance.choice([1, 3, 10, 40, 200, -1])
        request = asked(target, priority=chance.choice([0, 1, 2]))
        if chance.random() < 0.2:
            request.deadline = monotonic() + chance.random() * 0.1
        work = read(scheduler, request) if chance.random() < 0.5 else whole(scheduler, request)
        task = asyncio.create_task(work)
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.05)
            task.cancel()
        try:
            assert await task == counted(target)
            answered += 1
        except asyncio.CancelledError:
            assert task.cancelled()
        except SlipwayError as error:
            if target > 0 and not isinstance(error, Expired):
                raise

    async def whole(scheduler: StepScheduler[Count], request: InferRequest) -> list[int]:
        values: list[int] = (await scheduler.infer(request, 1))["counted"][0].tolist()
        return values

    rules = Batching(priority_levels=2, default_priority_level=2)
    async with scheduling(stepper, rules, meter) as scheduler:
        await asyncio.gather(*(one(scheduler) for _ in range(200)))
    assert answered > 80
    assert len(meter.runs) >= answered
