"""Threads that compute for an event loop, and wake it once for each run."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
A = TypeVar("A")


class Workers:
    """At most `count` threads, each started when it is needed first.

    An executor does the same for any caller, with two futures and four locks for each run.
    """

    def __init__(self, count: int, name: str):
        self._count = count
        self._name = name
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()

    async def run(self, function: Callable[[A], T], argument: A) -> T:
        """What the function returns or raises, on a thread. Once begun, it is not interrupted."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(loop, answer, function, argument))
        if len(self._threads) < self._count:
            # They end when they are told to, or with the process.
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return await answer

    def close(self) -> None:
        """Wait for what runs, and end the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()


class _Job:
    __slots__ = ("answer", "argument", "function", "loop")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        answer: asyncio.Future[Any],
        function: Callable[[Any], Any],
        argument: Any,
    ):
        self.loop = loop
        self.answer = answer
        self.function = function
        self.argument = argument

    def run(self) -> None:
        if self.answer.cancelled():
            return
        try:
            result = self.function(self.argument)
        except BaseException as error:
            self._tell(_fail, error)
        else:
            self._tell(_succeed, result)

    def _tell(self, how: Callable[[asyncio.Future[Any], Any], None], outcome: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self.loop.call_soon_threadsafe(how, self.answer, outcome)


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        # What was computed is not held until the next job comes.
        del job


def _succeed(answer: asyncio.Future[Any], result: Any) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
