"""Questions that take several requests to a model."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import monotonic
from typing import Any, cast

import numpy as np
import pytest
from pydantic import BaseModel

from serving.calls import Call, Front
from serving.errors import InferenceFailed, Overloaded
from serving.fronts.asking import AT_ONCE, Asking
from serving.server import Server
from serving.tasks import Question
from serving.types import InferRequest, InferResponse, Tensors


class Slow:
    """Answers the later requests first; those whose number is in `failing` fail."""

    def __init__(self, failing: dict[int, Exception]):
        self.failing = failing
        self.under_way = 0
        self.most = 0

    async def infer(self, request: InferRequest) -> InferResponse:
        number = int(request.inputs["x"][0])
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0.01 if number in self.failing else 0.02 / (1 + number % 5))
            if number in self.failing:
                raise self.failing[number]
            return InferResponse("m", "1", request.inputs)
        finally:
            self.under_way -= 1


def question(count: int) -> Question:
    first, *further = ({"x": np.array([number])} for number in range(count))
    return Question(None, first, further=further)


def outputs(server: Any, count: int) -> AsyncGenerator[Tensors]:
    return Asking(cast(Server, server)).outputs(
        "m", question(count), Call(Front.TASK, received=monotonic())
    )


@pytest.mark.parametrize("count", [1, 2, AT_ONCE, 30])
async def test_answers_keep_their_order_and_are_bounded(count: int) -> None:
    server = Slow({})
    answers = [int(answer["x"][0]) async for answer in outputs(server, count)]
    assert answers == list(range(count))
    assert server.most == min(count, AT_ONCE)
    assert server.under_way == 0


@pytest.mark.parametrize("failing", [0, 3, 29])
async def test_a_failure_ends_what_is_under_way(failing: int) -> None:
    server = Slow({failing: InferenceFailed("no"), 29: Overloaded("full")})
    with pytest.raises((InferenceFailed, Overloaded)):
        [answer async for answer in outputs(server, 30)]
    assert server.under_way == 0


class Nothing(BaseModel):
    """Settings of a task that has none."""


class Heavy:
    """A task that takes long to read a question."""

    takes_long = True

    def __init__(self) -> None:
        self.under_way = self.most = 0
        self._lock = threading.Lock()

    def preprocess(self, payload: object, settings: object) -> Question:
        with self._lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(0.05)
        with self._lock:
            self.under_way -= 1
        return question(1)


async def test_what_is_decoded_at_once_is_bounded_also_for_callers_who_leave() -> None:
    task: Any = Heavy()
    asking = Asking(cast(Server, Slow({})))
    for _ in range(10):
        leaving = [asyncio.create_task(asking.prepare(task, b"", Nothing())) for _ in range(9)]
        await asyncio.sleep(0.01)
        for caller in leaving:
            caller.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
    await asking.prepare(task, b"", Nothing())
    assert task.most == os.cpu_count()
    assert task.under_way == 0


async def test_who_stops_listening_leaves_nothing_behind() -> None:
    server = Slow({})
    async with aclosing(outputs(server, 30)) as answers:
        async for _ in answers:
            break
    assert server.under_way == 0
