from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config import Batching, QueuePolicy, TimeoutAction
from serving.errors import Overloaded
from serving.scheduling.deadlines import Deadlines
from serving.scheduling.padding import PaddingRule
from serving.scheduling.policy import BatchPolicy
from serving.scheduling.waiting import Ticket


def policy(max_rows: int = 8, **rules: object) -> BatchPolicy[Ticket]:
    return BatchPolicy(max_rows, Batching(**rules))  # type: ignore[arg-type]


def add(policy: BatchPolicy[Ticket], now: float, *rows: int, **wishes: object) -> list[Ticket]:
    tickets = [Ticket(rows=count, **wishes) for count in rows]  # type: ignore[arg-type]
    for ticket in tickets:
        policy.add(ticket, now)
    return tickets


def rows(batch: list[Ticket]) -> list[int]:
    return [ticket.rows for ticket in batch]


def sized(lengths: list[int]) -> list[Ticket]:
    return [Ticket(rows=1, padded_shapes=((length,),)) for length in lengths]


def lengths(batch: list[Ticket]) -> list[int]:
    return [ticket.padded_shapes[0][0] for ticket in batch]


def test_requests_of_other_lengths_are_passed_over_but_not_the_oldest() -> None:
    rule = PaddingRule(max_growth=4 / 3, always_fine=0, passes_over=True)
    batches: BatchPolicy[Ticket] = BatchPolicy(3, Batching(), rule)
    for ticket in sized([10, 90, 9, 80, 10, 10]):
        batches.add(ticket, 0.0)
    taken = [lengths(batches.decide(0.0, free_instances=1).batch) for _ in range(4)]
    assert taken == [[10, 9, 10], [90, 80], [10], []]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(1, 16))
def test_padding_stays_within_its_share(sizes: list[int], max_rows: int) -> None:
    rule = PaddingRule(max_growth=4 / 3, always_fine=0, passes_over=True)
    batches: BatchPolicy[Ticket] = BatchPolicy(max_rows, Batching(), rule)
    waiting = sized(sizes)
    for ticket in waiting:
        batches.add(ticket, 0.0)
    while waiting:
        batch = batches.decide(0.0, free_instances=1).batch
        assert batch[0] is waiting[0]
        assert sum(lengths(batch)) >= 0.75 * len(batch) * max(lengths(batch)) - 1e-9
        waiting = [ticket for ticket in waiting if ticket not in batch]
    assert len(batches) == 0


def test_without_delay_whatever_waits_runs_at_once() -> None:
    batches = policy()
    add(batches, 0.0, 1, 2)
    assert rows(batches.decide(0.0, free_instances=1).batch) == [1, 2]
    assert len(batches) == 0


def test_nothing_runs_while_every_instance_is_busy() -> None:
    batches = policy()
    add(batches, 0.0, 1)
    assert batches.decide(9.0, free_instances=0).batch == []


def test_a_partial_batch_waits_until_its_oldest_has_waited_long_enough() -> None:
    batches = policy(max_queue_delay_s=1.0)
    add(batches, 0.0, 1)
    add(batches, 0.5, 1)
    early = batches.decide(0.9, free_instances=1)
    assert (early.batch, early.wake_at) == ([], 1.0)
    assert rows(batches.decide(1.0, free_instances=1).batch) == [1, 1]


def test_a_full_batch_does_not_wait() -> None:
    batches = policy(max_queue_delay_s=1.0)
    add(batches, 0.0, 4, 4, 1)
    assert rows(batches.decide(0.0, free_instances=1).batch) == [4, 4]
    assert rows(batches.decide(0.0, free_instances=1).batch) == []


def test_a_batch_that_the_next_in_line_does_not_fit_does_not_wait() -> None:
    batches = policy(max_queue_delay_s=1.0)
    add(batches, 0.0, 5, 4)
    assert rows(batches.decide(0.0, free_instances=1).batch) == [5]


def test_the_largest_preferred_size_is_taken_at_once() -> None:
    batches = policy(max_queue_delay_s=1.0, preferred_batch_sizes=(2, 4))
    add(batches, 0.0, 1, 1, 1, 1, 1)
    assert rows(batches.decide(0.0, free_instances=1).batch) == [1, 1, 1, 1]
    assert rows(batches.decide(0.0, free_instances=1).batch) == []
    assert rows(batches.decide(1.0, free_instances=1).batch) == [1]


def test_only_equal_shapes_share_a_batch_and_none_is_overtaken() -> None:
    batches = policy()
    add(batches, 0.0, 1, 1, shape_key="a")
    add(batches, 0.0, 1, shape_key="b")
    add(batches, 0.0, 1, shape_key="a")
    sizes = [len(batches.decide(0.0, free_instances=1).batch) for _ in range(3)]
    assert sizes == [2, 1, 1]


def test_lower_priority_numbers_go_first_and_unknown_ones_are_default() -> None:
    batches = policy(max_rows=1, priority_levels=3, default_priority_level=2)
    (low,), (unknown,), (high,) = (add(batches, 0.0, 1, priority=p) for p in (3, 9, 1))
    order = [batches.decide(0.0, free_instances=1).batch[0] for _ in range(3)]
    assert order == [high, unknown, low]


def test_a_full_queue_refuses() -> None:
    batches = policy(default_policy=QueuePolicy(max_queue_size=2))
    tickets = add(batches, 0.0, 1, 1)
    with pytest.raises(Overloaded, match="Exceeds maximum queue size"):
        add(batches, 0.0, 1)
    batches.discard(tickets[0])
    add(batches, 0.0, 1)


