from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config import SequenceBatching, SequenceStrategy
from serving.scheduling.sequence_policy import SequenceDecision, SequencePolicy, Step
from serving.types import Tensors

DIRECT, OLDEST = SequenceStrategy.DIRECT, SequenceStrategy.OLDEST


def policy(
    strategy: SequenceStrategy = DIRECT,
    *,
    max_rows: int = 4,
    instances: int = 1,
    initial_state: Tensors | None = None,
    **rules: object,
) -> SequencePolicy[Step]:
    return SequencePolicy(
        SequenceBatching(strategy, **rules),  # type: ignore[arg-type]
        max_rows=max_rows,
        instances=instances,
        initial_state=initial_state or {},
    )


def add(
    sequences: SequencePolicy[Step],
    id: int | str,
    marks: str = "",
    *,
    now: float = 0.0,
    deadline: float = math.inf,
    shape_key: str = "",
) -> Step:
    """Sends a request; `marks` may have "S" for START and "E" for END."""
    step = Step(
        id=id, start="S" in marks, end="E" in marks, shape_key=shape_key, expires_at=deadline
    )
    sequences.add(step, now)
    return step


def run(sequences: SequencePolicy[Step], now: float = 0.0) -> list[list[Step]]:
    """Decides, and finishes at once what was decided."""
    decision = sequences.decide(now)
    for batch in decision.batches:
        sequences.finish(batch, now)
    return [batch.steps for batch in decision.batches]


def steps(decision: SequenceDecision[Step]) -> list[list[Step]]:
    return [batch.steps for batch in decision.batches]


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
def test_requests_of_one_sequence_run_in_order_and_one_at_a_time(
    strategy: SequenceStrategy,
) -> None:
    sequences = policy(strategy)
    first, second = add(sequences, 1, "S"), add(sequences, 1, "E")
    running = sequences.decide(0.0)
    assert steps(running) == [[first]]
    assert sequences.decide(0.0).batches == []
    sequences.finish(running.batches[0], 0.0)
    assert run(sequences) == [[second]]
    assert len(sequences) == 0
    assert not sequences.continues(1)


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
def test_different_sequences_share_a_batch(strategy: SequenceStrategy) -> None:
    sequences = policy(strategy, max_candidate_sequences=4)
    sent = [add(sequences, id, "S") for id in (1, "1", 2)]
    assert run(sequences) == [sent]


def test_a_sequence_keeps_its_slot_and_the_rows_below_stay_empty() -> None:
    sequences = policy()
    for id in (1, 2, 3):
        add(sequences, id, "S")
    run(sequences)
    later = add(sequences, 3)
    (batch,) = run(sequences)
    assert batch == [later]
    assert sequences.rows(batch) == [None, None, later]


def test_oldest_has_no_empty_rows() -> None:
    sequences = policy(OLDEST, max_candidate_sequences=4)
    for id in (1, 2, 3):
        add(sequences, id, "S")
    run(sequences)
    later = add(sequences, 3)
    (batch,) = run(sequences)
    assert sequences.rows(batch) == [later]


def test_sequences_spread_over_instances_and_stay_there() -> None:
    sequences = policy(instances=2)
    one, two = add(sequences, 1, "S"), add(sequences, 2, "S")
    assert run(sequences) == [[one], [two]]
    again = add(sequences, 2)
    busy = sequences.decide(0.0)
    assert [(batch.instance, batch.steps) for batch in busy.batches] == [(1, [again])]


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
def test_sequences_beyond_the_capacity_wait_until_one_ends(strategy: SequenceStrategy) -> None:
    sequences = policy(strategy, max_rows=1)
    add(sequences, 1, "S")
    run(sequences)
    second, third = add(sequences, 2, "SE"), add(sequences, 3, "S")
    assert run(sequences) == []
    last = add(sequences, 1, "E")
    assert [run(sequences) for _ in range(3)] == [[[last]], [[second]], [[third]]]


