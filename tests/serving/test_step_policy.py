"""What must hold of the step policy, whatever comes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import Batching, QueuePolicy
from serving.errors import Overloaded
from serving.scheduling.step_policy import Capacity, Job, Stage, StepDecision, StepPolicy

CAPACITY = Capacity(slots=4, memory_bytes=400, unit_bytes=(1,), begin_budget=10, quantum=5)


def policy(capacity: Capacity = CAPACITY, **rules: object) -> StepPolicy[Job]:
    return StepPolicy(capacity, Batching(**rules))  # type: ignore[arg-type]


def job(rows: int = 1, extent: int = 10, **wishes: object) -> Job:
    return Job(rows, extents=(extent,), **wishes)  # type: ignore[arg-type]


def add(steps: StepPolicy[Job], count: int = 1, now: float = 0.0, **wishes: object) -> list[Job]:
    jobs = [job(**wishes) for _ in range(count)]  # type: ignore[arg-type]
    for each in jobs:
        steps.add(each, now)
    return jobs


def run(steps: StepPolicy[Job], iterations: int) -> StepDecision[Job]:
    for _ in range(iterations):
        decision = steps.decide(0.0)
    return decision


def test_who_arrives_joins_those_who_run() -> None:
    steps = policy()
    [first] = add(steps)
    assert steps.decide(0.0).step == [first]
    [second] = add(steps)
    decision = steps.decide(0.0)
    assert (decision.begin, decision.step) == ([second], [first, second])
    steps.finish(first)
    decision = steps.decide(0.0)
    assert (decision.end, decision.step) == ([first], [second])


def test_slots_are_not_oversubscribed_and_the_line_is_kept() -> None:
    steps = policy()
    wide = add(steps, rows=3)[0]
    [wider, narrow] = [*add(steps, rows=2), *add(steps)]
    assert steps.decide(0.0).begin == [wide]  # the narrow one would fit, and waits behind the wider
    steps.finish(wide)
    assert steps.decide(0.0).begin == [wider, narrow]


def test_memory_is_what_the_furthest_reaches_times_all_rows() -> None:
    steps = policy()
    near = add(steps, 3, extent=100)
    far = add(steps, extent=101)
    assert run(steps, 1).begin == near  # four rows of 101 would be more than 400
    steps.finish(near[0])
    assert run(steps, 1).begin == far


def test_what_could_never_run_is_not_admitted() -> None:
    assert not CAPACITY.admits(job(rows=5))
    assert not CAPACITY.admits(job(extent=401))
    assert CAPACITY.admits(job(rows=4, extent=100))


def test_beginning_is_rationed_so_that_those_who_run_keep_moving() -> None:
    steps = policy()
    large = add(steps, 3, begin_cost=6)
    assert steps.decide(0.0).begin == large[:1]
    assert steps.decide(0.0).begin == large[1:2]
    steps.finish(large[2])
    [huge] = add(steps, begin_cost=1000)
    assert steps.decide(0.0).begin == [huge]


def test_a_short_one_waits_for_a_turn_and_not_for_a_long_ones_end() -> None:
    steps = policy()
    long = add(steps, 4)
    run(steps, 2)
    [short] = add(steps)
    decision = run(steps, 4)
    assert (decision.begin, decision.suspend) == ([short], [long[0]])
    steps.finish(short)
    assert steps.decide(0.0).resume == [long[0]]


def test_turns_go_round() -> None:
    steps = policy(Capacity(slots=1, memory_bytes=400, unit_bytes=(1,), quantum=5))
    jobs = add(steps, 3)
    seen = []
    for _ in range(45):
        seen += steps.decide(0.0).step
    assert [seen.count(each) for each in jobs] == [15, 15, 15]
    assert seen[:15] == [jobs[0]] * 5 + [jobs[1]] * 5 + [jobs[2]] * 5


def test_higher_priority_takes_the_place_of_lower_at_once() -> None:
    steps = policy(priority_levels=2, default_priority_level=2)
    low = add(steps, 4)
    run(steps, 1)
    [high] = add(steps, priority=1)
    decision = steps.decide(0.0)
    assert decision.begin == [high]
    assert len(decision.suspend) == 1
    assert decision.suspend[0] in low
    [later] = add(steps)  # of the lower level, which takes nobody's place before a turn is over
    assert steps.decide(0.0).begin == []
    steps.finish(high)
    assert steps.decide(0.0).resume == decision.suspend
    assert later.stage is Stage.WAITING


def test_no_more_is_suspended_than_there_is_memory_for() -> None:
    steps = policy(
        Capacity(slots=4, memory_bytes=400, unit_bytes=(1,)),
        priority_levels=3,
        default_priority_level=3,
    )
    add(steps, 4, extent=100)
    run(steps, 1)
    assert len(_begun(steps, add(steps, 4, extent=100, priority=2))) == 4
    # The first four are suspended and take what suspended ones may take.
    assert _begun(steps, add(steps, 1, extent=100, priority=1)) == []


def _begun(steps: StepPolicy[Job], jobs: list[Job]) -> list[Job]:
    steps.decide(0.0)
    steps.decide(0.0)
    return [each for each in jobs if each.stage is Stage.RUNNING]


def test_a_slow_reader_holds_up_itself_only() -> None:
    steps = policy()
    jobs = add(steps, 4)
    run(steps, 1)
    steps.block(jobs[0])
    assert steps.decide(0.0).step == jobs[1:]
    [other] = add(steps)
    decision = steps.decide(0.0)  # no turn is over, but nobody needs that place
    assert (decision.suspend, decision.begin) == ([jobs[0]], [other])
    steps.finish(other)
    assert steps.decide(0.0).resume == []
    steps.unblock(jobs[0])
    assert steps.decide(0.0).resume == [jobs[0]]


def test_deadlines_hold_while_waiting_while_running_and_while_suspended() -> None:
    steps = policy()
    jobs = add(steps, 5, deadline=5.0)
    decision = steps.decide(1.0)
    assert (decision.begin, decision.wake_at) == (jobs[:4], 5.0)
    steps.block(jobs[0])
    assert steps.decide(2.0).suspend == [jobs[0]]
    [waits] = add(steps, now=2.0, deadline=4.0)
    decision = steps.decide(4.0)
    assert (decision.expired, decision.overdue) == ([waits], [])
    decision = steps.decide(5.0)
    assert set(decision.overdue) == set(jobs) == set(decision.end)
    assert steps.decide(6.0).wake_at == math.inf
    assert steps.is_idle


def test_while_nothing_happens_the_decision_stays() -> None:
    steps = policy()
    jobs = add(steps, 4)
    begun = steps.decide(0.0)
    steady = steps.decide(1.0)
    assert begun.step is steady.step
    assert (begun.begin, steady.begin, steady.step) == (jobs, [], jobs)
    assert steps.decide(2.0) is steady
    steps.block(jobs[0])
    assert steps.decide(3.0).step == jobs[1:]
    steps.unblock(jobs[0])
    assert steps.decide(4.0).step == jobs
    steps.finish(jobs[1])
    assert steps.decide(5.0).end == [jobs[1]]
    [last] = add(steps, deadline=7.0)
    assert steps.decide(6.0).begin == [last]
    assert steps.decide(6.5).overdue == []
    assert steps.decide(7.0).overdue == [last]


def test_a_turn_is_counted_while_nothing_happens() -> None:
    steps = policy()
    jobs = add(steps, 4)
    run(steps, CAPACITY.quantum)
    [other] = add(steps)
    decision = steps.decide(0.0)
    assert (decision.suspend, decision.begin) == ([jobs[0]], [other])


def test_a_timeout_is_for_the_queue_only() -> None:
    steps = policy(default_policy=QueuePolicy(timeout_s=1.0))
    jobs = add(steps, 5)
    assert steps.decide(0.5).begin == jobs[:4]
    assert steps.decide(1.0).expired == jobs[4:]
    assert steps.decide(9.0).step == jobs[:4]


def test_a_full_queue_refuses() -> None:
    steps = policy(default_policy=QueuePolicy(max_queue_size=2))
    add(steps, 2)
    with pytest.raises(Overloaded, match="Exceeds maximum queue size: 2"):
        add(steps)


WISHES = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 4),
        "extent": st.integers(1, 100),
        "priority": st.integers(0, 3),
        "begin_cost": st.integers(1, 20),
        "steps": st.integers(1, 30),
        "deadline": st.one_of(st.just(math.inf), st.floats(0, 60)),
    }
)
EVENT = st.one_of(
    st.tuples(st.just("arrive"), WISHES),
    st.tuples(st.sampled_from(["leave", "block", "unblock"]), st.integers(0, 50)),
    st.tuples(st.just("wait"), st.integers(1, 8)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENT, max_size=60))
def test_whatever_comes(events: list[tuple[str, object]]) -> None:
    """Capacity is never exceeded, the stages are what was decided, and everybody gets an end."""
    steps = policy(priority_levels=3, default_priority_level=2)
    left: dict[Job, int] = {}
    ended: set[Job] = set()
    gone: set[Job] = set()
    jobs: list[Job] = []
    now = 0.0

    def iterate() -> None:
        nonlocal now
        now += 1.0
        decision = steps.decide(now)
        ended.update(decision.expired, decision.overdue)
        running = [each for each in jobs if each.stage is Stage.RUNNING]
        assert CAPACITY.holds(running)
        assert sum(each.rows for each in running) == steps.running
        suspended = [each for each in jobs if each.stage is Stage.SUSPENDED]
        assert sum(map(CAPACITY.bytes_apart, suspended)) <= CAPACITY.memory_bytes
        assert set(decision.step) == {each for each in running if not each.is_blocked}
        assert not {*decision.suspend} & {*decision.begin, *decision.resume}
        assert not {*decision.end} & {*running, *suspended}
        begun = sum(each.begin_cost for each in decision.begin)
        assert begun <= CAPACITY.begin_budget or len(decision.begin) == 1
        for each in decision.step:
            left[each] -= 1
            if not left[each]:
                steps.finish(each)
                ended.add(each)

    for kind, value in events:
        if kind == "arrive":
            assert isinstance(value, dict)
            wishes = dict(value)
            count = wishes.pop("steps")
            each = job(**wishes)
            left[each] = count
            jobs.append(each)
            steps.add(each, now)
        elif kind == "wait":
            assert isinstance(value, int)
            for _ in range(value):
                iterate()
        elif jobs:
            assert isinstance(value, int)
            each = jobs[value % len(jobs)]
            if kind == "leave":
                steps.finish(each)
                gone.add(each)
            elif kind == "block":
                steps.block(each)
            else:
                steps.unblock(each)
    for each in jobs:
        steps.unblock(each)
    total = sum(left.values()) + 10 * len(jobs) + 100
    for _ in range(total):
        iterate()
    assert steps.is_idle
    assert ended | gone == set(jobs)
