"""Work that keeps the event loop for long."""

from __future__ import annotations

import asyncio
from typing import Any

from serving.fronts.turns import Turns


async def test_one_in_each_turn_of_the_loop_and_others_between() -> None:
    turns, done = Turns(), list[str]()
    loop = asyncio.get_running_loop()
    for name in "abc":
        turns.add(lambda name=name: done.append(name))  # type: ignore[misc]
    assert done == []
    loop.call_soon(done.append, "another")
    for expected in ("a another", "a another b", "a another b c"):
        await asyncio.sleep(0)
        assert done == expected.split()


async def test_work_that_makes_work() -> None:
    turns, done = Turns(), list[int]()

    def work(number: int) -> None:
        done.append(number)
        if number < 3:
            turns.add(lambda: work(number + 1))
            turns.add(lambda: done.append(-number))

    turns.add(lambda: work(1))
    for _ in range(9):
        await asyncio.sleep(0)
    assert done == [1, 2, -1, 3, -2]


async def test_what_fails_keeps_no_other_from_its_turn() -> None:
    turns, done = Turns(), list[str]()
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def fail() -> None:
        raise ValueError("no")

    turns.add(fail)
    turns.add(lambda: done.append("next"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert done == ["next"]
    assert [str(context["exception"]) for context in told] == ["no"]