def test_no_limit_on_candidates_means_as_many_as_a_batch_has_rows() -> None:
    sequences = policy(OLDEST, max_rows=2, max_candidate_sequences=0)
    one, two, _ = (add(sequences, id, "S") for id in (1, 2, 3))
    assert run(sequences) == [[one, two]]
    assert run(sequences) == []


def test_oldest_batches_no_more_rows_than_allowed_of_many_candidates() -> None:
    sequences = policy(OLDEST, max_rows=2, max_candidate_sequences=4)
    sent = [add(sequences, id, "S") for id in range(1, 5)]
    assert [run(sequences), run(sequences)] == [[sent[:2]], [sent[2:]]]


def test_oldest_waits_for_a_preferred_size_or_the_delay() -> None:
    sequences = policy(
        OLDEST, max_candidate_sequences=4, preferred_batch_sizes=(2,), max_queue_delay_s=1.0
    )
    one = add(sequences, 1, "S")
    assert sequences.decide(0.0).wake_at == 1.0
    two = add(sequences, 2, "S", now=0.5)
    assert run(sequences, 0.5) == [[one, two]]
    three = add(sequences, 3, "S", now=0.5)
    assert run(sequences, 1.4) == []
    assert run(sequences, 2.5) == [[three]]


def test_direct_waits_for_enough_slots_or_the_delay() -> None:
    sequences = policy(minimum_slot_utilization=0.5, max_queue_delay_s=1.0)
    one = add(sequences, 1, "S")
    assert sequences.decide(0.0).wake_at == 1.0
    two = add(sequences, 2, "S", now=0.5)
    assert run(sequences, 0.5) == [[one, two]]
    late = add(sequences, 1, now=0.5)
    assert run(sequences, 1.4) == []
    assert run(sequences, 1.5) == [[late]]


def test_direct_does_not_wait_without_a_minimum_slot_utilization() -> None:
    sequences = policy(max_queue_delay_s=1.0)
    one = add(sequences, 1, "S")
    assert run(sequences) == [[one]]


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
def test_only_equal_shapes_share_a_batch(strategy: SequenceStrategy) -> None:
    sequences = policy(strategy, max_candidate_sequences=4)
    one = add(sequences, 1, "S", shape_key="a")
    two = add(sequences, 2, "S", shape_key="b")
    assert [run(sequences), run(sequences)] == [[[one]], [[two]]]


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
def test_only_equal_shapes_of_state_share_a_batch(strategy: SequenceStrategy) -> None:
    initial = {"past": np.zeros((1, 1))}
    sequences = policy(strategy, max_candidate_sequences=4, initial_state=initial)
    first = add(sequences, 1, "S")
    (batch,) = sequences.decide(0.0).batches
    assert first.state is initial
    first.state = {"past": np.ones((1, 2))}
    sequences.finish(batch, 0.0)
    second, other = add(sequences, 1), add(sequences, 2, "S")
    assert [run(sequences), run(sequences)] == [[[second]], [[other]]]
    assert second.state is first.state


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
def test_a_second_start_begins_anew_in_the_same_slot(strategy: SequenceStrategy) -> None:
    initial = {"past": np.zeros((1, 1))}
    sequences = policy(strategy, max_rows=1, initial_state=initial)
    first = add(sequences, 1, "S")
    (batch,) = sequences.decide(0.0).batches
    first.state = {"past": np.ones((1, 1))}
    sequences.finish(batch, 0.0)
    add(sequences, 2, "S")
    again = add(sequences, 1, "S")
    assert run(sequences) == [[again]]
    assert again.state is initial


def test_a_sequence_after_the_end_of_another_with_its_id_queues_for_a_slot_of_its_own() -> None:
    sequences = policy(max_rows=1)
    one = add(sequences, 1, "SE")
    two = add(sequences, 1, "SE")
    other = add(sequences, 2, "SE")
    assert [run(sequences) for _ in range(3)] == [[[one]], [[other]], [[two]]]


def test_nothing_continues_after_an_end_that_was_only_accepted() -> None:
    sequences = policy()
    add(sequences, 1, "S")
    assert sequences.continues(1)
    assert not sequences.continues("1")
    add(sequences, 1, "E")
    assert not sequences.continues(1)


