"""The thread that steps a model: it asks the policy, lets the stepper compute, and tells."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Generic

from serving.config import Batching
from serving.errors import Expired, SlipwayError
from serving.scheduling.outcomes import expired, failure
from serving.scheduling.step_policy import J, StepDecision, StepPolicy
from serving.scheduling.stepper import News, Stepper
from serving.types import Iteration, Work

MOST_UNTOLD = 16
"""Iterations of which the event loop may not know yet, because they brought nobody any news."""


@dataclass(slots=True)
class Report(Generic[J]):
    """What became of the jobs in one iteration, or before it."""

    news: Sequence[News[J]]
    begun: Sequence[J] = ()
    begun_at: float = 0.0
    stepped: Sequence[J] = ()
    iteration: Iteration | None = None


class Iterations(Generic[J]):
    """Iterates for as long as there is something to do, on a thread of its own.

    The thread goes from one iteration to the next without a word from the event loop, so that the
    engine does not wait for whatever the loop is busy with. The other methods are for the loop's
    thread; they take a lock that is never held while anything is computed.

    `tell` is called on the stepper's thread when there is news, with all that has happened since
    the last time: to wake the loop for nothing would cost both threads as much as a decision does.
    """

    def __init__(
        self,
        stepper: Stepper[J],
        batching: Batching | None,
        *,
        tell: Callable[[Sequence[Report[J]]], None],
        broke: Callable[[Exception], None],
    ):
        self._stepper = stepper
        self._policy = StepPolicy[J](stepper.capacity, batching)
        self._tell = tell
        self._untold: list[Report[J]] = []
        self._broke = broke
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._policy)

    @property
    def running(self) -> int:
        """Slots that are taken."""
        with self._changed:
            return self._policy.running

    def add(self, jobs: Sequence[J]) -> None:
        """Let jobs wait: all of them, or none if it raises `Overloaded`."""
        now = monotonic()
        with self._changed:
            for index, job in enumerate(jobs):
                try:
                    self._policy.add(job, now)
                except SlipwayError:
                    for added in jobs[:index]:
                        self._policy.finish(added)
                    raise
            self._changed.notify()

    def finish(self, jobs: Sequence[J]) -> None:
        """Nobody wants anything more of these. Does nothing for those that left."""
        with self._changed:
            for job in jobs:
                self._policy.finish(job)
            self._changed.notify()

    def block(self, job: J) -> None:
        """Make no more steps for a job, until it is unblocked."""
        with self._changed:
            self._policy.block(job)

    def unblock(self, job: J) -> None:
        with self._changed:
            self._policy.unblock(job)
            self._changed.notify()

    def clear(self) -> list[J]:
        """Give up on all that have not begun, and return them."""
        with self._changed:
            return self._policy.clear()

    def stop(self) -> None:
        """Wait until nothing is left to do, and end the thread. Blocks."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (decision := self._next()) is not None:
                self._iterate(decision)
        except Exception as error:  # a fault of policy or stepper, of which callers must hear
            # Who stops the loop meanwhile has no callers left.
            with suppress(RuntimeError):
                self._broke(error)

    def _next(self) -> StepDecision[J] | None:
        """Waits for something to do; None once there will not be anything."""
        while True:
            with self._changed:
                decision = self._policy.decide(monotonic())
                if not (decision.has_work or decision.expired or decision.overdue):
                    self._flush()
                    if self._stopping and self._policy.is_idle:
                        return None
                    wake_at = decision.wake_at
                    self._changed.wait(
                        max(0.0, wake_at - monotonic()) if wake_at < math.inf else None
                    )
                    continue
            late = [News(job, expired(), is_last=True) for job in decision.expired]
            for job in decision.overdue:
                error = Expired("Request deadline passed before its last step")
                late.append(News(job, error, is_last=True))
            if late:
                self._untold.append(Report(late))
                self._flush()
            if decision.has_work:
                return decision

    def _iterate(self, decision: StepDecision[J]) -> None:
        started = monotonic()
        stepper = self._stepper
        for job in decision.end:
            stepper.end(job)
        news: list[News[J]] = []
        for work, jobs in (
            (stepper.suspend, decision.suspend),
            (stepper.resume, decision.resume),
            (stepper.begin, decision.begin),
        ):
            if jobs:
                news += _attempt(work, jobs)
        steps = decision.step
        if news:
            ended = {item.job for item in news if item.is_last}
            steps = [job for job in steps if job not in ended]
        if steps:
            news += _attempt(stepper.step, steps)
        done, stepper.work = stepper.work, Work()
        with self._changed:
            for item in news:
                if item.is_last:
                    self._policy.finish(item.job)
        iteration = Iteration(
            suspended=len(decision.suspend),
            seconds=monotonic() - started,
            work=done,
        )
        self._untold.append(Report(news, decision.begin, started, steps, iteration))
        if news or decision.begin or len(self._untold) == MOST_UNTOLD:
            self._flush()

    def _flush(self) -> None:
        """Tell what nobody knows yet."""
        if self._untold:
            reports, self._untold = self._untold, []
            self._tell(reports)


def _attempt(
    work: Callable[[Sequence[J]], list[News[J]]], jobs: Sequence[J], *, together: bool = True
) -> list[News[J]]:
    """One job's values may be what the model cannot bear: only that one shall fail."""
    if len(jobs) != 1 and not together:
        return [news for job in jobs for news in _attempt(work, [job])]
    try:
        return work(jobs)
    except Exception as error:
        if len(jobs) > 1:
            return _attempt(work, jobs, together=False)
        return [News(jobs[0], failure(error), is_last=True)]
