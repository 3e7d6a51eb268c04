"""Batches that are put together while their requests wait."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from weakref import ref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config import Batching, QueuePolicy, TimeoutAction
from serving.scheduling import gathering
from serving.scheduling.gathering import Gathered, Gathering, joined
from serving.types import InferRequest, Tensors
from tests.serving.test_scheduler import request, scheduler
from tests.serving.test_workers import Noting


@pytest.fixture(autouse=True, scope="module")
def all_are_large() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gathering, "LEAST_BYTES", 0)
        yield


class Busy:
    """A scheduler whose only instance runs a request of its own, and those who wait meanwhile."""

    def __init__(self, batching: Batching | None = None) -> None:
        self.engine = Noting(pause_s=0.005)
        self.batches = scheduler(self.engine, batching)
        self.asking: list[asyncio.Task[Tensors]] = []

    async def begin(self) -> None:
        first = request(0.0)
        body = first.inputs["x"]
        self._ask(first)
        await until(lambda: self.engine.running)
        # Who runs at once is not copied.
        assert self.engine.given[0]["x"] is body

    async def wait(self, *waiting: InferRequest) -> None:
        for each in waiting:
            self._ask(each)
        await until(lambda: self.batches.depth == len(waiting))

    def _ask(self, asked: InferRequest) -> None:
        rows = len(asked.inputs["x"])
        self.asking.append(asyncio.create_task(self.batches.infer(asked, rows)))


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)


async def test_those_who_wait_are_copied_when_they_come_and_not_again() -> None:
    busy = Busy()
    await busy.begin()
    waiting = [request(2.0), request(3.0, rows=2), request(4.0), request(5.0)]
    bodies = [each.inputs["x"] for each in waiting]
    await busy.wait(*waiting)
    # What came is held no more.
    assert not any(map(np.shares_memory, (each.inputs["x"] for each in waiting), bodies))
    await asyncio.gather(*busy.asking)
    [together] = busy.engine.given[1:]
    assert together["x"].tolist() == [[2.0], [3.0], [3.0], [4.0], [5.0]]
    assert all(np.shares_memory(together["x"], each.inputs["x"]) for each in waiting)
    await busy.batches.stop()


async def test_nobody_gets_the_row_of_one_who_left() -> None:
    busy = Busy()
    await busy.begin()
    await busy.wait(*map(request, (2.0, 3.0, 4.0)))
    busy.asking.pop(2).cancel()
    answers = await asyncio.gather(*busy.asking)
    assert [answer["y"].tolist() for answer in answers] == [[[0.0]], [[4.0]], [[8.0]]]
    assert busy.engine.given[1]["x"].tolist() == [[2.0], [4.0]]
    await busy.batches.stop()


async def test_a_batch_does_not_change_while_others_come() -> None:
    busy = Busy()
    await busy.begin()
    await busy.wait(*map(request, (2.0, 3.0)))
    await until(lambda: len(busy.engine.given) == 2)
    await busy.wait(*map(request, (4.0, 5.0)))
    answers = await asyncio.gather(*busy.asking)
    assert [answer["y"].item() for answer in answers] == [0.0, 4.0, 6.0, 8.0, 10.0]
    assert not np.shares_memory(busy.engine.given[1]["x"], busy.engine.given[2]["x"])
    await busy.batches.stop()


async def test_what_would_be_a_batch_by_itself_is_not_copied() -> None:
    busy = Busy()
    await busy.begin()
    whole = request(2.0, rows=8)
    body = whole.inputs["x"]
    await busy.wait(whole)
    assert whole.inputs["x"] is body
    await asyncio.gather(*busy.asking)
    await busy.batches.stop()


@given(
    st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=40),
    st.lists(st.integers(1, 9), max_size=40),
)
def test_whatever_runs_together_is_what_was_asked(
    asked: list[tuple[int, bool]], batches: list[int]
) -> None:
    """Of those who asked some leave, and the others run in order, so many at a time, while more
    ask."""
    adding = Gathering(8)
    waiting: list[tuple[Tensors, list[int]]] = []
    ran: list[tuple[Tensors, list[int]]] = []
    sizes = iter(batches)
    for number, (rows, stays) in enumerate(asked):
        values = [1000 * number + row for row in range(rows)]
        tensors = {"x": np.array(values, np.int64)[:, np.newaxis]}
        gathered = adding.add(tensors, rows)
        if stays:
            waiting.append((gathered, values))
        if number % 3 == 2 and waiting:
            size = next(sizes, 1)
            taken, waiting = waiting[:size], waiting[size:]
            whole = joined([inputs for inputs, _ in taken])
            if whole is not None:
                ran.append((whole, list(itertools.chain(*(values for _, values in taken)))))
    # Also at the end: nothing was written over.
    for whole, expected in ran:
        assert whole["x"].ravel().tolist() == expected
    for inputs, values in waiting:
        assert inputs["x"].ravel().tolist() == values


@pytest.mark.parametrize(
    "batching",
    [
        Batching(priority_levels=2, default_priority_level=1),
        Batching(default_policy=QueuePolicy(timeout_action=TimeoutAction.DELAY)),
    ],
)
async def test_who_may_wait_long_keeps_no_memory_of_others(batching: Batching) -> None:
    busy = Busy(batching)
    await busy.begin()
    waiting = request(2.0)
    body = waiting.inputs["x"]
    await busy.wait(waiting)
    assert waiting.inputs["x"] is body
    await asyncio.gather(*busy.asking)
    await busy.batches.stop()


def test_what_is_too_much_memory_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"x": np.zeros((1, 1 << 10), np.float32)}
    assert Gathering(1 << 16).add(row, 1) is not row
    assert Gathering((1 << 16) + 1).add(row, 1) is row

    def refuse(*size: object) -> None:
        raise MemoryError

    monkeypatch.setattr(gathering, "_Block", refuse)
    assert Gathering(8).add(row, 1) is row


def test_nothing_is_kept_when_nobody_waits() -> None:
    adding = Gathering(8)
    gathered = adding.add({"x": np.zeros((1, 4))}, 1)
    assert isinstance(gathered, Gathered)
    array = ref(gathered.block.arrays["x"])
    assert array() is not None
    del gathered
    assert array() is None
    assert adding.add({"x": np.ones((1, 4))}, 1)["x"].tolist() == [[1.0] * 4]


def test_batches_that_are_full_lie_in_blocks_of_their_own() -> None:
    adding = Gathering(4)
    parts = [adding.add({"x": np.full((1, 2), number)}, 1) for number in range(10)]
    for start in (0, 4):
        whole = joined(parts[start : start + 4])
        assert whole is not None
        assert whole["x"][:, 0].tolist() == list(range(start, start + 4))
    assert joined(parts[2:6]) is None
    assert joined(parts[1::-1]) is None
    assert joined([*parts[:2], *parts[6:8]]) is None


def test_who_comes_when_a_batch_has_left_begins_another() -> None:
    adding = Gathering(4)
    for _ in range(3):
        parts = [adding.add({"x": np.full((1, 2), number)}, 1) for number in range(3)]
        assert joined(parts) is not None