def test_an_idle_sequence_ends_and_its_slot_is_given_to_another() -> None:
    sequences = policy(max_rows=1, max_idle_s=1.0)
    add(sequences, 1, "S")
    run(sequences)
    add(sequences, 1, now=0.9)
    run(sequences, 0.9)
    other = add(sequences, 2, "S", now=1.0)
    assert sequences.decide(1.8).wake_at == 1.9
    assert run(sequences, 1.9) == [[other]]
    assert not sequences.continues(1)


def test_a_sequence_is_not_idle_while_it_runs_or_waits() -> None:
    sequences = policy(max_rows=1, max_idle_s=1.0)
    add(sequences, 1, "S")
    (batch,) = sequences.decide(0.0).batches
    waits = add(sequences, 2, "S")
    assert sequences.decide(9.0).wake_at == math.inf
    sequences.finish(batch, 9.0)
    assert sequences.decide(9.5).wake_at == 10.0
    assert run(sequences, 10.0) == [[waits]]


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
def test_a_discarded_request_is_skipped_and_its_sequence_goes_on(
    strategy: SequenceStrategy,
) -> None:
    sequences = policy(strategy)
    first, second, third = (add(sequences, 1, marks) for marks in ("S", "", ""))
    sequences.discard(second, 0.0)
    assert len(sequences) == 2
    assert [run(sequences), run(sequences)] == [[[first]], [[third]]]
    sequences.discard(first, 0.0)
    assert sequences.continues(1)


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
@pytest.mark.parametrize("max_rows", [1, 2])
def test_without_its_start_a_sequence_does_not_begin(
    strategy: SequenceStrategy, max_rows: int
) -> None:
    sequences = policy(strategy, max_rows=max_rows, max_candidate_sequences=max_rows)
    add(sequences, 2, "S")
    (batch,) = sequences.decide(0.0).batches
    start, orphan = add(sequences, 1, "S"), add(sequences, 1)
    sequences.decide(0.0)
    sequences.discard(start, 0.0)
    decision = sequences.decide(0.0)
    assert (steps(decision), decision.orphaned) == ([], [orphan])
    assert not sequences.continues(1)
    assert len(sequences) == 0
    sequences.finish(batch, 0.0)
    end, again = add(sequences, 2, "E"), add(sequences, 1, "S")
    ran = [step for _ in range(2) for batch in run(sequences) for step in batch]
    assert ran == [end, again]


def test_a_request_that_runs_cannot_be_discarded() -> None:
    sequences = policy()
    start, middle = add(sequences, 1, "S"), add(sequences, 1)
    (batch,) = sequences.decide(0.0).batches
    sequences.discard(start, 0.0)
    sequences.finish(batch, 0.0)
    assert run(sequences) == [[middle]]


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
def test_without_its_start_a_second_sequence_still_ends_the_first(
    strategy: SequenceStrategy,
) -> None:
    sequences = policy(strategy, max_rows=1)
    first = add(sequences, 1, "S")
    start, orphan = add(sequences, 1, "S"), add(sequences, 1)
    other = add(sequences, 2, "S")
    sequences.discard(start, 0.0)
    assert run(sequences) == [[first]]
    decision = sequences.decide(0.0)
    assert (steps(decision), decision.orphaned) == ([[other]], [orphan])


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
def test_a_discarded_end_still_frees_the_slot(strategy: SequenceStrategy) -> None:
    sequences = policy(strategy, max_rows=1)
    add(sequences, 1, "S")
    end = add(sequences, 1, "E")
    other = add(sequences, 2, "S")
    sequences.discard(end, 0.0)
    run(sequences)
    assert run(sequences) == [[other]]


def test_a_request_expires_in_time_even_while_all_is_busy() -> None:
    sequences = policy(max_rows=1)
    add(sequences, 1, "S")
    sequences.decide(0.0)
    late = add(sequences, 1, deadline=1.0)
    backlogged = add(sequences, 2, "S", deadline=2.0)
    assert sequences.decide(0.5).wake_at == 1.0
    assert sequences.decide(1.0).expired == [late]
    assert sequences.decide(2.0).expired == [backlogged]
    assert len(sequences) == 0
    assert not sequences.continues(2)


