"""When a batch waits for those who were answered: the policy with a clock of the test's own."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config import Batching
from serving.scheduling.policy import BatchPolicy
from serving.scheduling.returns import Returns
from serving.scheduling.waiting import Ticket
from tests.serving.test_scheduler import Doubler, request, scheduler

DELAY_S = 0.002
MAX_ROWS = 32

Cost = Callable[[int], float]
"""Rows of a run -> seconds."""


def flat(rows: int) -> float:
    return 0.002 + 0.00002 * rows


def by_rows(rows: int) -> float:
    return 0.0002 * rows


class Play:
    """Requests of one row and runs of `instances`, played on a clock of their own.

    `back_s` is how long a caller takes to come back; None asks once.
    """

    def __init__(
        self,
        cost: Cost,
        *,
        back_s: float | None = None,
        instances: int = 1,
        delay_s: float = DELAY_S,
        **rules: object,
    ):
        batching = Batching(max_queue_delay_s=delay_s, **rules)  # type: ignore[arg-type]
        returns = Returns(instances=instances)
        self.policy: BatchPolicy[Ticket] = BatchPolicy(MAX_ROWS, batching, returns=returns)
        self.cost = cost
        self.back_s = back_s
        self.free = instances
        self.now = 0.0
        self.ended_at = -1.0
        self.started: list[Ticket] = []
        self.sizes: list[int] = []
        self.idled: list[float] = []
        """Of each batch, how long it waited beside a free instance."""
        self._free_since = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, list[Ticket]]] = []

    def ask(self, *at: float) -> None:
        for when in at:
            heapq.heappush(self._events, (when, next(self._order), []))

    def run(self, until: float) -> None:
        wake_at = self._decide()
        while min(self._events[0][0] if self._events else until, wake_at) < until:
            if self._events and self._events[0][0] <= wake_at:
                self.now, _, ended = heapq.heappop(self._events)
                self._end(ended) if ended else self.policy.add(Ticket(rows=1), self.now)
            else:
                self.now = wake_at
            wake_at = self._decide()
        self.now = until

    def _end(self, batch: list[Ticket]) -> None:
        if not self.free:
            self._free_since = self.now
        self.free += 1
        self.ended_at = self.now
        self.policy.ran(len(batch), len(batch), self.cost(len(batch)), self.now)
        if self.back_s is not None:
            # A server takes its time for each answer and each request.
            self.ask(*(self.now + self.back_s + 0.00005 * place for place in range(len(batch))))

    def _decide(self) -> float:
        while batch := (decision := self.policy.decide(self.now, free_instances=self.free)).batch:
            self.free -= 1
            self.started += batch
            self.sizes.append(len(batch))
            self.idled.append(self.now - max(batch[0].queued_at, self._free_since))
            ends_at = self.now + self.cost(len(batch))
            heapq.heappush(self._events, (ends_at, next(self._order), batch))
        if len(self.policy) and self.free:
            assert self.now < decision.wake_at <= self.ended_at + DELAY_S
        return decision.wake_at


def arrivals(rate: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """At random, independently of one another."""
    source = random.Random(seed)
    at = source.expovariate(rate)
    while at < seconds:
        yield at
        at += source.expovariate(rate)


@pytest.mark.parametrize("clients", [2, 5, 8, 16])
def test_callers_who_come_back_together_share_a_run(clients: int) -> None:
    play = Play(flat, back_s=0.0001)
    play.ask(*(0.0001 * place for place in range(clients)))
    play.run(0.2)
    assert set(play.sizes[8:]) == {clients}


def test_it_pays() -> None:
    def answered(delay_s: float) -> int:
        play = Play(flat, back_s=0.0001, delay_s=delay_s)
        play.ask(*(0.0001 * place for place in range(4)))
        play.run(1.0)
        return len(play.started)

    assert answered(DELAY_S) > 1.6 * answered(0.0)


def test_what_has_become_dear_is_learnt_anew() -> None:
    """At first another row costs as much as another run, and nobody waits."""
    play = Play(by_rows, back_s=0.0001)
    play.ask(*(0.0001 * place for place in range(4)))
    play.run(0.2)
    assert sum(play.sizes[-100:]) / 100 < 3
    play.cost = flat
    play.run(2.0)
    assert sum(play.sizes[-100:]) / 100 > 3.9


def test_nobody_waits_for_callers_who_take_longer_than_a_run_saves() -> None:
    play = Play(lambda rows: 0.00002, back_s=0.00006)
    play.ask(*(0.00001 * place for place in range(8)))
    play.run(0.2)
    assert len(play.sizes) > 1000
    assert sum(play.idled) == 0


@pytest.mark.parametrize("cost", [flat, by_rows])
@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_hardly_anybody_waits_for_callers_who_come_at_random(cost: Cost, load: float) -> None:
    rate = load * MAX_ROWS / cost(MAX_ROWS)
    play = Play(cost)
    play.ask(*arrivals(rate, 2.0))
    play.run(3.0)
    assert sum(play.idled) < 0.05 * sum(map(cost, play.sizes))


@given(
    back_s=st.sampled_from([0.00001, 0.0003, 0.002, 0.01]),
    clients=st.integers(1, 40),
    others=st.lists(st.floats(0, 0.05), max_size=20),
    instances=st.integers(1, 3),
    cost=st.sampled_from([flat, by_rows]),
    idle_s=st.floats(DELAY_S, 1e6, exclude_min=True),
)
def test_none_waits_beyond_the_delay_or_at_an_idle_server(
    back_s: float,
    clients: int,
    others: list[float],
    instances: int,
    cost: Cost,
    idle_s: float,
) -> None:
    play = Play(cost, back_s=back_s, instances=instances)
    play.ask(*(0.0001 * place for place in range(clients)), *others)
    play.run(0.05)
    # And then nobody comes back any more.
    play.back_s = None
    play.run(play.now + 1.0)
    assert len(play.policy) == 0
    numbers = [ticket.number for ticket in play.started]
    assert numbers == sorted(numbers)
    assert max(play.idled) <= DELAY_S + 1e-9

    at = play.now + idle_s
    play.ask(at)
    play.run(at + 1.0)
    assert (play.sizes[-1], play.idled[-1]) == (1, 0.0)


def test_a_preferred_size_is_waited_for_as_in_triton() -> None:
    play = Play(flat, preferred_batch_sizes=(4,))
    play.policy.add(Ticket(rows=1), 0.0)
    assert play.policy.decide(0.0, free_instances=1).wake_at == DELAY_S
    for _ in range(3):
        play.policy.add(Ticket(rows=1), 0.001)
    assert len(play.policy.decide(0.001, free_instances=1).batch) == 4


def test_a_batch_does_not_wait_while_another_instance_is_free() -> None:
    play = Play(flat, instances=2)
    for _ in range(4):
        play.policy.add(Ticket(rows=1), 0.0)
    for rows in (1, 3):
        play.policy.ran(rows, rows, flat(rows), 0.001)
    play.policy.add(Ticket(rows=1), 0.001)
    assert len(play.policy.decide(0.001, free_instances=2).batch) == 5


async def test_the_scheduler_tells_of_its_runs() -> None:
    """Four callers in a closed loop on a real event loop, and one after they have left."""
    engine = Doubler(pause_s=0.02)
    batches = scheduler(engine, Batching(max_queue_delay_s=5.0))

    async def client() -> None:
        for value in range(12):
            await batches.infer(request(value), 1)
            await asyncio.sleep(0.001)

    first = asyncio.create_task(client())
    await asyncio.sleep(0.005)
    await asyncio.gather(first, *(client() for _ in range(3)))
    assert engine.batches[:2] == [1, 3]
    assert engine.batches.count(4) >= 8
    asked = monotonic()
    await batches.infer(request(1), 1)
    assert monotonic() - asked < 1.0
    await batches.stop()
