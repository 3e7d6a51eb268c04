"""Runs that are so quick that the event loop computes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from serving.config import Batching, QueuePolicy
from serving.errors import Expired, InferenceFailed, Overloaded
from serving.scheduling.outcomes import Answer
from serving.scheduling.policy import Decision
from serving.types import Tensors
from tests.serving.test_scheduler import Doubler, request, scheduler


class Told(Answer[Tensors]):
    """Keeps the outcome, and passes it on."""

    def __init__(self, then: Callable[[], object] = lambda: None):
        self.outcome: Any = None
        self._then = then

    def done(self) -> bool:
        return self.outcome is not None

    def set_result(self, result: Tensors) -> None:
        assert self.outcome is None
        self.outcome = result["y"].ravel().tolist()
        self._then()

    def set_exception(self, error: Exception) -> None:
        assert self.outcome is None
        self.outcome = type(error)
        self._then()


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_it_takes_one_turn_of_the_loop_one_decision_and_no_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Doubler(at_once=1)
    batches = scheduler(engine)
    decisions: list[float] = []
    decide = batches._policy.decide

    def counted(now: float, *, free_instances: int) -> Decision[Any]:
        decisions.append(now)
        return decide(now, free_instances=free_instances)

    monkeypatch.setattr(batches._policy, "decide", counted)
    answers = [Told() for _ in range(3)]
    for value, answer in enumerate(answers):
        batches.submit(request(value), 1, answer)
    assert engine.batches == []
    tasks = asyncio.all_tasks()
    await turns(1)
    assert asyncio.all_tasks() == tasks
    assert [answer.outcome for answer in answers] == [[0.0], [2.0], [4.0]]
    assert engine.batches == [3]
    await turns(3)
    assert len(decisions) == 1
    await batches.stop()


async def test_the_loop_breathes_between_two_runs() -> None:
    engine = Doubler(at_once=1)
    batches = scheduler(engine, max_rows=1)
    for value in range(4):
        batches.submit(request(value), 1, Told())
    done = []
    for _ in range(5):
        await turns(1)
        done.append(len(engine.batches))
    assert done == [1, 2, 3, 4, 4]
    await batches.stop()


async def test_no_run_is_within_another_though_who_is_told_asks_again() -> None:
    """Not even where the queue is so full that the scheduler makes room at once."""
    engine = Doubler(at_once=1)
    rules = Batching(default_policy=QueuePolicy(max_queue_size=1))
    batches = scheduler(engine, rules, max_rows=1)
    accepted: list[Told] = []
    depths = [0]

    def ask() -> None:
        depths.append(depths[-1] + 1)
        for _ in range(3):
            if len(accepted) < 40:
                answer = Told(ask)
                with suppress(Overloaded):
                    batches.submit(request(1), 1, answer)
                    accepted.append(answer)
        depths.append(depths[-1] - 1)

    ask()
    # One is given to the instance, one waits, and there is no place for the third.
    assert len(accepted) == 2
    while not all(answer.done() for answer in accepted):
        await turns(1)
    assert len(accepted) == 40
    assert max(depths) == 1
    await batches.stop()


async def test_one_that_the_model_cannot_bear_fails_alone() -> None:
    batches = scheduler(Doubler(at_once=1))
    answers = [Told() for _ in range(3)]
    for value, answer in zip((1, -1, 3), answers, strict=True):
        batches.submit(request(value), 1, answer)
    await batches.stop()
    assert [answer.outcome for answer in answers] == [[2.0], InferenceFailed, [6.0]]


async def test_who_has_left_or_is_too_late_is_not_computed() -> None:
    engine = Doubler(at_once=1)
    rules = Batching(default_policy=QueuePolicy(allow_timeout_override=True))
    batches = scheduler(engine, rules, max_rows=1)
    late, gone, stays = Told(), Told(), Told()
    batches.submit(request(1, timeout_s=1e-9), 1, late)
    entry = batches.submit(request(2), 1, gone)
    batches.submit(request(3), 1, stays)
    batches.withdraw(entry)
    await batches.stop()
    assert (late.outcome, gone.outcome, stays.outcome) == (Expired, None, [6.0])
    assert engine.order == [3.0]


async def test_what_waits_for_a_busy_instance_and_what_does_not() -> None:
    """Runs on both ways, one after another on the one instance."""
    engine = Doubler(pause_s=0.002, at_once=2)
    batches = scheduler(engine, max_rows=1)
    answers = await asyncio.gather(*(batches.infer(request(i), 1) for i in range(8)))
    assert [answer["y"].item() for answer in answers] == [2.0 * i for i in range(8)]
    assert engine.order == list(range(8))
    assert engine.most_running == 1
    await batches.stop()


@pytest.mark.parametrize("at_once", [0, 1])
async def test_who_is_told_that_it_is_too_late_may_ask_again_at_once(at_once: int) -> None:
    engine = Doubler(pause_s=0.01, at_once=at_once)
    rules = Batching(default_policy=QueuePolicy(max_queue_size=2, allow_timeout_override=True))
    batches = scheduler(engine, rules, max_rows=1)
    asked: list[Told] = []

    def ask(value: int) -> None:
        answer = Told()
        with suppress(Overloaded):
            batches.submit(request(value), 1, answer)
            asked.append(answer)

    def ask_again() -> None:
        for value in range(4):
            ask(value)

    late, early = Told(ask_again), Told()
    batches.submit(request(2, timeout_s=1e-9), 1, late)
    batches.submit(request(3), 1, early)
    for value in range(20):
        await turns(1)
        ask(value)
    assert batches.depth <= 2
    await batches.stop()
    assert (late.outcome, early.outcome) == (Expired, [6.0])
    assert all(isinstance(answer.outcome, list) for answer in asked)
    assert engine.most_running <= 1


async def test_who_expires_before_it_runs_again_may_ask_again_at_once() -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    engine = Doubler(pause_s=0.03)
    rules = Batching(default_policy=QueuePolicy(max_queue_size=3, allow_timeout_override=True))
    batches = scheduler(engine, rules, max_rows=4, instances=2)

    def ask_again() -> None:
        for value in range(6):
            with suppress(Overloaded):
                batches.submit(request(value), 1, Told())

    # The batch fails, and is run again one by one; two expire while the first is.
    bad, second, third = Told(), Told(ask_again), Told()
    batches.submit(request(-1), 1, bad)
    batches.submit(request(2, timeout_s=0.045), 1, second)
    batches.submit(request(3, timeout_s=0.045), 1, third)
    await asyncio.sleep(0.2)
    await asyncio.wait_for(batches.stop(), 5)
    assert bad.outcome is InferenceFailed
    assert (second.outcome, third.outcome) == (Expired, Expired)
    assert faults == []