def test_deadlines_of_requests_answered_long_before_do_not_pile_up() -> None:
    sequences = policy()
    add(sequences, 1, "S")
    for _ in range(1000):
        add(sequences, 1, deadline=1e9)
        run(sequences)
    assert len(sequences._deadlines._heap) < 100


def test_clearing_forgets_all_that_does_not_run() -> None:
    sequences = policy(max_rows=1, max_idle_s=1.0)
    add(sequences, 1, "S")
    (batch,) = sequences.decide(0.0).batches
    waiting = [add(sequences, 1), add(sequences, 2, "S"), add(sequences, 2)]
    assert sequences.clear() == waiting
    assert len(sequences) == 0
    assert not sequences.continues(1)
    assert not sequences.continues(2)
    sequences.finish(batch, 0.0)
    sequences.clear()
    decision = sequences.decide(9.0)
    assert (decision.batches, decision.orphaned, decision.wake_at) == ([], [], math.inf)


events = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 3, "1"]),  # id
        st.sampled_from(["S", "", "", "E", "SE"]),  # marks
        st.sampled_from(["a", "a", "b"]),  # shape
        st.sampled_from([math.inf, math.inf, 0.2]),  # seconds until the deadline
        st.sampled_from(["send", "decide", "finish", "finish", "discard"]),  # what happens next
    ),
    max_size=80,
)


@given(
    events=events,
    strategy=st.sampled_from([DIRECT, OLDEST]),
    max_rows=st.integers(1, 3),
    instances=st.integers(1, 2),
    candidates=st.integers(0, 4),
    delay=st.sampled_from([0.0, 0.3]),
)
def test_every_request_leaves_once_and_every_slot_comes_back(
    events: list[tuple[int | str, str, str, float, str]],
    strategy: SequenceStrategy,
    max_rows: int,
    instances: int,
    candidates: int,
    delay: float,
) -> None:
    sequences = policy(
        strategy,
        max_rows=max_rows,
        instances=instances,
        max_idle_s=1.0,
        max_candidate_sequences=candidates,
        max_queue_delay_s=delay,
        minimum_slot_utilization=0.7,
    )
    slots = sorted(sequences._free_slots)
    now = 0.0
    sent: list[Step] = []
    left: list[Step] = []
    started: list[Step] = []
    running = []

    def decide() -> None:
        decision = sequences.decide(now)
        assert decision.wake_at > now
        for batch in decision.batches:
            assert len(batch.steps) <= max_rows
            assert len({step.shape_key for step in batch.steps}) == 1
            assert sum(row is not None for row in sequences.rows(batch.steps)) == len(batch.steps)
            running.append(batch)
            started.extend(batch.steps)
        ids = [step.id for batch in running for step in batch.steps]
        assert len(set(ids)) == len(ids)
        assert len({batch.instance for batch in running}) == len(running) <= instances
        left.extend(decision.expired + decision.orphaned)

    for one, marks, shape, patience, event in events:
        if "S" in marks or sequences.continues(one):
            sent.append(
                add(sequences, one, marks, now=now, deadline=now + patience, shape_key=shape)
            )
        if event == "decide":
            now += 0.1
            decide()
        elif event == "finish" and running:
            sequences.finish(running.pop(0), now)
            decide()
        elif event == "discard" and sent and sent[-1].waits:
            sequences.discard(sent[-1], now)
            left.append(sent[-1])
    while len(sequences) or running:
        now += 0.1
        decide()
        while running:
            sequences.finish(running.pop(), now)
    decide()

    places = {step: place for place, step in enumerate(sent)}
    assert sorted(places[step] for step in left + started) == list(range(len(sent)))
    for one in {step.id for step in sent}:
        order = [places[step] for step in started if step.id == one]
        assert order == sorted(order)
    now += 1.0
    assert sequences.decide(now).wake_at == math.inf
    assert sorted(sequences._free_slots) == slots
    assert not sequences._sequences
