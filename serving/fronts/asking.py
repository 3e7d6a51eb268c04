"""How a question in a task's terms is put to a model, whatever route it came by."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from serving.server import Server
from serving.tasks import LongTask, Question, Task
from serving.types import InferRequest, InferResponse, SequenceStep, Tensors

AT_ONCE = 8
"""Requests of one question that are under way together: enough to fill a batch, and few enough for
those of others to get in between."""


class Asking:
    """Shared by the routes, so that what they prepare is bounded together."""

    def __init__(self, server: Server):
        self._server = server
        # A large picture takes a hundred megabytes while it is decoded, so only so many at a time.
        self._decoding = asyncio.Semaphore(os.cpu_count() or 1)

    async def prepare(self, task: Task, payload: object, settings: BaseModel) -> Question:
        """Raises `RequestError` for what is not a question of this task."""
        if not task.takes_long:
            return task.preprocess(payload, settings)
        async with self._decoding:
            return await asyncio.to_thread(task.preprocess, payload, settings)

    async def answer(self, name: str, task: Task, question: Question, received: float) -> Any:
        """Ask a model and put its answer in the task's terms. Raises as `Server.infer` does."""
        async with aclosing(self.outputs(name, question, received)) as parts:
            outputs = [part async for part in parts]
        if isinstance(task, LongTask):
            return await asyncio.to_thread(task.conclude, outputs, question)
        return task.postprocess(outputs[0], question)

    async def outputs(
        self, name: str, question: Question, received: float, *, in_parts: bool = False
    ) -> AsyncGenerator[Tensors]:
        """What a model says to each of the question's requests, in order, as soon as it is there.

        With `in_parts`, the answer to a single request comes as it grows. Raises as `Server.infer`
        does; closing the iterator early cancels what is under way.
        """
        calls = _calls(name, question)
        calls[0].stamps.received = received
        if len(calls) == 1 and in_parts:
            async with aclosing(self._server.stream(calls[0])) as responses:
                async for response in responses:
                    yield response.outputs
            return
        if len(calls) == 1:
            yield (await self._server.infer(calls[0])).outputs
            return
        waiting: deque[asyncio.Task[InferResponse]] = deque()
        try:
            for call in calls:
                if len(waiting) == AT_ONCE:
                    yield (await waiting[0]).outputs
                    waiting.popleft()
                # Tasks start in the order in which they were made, and nothing is awaited before
                # a request has its place in the queue, so a sequence keeps its order.
                waiting.append(asyncio.create_task(self._server.infer(call)))
            while waiting:
                yield (await waiting[0]).outputs
                waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


def _calls(name: str, question: Question) -> list[InferRequest]:
    """Of no version: the one that the task came from may have been replaced meanwhile."""
    tensors = (question.tensors, *question.further)
    id = uuid4().hex if question.in_sequence else ""
    return [
        InferRequest(
            name,
            part,
            parameters=question.parameters,
            sequence=SequenceStep(id, start=at == 0, end=at == len(tensors) - 1)
            if question.in_sequence
            else None,
        )
        for at, part in enumerate(tensors)
    ]
