"""How a request ends that gets no answer: the same words whatever scheduler it waited for."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from serving.errors import Expired, InferenceFailed, SlipwayError, Unavailable

T = TypeVar("T")


def fail(answer: asyncio.Future[T], error: Exception) -> None:
    """Say so to whoever waits for this answer, if anyone still does."""
    if not answer.done():
        answer.set_exception(error)


def failure(error: Exception) -> SlipwayError:
    """What a request is told whose computation raised this."""
    if isinstance(error, SlipwayError):
        return error
    failed = InferenceFailed(str(error))
    failed.__cause__ = error
    return failed


def expired() -> Expired:
    return Expired("Request timeout expired while it waited in the queue")


def given_up() -> Unavailable:
    return Unavailable("the server stopped before this request's turn")


def unloading(model: str) -> Unavailable:
    return Unavailable(f"model {model!r} is being unloaded")
