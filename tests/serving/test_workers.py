"""The threads of an engine, and what an engine and its scheduler do not copy."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serving.engines.workers import Workers
from serving.types import Tensors
from tests.serving.test_scheduler import Doubler, request, scheduler


class Counted:
    """Counts how often other threads wake the loop, until it is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        loop = asyncio.get_running_loop()
        real = loop.call_soon_threadsafe
        self.times = 0

        def counting(callback: Callable[..., object], *given: Any) -> asyncio.Handle:
            self.times += 1
            return real(callback, *given)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counting)


async def test_a_run_wakes_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(2, "test")
    woken = Counted(monkeypatch)
    assert [await workers.run(lambda number: 2 * number, number) for number in range(9)] == [
        2 * number for number in range(9)
    ]
    assert woken.times == 9
    workers.close()


async def test_runs_share_the_threads_and_no_more_are_started() -> None:
    workers = Workers(3, "test-shared")
    together = threading.Barrier(3, timeout=10)
    names = await asyncio.gather(*(workers.run(_name, together) for _ in range(9)))
    assert set(names) == {"test-shared-0", "test-shared-1", "test-shared-2"}
    workers.close()
    assert not any(thread.name in names for thread in threading.enumerate())


def _name(together: threading.Barrier) -> str:
    together.wait()
    return threading.current_thread().name


async def test_an_error_is_its_caller_s_and_the_thread_goes_on() -> None:
    workers = Workers(1, "test")
    with pytest.raises(ZeroDivisionError):
        await workers.run(lambda number: 1 / number, 0)
    assert await workers.run(lambda number: 1 / number, 2) == 0.5
    workers.close()


async def test_what_nobody_waits_for_any_more_is_not_begun() -> None:
    workers = Workers(1, "test")
    began, may_end = threading.Event(), threading.Event()
    ran: list[int] = []

    def occupy(number: int) -> None:
        began.set()
        may_end.wait(10)

    first = asyncio.create_task(workers.run(occupy, 0))
    second = asyncio.create_task(workers.run(ran.append, 1))
    await asyncio.to_thread(began.wait, 10)
    first.cancel()
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    third = asyncio.create_task(workers.run(ran.append, 2))
    await asyncio.sleep(0)
    may_end.set()
    await third
    assert ran == [2]
    workers.close()


async def test_closing_waits_for_what_runs() -> None:
    workers = Workers(1, "test")
    began, ended = threading.Event(), []

    def slowly(number: int) -> None:
        began.set()
        threading.Event().wait(0.05)
        ended.append(number)

    run = asyncio.create_task(workers.run(slowly, 1))
    await asyncio.to_thread(began.wait, 10)
    workers.close()
    assert ended == [1]
    await run


async def test_nothing_of_a_run_is_held_after_it() -> None:
    class Thing:
        pass

    workers = Workers(1, "test")
    thing = Thing()
    gone = weakref.ref(thing)
    await workers.run(id, thing)
    # The thread is past the run when it has taken up the next.
    await workers.run(id, None)
    del thing
    gc.collect()
    assert gone() is None
    workers.close()


class Noting(Doubler):
    """Keeps what it was given."""

    def __init__(self, pause_s: float = 0.0) -> None:
        super().__init__(pause_s)
        self.given: list[Tensors] = []

    async def infer(self, inputs: Tensors) -> Tensors:
        self.given.append(inputs)
        return await super().infer(inputs)


async def test_a_request_that_is_a_batch_is_not_copied_and_others_are_once() -> None:
    engine = Noting()
    batches = scheduler(engine)
    alone = request(1.0, rows=3)
    await batches.infer(alone, 3)
    assert np.shares_memory(engine.given[0]["x"], alone.inputs["x"])
    several = [request(2.0), request(3.0)]
    answers = await asyncio.gather(*(batches.infer(each, 1) for each in several))
    assert engine.given[1]["x"].tolist() == [[2.0], [3.0]]
    assert not np.shares_memory(engine.given[1]["x"], several[0].inputs["x"])
    # Answers are views of the one output.
    assert np.shares_memory(answers[0]["y"].base, answers[1]["y"].base)
    await batches.stop()
