"""How a request ends that gets no answer: the same words whatever scheduler it waited for."""

from __future__ import annotations

from typing import Protocol, TypeVar

from serving.errors import Expired, InferenceFailed, SlipwayError, Unavailable

T_contra = TypeVar("T_contra", contravariant=True)
T = TypeVar("T")


class Answer(Protocol[T_contra]):
    """Who is told what a request has come to, once: a future, or one who need not be woken."""

    def done(self) -> bool:
        """Whether that is told, or of no use any more."""
        ...

    def set_result(self, result: T_contra, /) -> None: ...

    def set_exception(self, error: Exception, /) -> None: ...


def fail(answer: Answer[T], error: Exception) -> None:
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
