"""Batches that an engine is given before it has an instance for them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serving.config import Batching, QueuePolicy, TimeoutAction
from serving.engines.workers import Workers
from serving.errors import Expired, Unavailable
from serving.scheduling.dynamic import DynamicScheduler
from serving.scheduling.policy import BatchPolicy
from serving.scheduling.returns import Returns
from serving.scheduling.waiting import Ticket
from serving.types import Tensors
from tests.serving.test_scheduler import Queueing, request, scheduler


class Held(Queueing):
    """Each run goes on until it `may_end`."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = threading.Semaphore(0)
        self._begun = threading.Semaphore(0)

    def has_begun(self) -> bool:
        """Keeps the loop until the next run has; false if it does not."""
        return self._begun.acquire(timeout=10)

    def _compute(self, inputs: Tensors) -> Tensors:
        self._begin(inputs)
        self._begun.release()
        self.may_end.acquire(timeout=10)
        return self._end(inputs)


async def ask(batches: DynamicScheduler, *values: float) -> list[asyncio.Task[Tensors]]:
    """In one turn of the loop, which is over then."""
    tasks = [asyncio.create_task(batches.infer(request(value), 1)) for value in values]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def answered(tasks: list[asyncio.Task[Tensors]]) -> list[float]:
    return [answer["y"].item() for answer in await asyncio.gather(*tasks)]


async def test_a_full_batch_begins_while_the_loop_is_kept() -> None:
    engine = Held()
    batches = scheduler(engine, max_rows=2)
    tasks = await ask(batches, 1, 2, 3, 4, 5)
    assert engine.has_begun()
    # Of these two are handed over, and all of them wait.
    assert (len(batches._policy), batches.depth) == (1, 3)
    engine.may_end.release()
    assert engine.has_begun()
    assert engine.batches == [2, 2]
    engine.may_end.release(2)
    assert await answered(tasks) == [2, 4, 6, 8, 10]
    assert engine.order == [1, 2, 3, 4, 5]
    assert engine.most_running == 1
    await batches.stop()
    await engine.close()


async def test_others_join_a_batch_that_is_not_full_until_it_begins() -> None:
    engine = Held()
    batches = scheduler(engine, max_rows=4)
    tasks = []
    for values in ([1], [2], [3, 4], [5, 6]):
        tasks += await ask(batches, *values)
    assert len(batches._policy) == 1
    assert engine.has_begun()
    engine.may_end.release(3)
    assert await answered(tasks) == [2, 4, 6, 8, 10, 12]
    assert engine.batches == [1, 4, 1]
    await batches.stop()
    await engine.close()


async def test_nothing_is_handed_over_while_callers_are_expected_back() -> None:
    engine = Held()
    batches = scheduler(engine, max_rows=4)
    first = await ask(batches, 1, 2, 3)
    engine.may_end.release()
    await asyncio.gather(*first)
    # Three were answered, and two are back: the third would make it one batch.
    back = await ask(batches, 4)
    back += await ask(batches, 5)
    assert len(batches._policy) == 1
    back += await ask(batches, 6)
    assert (len(batches._policy), batches.depth) == (0, 2)
    engine.may_end.release(2)
    assert await answered(back) == [8, 10, 12]
    assert engine.batches == [3, 1, 2]
    await batches.stop()
    await engine.close()


async def test_who_leaves_is_not_computed_and_the_others_are() -> None:
    engine = Held()
    batches = scheduler(engine, max_rows=2)
    tasks = await ask(batches, 1, 2, 3, 4, 5, 6)
    assert engine.has_begun()
    tasks.pop(2).cancel()
    await asyncio.sleep(0)
    engine.may_end.release(3)
    assert await answered(tasks) == [2, 4, 8, 10, 12]
    assert engine.order == [1, 2, 4, 5, 6]
    await batches.stop()
    await engine.close()


async def test_who_leaves_when_it_has_begun_hurts_nobody() -> None:
    engine = Held()
    batches = scheduler(engine, max_rows=2)
    tasks = await ask(batches, 1, 2, 3, 4)
    assert engine.has_begun()
    engine.may_end.release()
    assert engine.has_begun()
    # The loop does not know it yet.
    tasks.pop(2).cancel()
    await asyncio.sleep(0)
    engine.may_end.release()
    assert await answered(tasks) == [2, 4, 8]
    assert engine.order == [1, 2, 3, 4]
    await batches.stop()
    await engine.close()


