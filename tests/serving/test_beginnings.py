"""Who begins when, where there is one thread for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Semaphore

from serving.steppers.beginnings import PATIENCE, Beginnings


@contextmanager
def beginning() -> Iterator[tuple[Beginnings[str, str], Callable[[str, int], None], Event]]:
    """One thread, which is busy until the event is set."""
    beginnings = Beginnings[str, str](1)
    has_started, may_go_on = Event(), Event()

    def hold() -> list[str]:
        has_started.set()
        may_go_on.wait(10)
        return [""]

    def start(name: str, tokens: int) -> None:
        beginnings.start([name], lambda: [name.upper()], tokens=tokens)

    beginnings.start(["first"], hold, tokens=1)
    has_started.wait(10)
    try:
        yield beginnings, start, may_go_on
    finally:
        may_go_on.set()
        beginnings.close()


def finished(beginnings: Beginnings[str, str]) -> list[str]:
    """All that is under way, in the order in which it began."""
    names = []
    while begun := list(beginnings.finished(wait_for_one=True)):
        names += [name for each in begun for name in each.jobs]
    assert not beginnings.busy
    return names


def test_short_ones_overtake_long_ones() -> None:
    with beginning() as (beginnings, start, go_on):
        for name, tokens in (("long", 100), ("middle", 50), ("short", 5), ("equal", 5)):
            start(name, tokens)
        go_on.set()
        assert finished(beginnings) == ["first", "short", "equal", "middle", "long"]


def test_a_long_one_is_not_overtaken_for_ever() -> None:
    turns = Semaphore(0)

    def compute() -> list[str]:
        turns.acquire()
        return [""]

    names: list[str] = []
    with beginning() as (beginnings, start, go_on):
        start("long", 100)
        beginnings.start(["short"], compute, tokens=10)
        go_on.set()
        while "long" not in names:
            # There is always another short one when the one before it is done.
            beginnings.start(["short"], compute, tokens=10)
            turns.release()
            names += [each.jobs[0] for each in beginnings.finished(wait_for_one=True)]
        turns.release(2)
    assert 10 < names.count("short") <= PATIENCE * 10


def test_a_long_one_is_not_overtaken_by_a_crowd() -> None:
    with beginning() as (beginnings, start, go_on):
        start("long", 100)
        for _ in range(60):
            start("short", 60)
        go_on.set()
        names = finished(beginnings)
    assert names.index("long") * 60 <= PATIENCE * 100


def test_what_cannot_be_computed_comes_as_its_error() -> None:
    def fail() -> list[str]:
        raise ValueError("no")

    with beginning() as (beginnings, start, go_on):
        beginnings.start(["bad"], fail, tokens=1)
        start("good", 2)
        go_on.set()
        results = {}
        while begun := list(beginnings.finished(wait_for_one=True)):
            results.update({each.jobs[0]: each.results for each in begun})
    assert isinstance(results["bad"], ValueError)
    assert results["good"] == ["GOOD"]
