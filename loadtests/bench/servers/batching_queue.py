"""A batching queue that keeps all of an engine's workers busy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

T_contra = TypeVar("T_contra", contravariant=True)
T = TypeVar("T")


class Engine(Protocol[T_contra]):
    def start(self, batch: Sequence[T_contra]) -> Any:
        """What will hold the answers; called on the event loop."""
        ...

    def finish(self, started: Any) -> list[str]:
        """The answers; called on a thread."""
        ...


class Queue(Generic[T]):
    """As soon as a worker is free, it gets whatever waits, up to `size` of it."""

    def __init__(self, engine: Engine[T], workers: int, size: int):
        self._engine = engine
        self._workers = workers
        self._size = size
        self._waiting: asyncio.Queue[tuple[T, asyncio.Future[str]]] = asyncio.Queue()

    async def ask(self, given: T) -> str:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((given, answer))
        return await answer

    @asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        workers = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        yield
        for worker in workers:
            worker.cancel()

    async def _work(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._size and self._waiting.qsize():
                batch.append(self._waiting.get_nowait())
            started = self._engine.start([given for given, _ in batch])
            answers = await asyncio.to_thread(self._engine.finish, started)
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
