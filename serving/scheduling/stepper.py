"""The stepper seam: what a model family that answers in many steps is to the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

from serving.scheduling.step_policy import Capacity, J
from serving.types import InferRequest, Tensors, TensorSpec, Work


@dataclass(frozen=True, slots=True)
class News(Generic[J]):
    """What an iteration made for one job: an event that its caller wants to see, or its end."""

    job: J
    event: object
    """For `render`, or the exception that ended the job."""
    is_last: bool


class Stepper(Protocol[J]):
    """Computes for many jobs at once, one step at a time.

    `plan` and `render` are called on the event loop and must be quick. All others are called one
    at a time on one thread of the scheduler's. They may raise, and have then changed nothing: they
    are called again for each job alone, so that only that one fails which must.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    capacity: Capacity
    work: Work
    """Done since this was last set."""

    @property
    def memory_bytes(self) -> int:
        """What is set aside for the jobs that run."""
        ...

    def plan(self, request: InferRequest, *, streams: bool) -> Sequence[J]:
        """The jobs that answer a request: one for each of its rows.

        `streams` says that every event is wanted, and not the end only. Raises `RequestError` for
        what cannot be answered, for example because it needs more than `capacity`.
        """
        ...

    def begin(self, jobs: Sequence[J]) -> list[News[J]]:
        """Begin jobs, which may take a while: it goes on beside the steps of others."""
        ...

    def step(self, jobs: Sequence[J]) -> list[News[J]]:
        """Make one step for jobs. Those that are still beginning are passed over, or waited for if
        all are."""
        ...

    def suspend(self, jobs: Sequence[J]) -> list[News[J]]:
        """Take jobs out of their slots, and keep what they have computed. No news is good news."""
        ...

    def resume(self, jobs: Sequence[J]) -> list[News[J]]:
        """Give suspended jobs slots again."""
        ...

    def end(self, job: J) -> None:
        """Release all that a job holds, whether it runs, is suspended, or has never begun."""
        ...

    def render(self, job: J, event: object, *, is_last: bool) -> Tensors | None:
        """One row of the model's outputs for an event, or nothing that is worth a response.

        Of a job that does not stream, the last event is the only one, and holds everything.
        """
        ...

    def warm(self) -> None:
        """Run once for nobody, so that the first request does not pay for it."""
        ...

    def close(self) -> None:
        """Release memory. Nothing runs any more when this is called."""
        ...