async def test_who_is_out_of_time_is_told_and_not_computed() -> None:
    engine = Held()
    rules = Batching(default_policy=QueuePolicy(allow_timeout_override=True))
    batches = scheduler(engine, rules, max_rows=2)
    tasks = await ask(batches, 1, 2)
    assert engine.has_begun()
    late = asyncio.create_task(batches.infer(request(3, timeout_s=0.02), 1))
    tasks += await ask(batches, 4)
    assert batches._next is not None
    with pytest.raises(Expired):
        await late
    engine.may_end.release(2)
    assert await answered(tasks) == [2, 4, 8]
    assert engine.order == [1, 2, 4]
    await batches.stop()
    await engine.close()


async def test_giving_up_fails_what_is_handed_over() -> None:
    engine = Held()
    batches = scheduler(engine, max_rows=2)
    tasks = await ask(batches, 1, 2, 3, 4, 5)
    assert engine.has_begun()
    batches.give_up()
    engine.may_end.release()
    assert await answered(tasks[:2]) == [2, 4]
    outcomes = await asyncio.gather(*tasks[2:], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
    await batches.stop()
    await engine.close()
    assert engine.order == [1, 2]


async def test_a_run_that_is_taken_back_never_begins() -> None:
    workers = Workers(1, "test")
    began, may_end = threading.Event(), threading.Event()
    ran: list[int] = []

    def occupy(number: int) -> None:
        began.set()
        may_end.wait(10)

    first = workers.run(occupy, 0)
    second, third = (workers.run(ran.append, number) for number in (2, 3))
    await asyncio.to_thread(began.wait, 10)
    assert [workers.take_back(each) for each in (first, second, second)] == [False, True, False]
    may_end.set()
    await third
    assert ran == [3]
    workers.close()


def tickets(*rows: int, **wishes: float) -> list[Ticket]:
    return [Ticket(rows=count, **wishes) for count in rows]  # type: ignore[arg-type]


def waiting(*given: Ticket, **rules: object) -> BatchPolicy[Ticket]:
    batching = Batching(**rules)  # type: ignore[arg-type]
    policy: BatchPolicy[Ticket] = BatchPolicy(4, batching, returns=Returns(instances=1))
    for ticket in given:
        policy.add(ticket, 0.0)
    return policy


@pytest.mark.parametrize(
    "rules",
    [
        {"priority_levels": 2, "default_priority_level": 1},
        {"preferred_batch_sizes": (4,)},
        {"default_policy": QueuePolicy(max_queue_size=9)},
        {"default_policy": QueuePolicy(timeout_s=9.0, timeout_action=TimeoutAction.DELAY)},
    ],
)
def test_where_others_may_go_first_nothing_is_taken_ahead(rules: dict[str, object]) -> None:
    assert waiting(*tickets(2, 2, 2)).ahead(1)[1]
    assert waiting(*tickets(2, 2, 2), **rules).ahead(1) == ([], False)


def test_what_is_put_back_waits_as_before() -> None:
    given = tickets(1, 1, 1, 1, 1, deadline=5.0)
    policy = waiting(*given)
    batch, is_full = policy.ahead(1)
    assert (batch, is_full, len(policy)) == (given[:4], True, 1)
    policy.discard(batch[1])  # which no longer waits
    policy.put_back(batch)
    assert len(policy) == 5
    assert policy.decide(0.0, free_instances=0).wake_at == 5.0
    assert policy.decide(1.0, free_instances=1).batch == given[:4]
    assert policy.decide(5.0, free_instances=0).expired == given[4:]


def test_a_batch_that_will_wait_for_the_running_is_not_taken_ahead() -> None:
    """As long as runs of one size only are known, another run is held to be saved."""

    def ahead(longest_s: float) -> int:
        policy = waiting(max_queue_delay_s=longest_s)
        for now in (0.0, 0.101):
            policy.add(Ticket(1), now)
            assert policy.decide(now, free_instances=1).batch
            policy.ran(1, 1, 0.1, now + 0.1)
        policy.add(Ticket(1), 0.202)
        return len(policy.ahead(1)[0])

    assert (ahead(0.0), ahead(2.0)) == (1, 0)
