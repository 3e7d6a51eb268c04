"""How a question in a task's terms is put to a model, whatever route it came by."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from serving.calls import Call
from serving.errors import SlipwayError
from serving.server import Server
from serving.tasks import LongTask, Question, Task
from serving.types import InferRequest, InferResponse, SequenceStep, Tensors

if TYPE_CHECKING:
    from pydantic import BaseModel

AT_ONCE = 8
"""Requests of one question that are under way together: enough to fill a batch, and few enough for
those of others to get in between."""


class Asking:
    """Shared by the routes, so that what they prepare is bounded together."""

    def __init__(self, server: Server):
        self._server = server
        # A large picture takes a hundred megabytes while it is decoded, so only so many at a time,
        # also when their callers are gone: a thread cannot be told to stop.
        self._decoding = ThreadPoolExecutor(os.cpu_count(), "decode")

    async def prepare(self, task: Task, payload: object, settings: BaseModel) -> Question:
        """Raises `RequestError` for what is not a question of this task."""
        if not task.takes_long:
            return task.preprocess(payload, settings)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoding, task.preprocess, payload, settings)

    async def answer(self, name: str, task: Task, question: Question, call: Call) -> Any:
        """Ask a model and put its answer in the task's terms. Raises as `Server.infer` does."""
        # Asked in this order, for a protocol takes long to say no.
        if task.takes_long and isinstance(task, LongTask):
            async with aclosing(self.outputs(name, question, call)) as parts:
                outputs = [part async for part in parts]
            return await asyncio.to_thread(task.conclude, outputs, question)
        [request] = _requests(name, question, call)
        return task.postprocess((await self._server.infer(request)).outputs, question)

    async def outputs(
        self, name: str, question: Question, call: Call, *, in_parts: bool = False
    ) -> AsyncGenerator[Tensors]:
        """What a model says to each of the question's requests, in order, as soon as it is there.

        With `in_parts`, the answer to a single request comes as it grows. Raises as `Server.infer`
        does; closing the iterator early cancels what is under way.
        """
        requests = _requests(name, question, call)
        if len(requests) == 1 and in_parts:
            async with aclosing(self._server.stream(requests[0])) as responses:
                async for response in responses:
                    yield response.outputs
            return
        if len(requests) == 1:
            yield (await self._server.infer(requests[0])).outputs
            return
        waiting: deque[asyncio.Task[InferResponse]] = deque()
        heard = False
        try:
            for request in requests:
                if len(waiting) == AT_ONCE:
                    yield (await waiting[0]).outputs
                    waiting.popleft()
                # Tasks start in the order in which they were made, and nothing is awaited before
                # a request has its place in the queue, so a sequence keeps its order.
                waiting.append(asyncio.create_task(self._server.infer(request)))
            while waiting:
                yield (await waiting[0]).outputs
                waiting.popleft()
            heard = True
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            if not heard and (sequence := requests[-1].sequence):
                await leave(self._server, name, sequence.id, requests[-1].inputs)


async def leave(server: Server, name: str, id: int | str, inputs: Tensors) -> None:
    """Let a model forget a sequence that will not go on; `inputs` are of any of its requests."""
    with suppress(SlipwayError):
        end = SequenceStep(id, start=False, end=True)
        await server.infer(InferRequest(name, inputs, sequence=end))


def _requests(name: str, question: Question, call: Call) -> list[InferRequest]:
    """Of no version: the one that the task came from may have been replaced meanwhile."""
    tensors = (question.tensors, *question.further)
    id = uuid4().hex if question.in_sequence else ""
    requests = [
        InferRequest(
            name,
            part,
            call=call,
            parameters=question.parameters,
            sequence=SequenceStep(id, start=at == 0, end=at == len(tensors) - 1)
            if question.in_sequence
            else None,
        )
        for at, part in enumerate(tensors)
    ]
    call.asks_several = len(requests) > 1
    requests[0].asked_by(call)
    return requests