def test_a_timeout_expires_in_time_even_while_all_is_busy() -> None:
    batches = policy(default_policy=QueuePolicy(timeout_s=1.0))
    (ticket,) = add(batches, 0.0, 1)
    assert batches.decide(0.5, free_instances=0).wake_at == 1.0
    assert batches.decide(1.0, free_instances=0).expired == [ticket]
    assert len(batches) == 0


def test_a_delayed_request_goes_behind_those_on_time() -> None:
    delay = QueuePolicy(timeout_s=1.0, timeout_action=TimeoutAction.DELAY)
    batches = policy(max_rows=1, default_policy=delay)
    (late,) = add(batches, 0.0, 1)
    (fresh,) = add(batches, 0.9, 1)
    decision = batches.decide(1.0, free_instances=1)
    assert (decision.batch, decision.expired) == ([fresh], [])
    assert batches.decide(1.0, free_instances=1).batch == [late]


@pytest.mark.parametrize(
    ("granted", "wished", "allowed", "deadline"),
    [
        (0.0, 1.0, False, math.inf),
        (0.0, 1.0, True, 1.0),
        (2.0, 1.0, True, 1.0),
        (2.0, 3.0, True, 2.0),
        (2.0, 0.0, True, 2.0),
    ],
)
def test_a_request_may_only_shorten_its_timeout(
    granted: float, wished: float, allowed: bool, deadline: float
) -> None:
    batches = policy(default_policy=QueuePolicy(timeout_s=granted, allow_timeout_override=allowed))
    (ticket,) = add(batches, 0.0, 1, timeout_s=wished)
    assert ticket.expires_at == deadline


def test_without_dynamic_batching_requests_run_alone() -> None:
    batches: BatchPolicy[Ticket] = BatchPolicy(8, None)
    add(batches, 0.0, 1, 1)
    assert rows(batches.decide(0.0, free_instances=1).batch) == [1]


@pytest.mark.parametrize("batching", [None, Batching(), Batching(max_queue_delay_s=0.1)])
def test_nobody_is_woken_while_nothing_waits(batching: Batching | None) -> None:
    batches: BatchPolicy[Ticket] = BatchPolicy(8, batching)
    assert batches.decide(0.0, free_instances=1).wake_at == math.inf
    add(batches, 0.0, 1)
    assert batches.decide(0.2, free_instances=1).batch
    assert batches.decide(0.2, free_instances=1).wake_at == math.inf


arrivals = st.lists(
    st.tuples(
        st.integers(1, 8),  # rows
        st.sampled_from(["a", "b"]),  # shape
        st.integers(0, 4),  # priority wish
        st.sampled_from([0.0, 0.5, 2.0]),  # timeout wish
        st.sampled_from(["wait", "tick", "tick", "discard"]),  # what happens next
    ),
    max_size=60,
)


@given(
    arrivals=arrivals,
    preferred=st.sets(st.integers(1, 8)),
    delay=st.sampled_from([0.0, 0.3]),
    levels=st.sampled_from([0, 3]),
)
def test_every_request_leaves_once_in_order_and_no_batch_is_too_large(
    arrivals: list[tuple[int, str, int, float, str]],
    preferred: set[int],
    delay: float,
    levels: int,
) -> None:
    batches = policy(
        preferred_batch_sizes=tuple(preferred),
        max_queue_delay_s=delay,
        priority_levels=levels,
        default_priority_level=min(levels, 2),
        default_policy=QueuePolicy(allow_timeout_override=True),
    )
    now = 0.0
    left: list[Ticket] = []
    started: list[Ticket] = []
    tickets = []

    def decide() -> bool:
        decision = batches.decide(now, free_instances=1)
        assert sum(rows(decision.batch)) <= 8
        assert len({ticket.shape_key for ticket in decision.batch}) <= 1
        assert all(ticket.expires_at <= now for ticket in decision.expired)
        assert all(ticket.expires_at > now for ticket in decision.batch)
        assert decision.batch or decision.wake_at > now
        left.extend(decision.batch + decision.expired)
        started.extend(decision.batch)
        return bool(decision.batch)

    for count, shape, priority, timeout_s, event in arrivals:
        (ticket,) = add(
            batches, now, count, shape_key=shape, priority=priority, timeout_s=timeout_s
        )
        tickets.append(ticket)
        if event == "tick":
            now += 0.1
            decide()
        elif event == "discard" and ticket not in left:
            batches.discard(ticket)
            left.append(ticket)
    now += delay
    while decide():
        pass

    assert len(batches) == 0
    assert sorted(map(id, left)) == sorted(map(id, tickets))
    for level in range(levels + 1):
        numbers = [ticket.number for ticket in started if ticket.level == level]
        assert numbers == sorted(numbers)


def test_a_deadline_holds_whatever_the_queue_grants() -> None:
    patient = QueuePolicy(timeout_s=1.0, timeout_action=TimeoutAction.DELAY)
    batches = policy(default_policy=patient)
    [ticket] = add(batches, 0.0, 1, deadline=5.0)
    decision = batches.decide(2.0, free_instances=0)
    assert (decision.expired, decision.wake_at) == ([], 5.0)
    assert batches.decide(5.0, free_instances=0).expired == [ticket]
    assert len(batches) == 0


def test_far_deadlines_of_the_answered_do_not_pile_up() -> None:
    deadlines = Deadlines[int]()
    for item in range(1000):
        deadlines.add(item, 1e9)
        deadlines.discard(item)
    assert len(deadlines._heap) < 100
