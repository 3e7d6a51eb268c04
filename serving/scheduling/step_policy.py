"""The step policy: pure, without a clock, a loop or a lock.

A model that takes many steps for one answer is run one step at a time, for all that run together:
jobs join when they arrive and leave when they finish, whatever their age (iteration-level
scheduling: Yu et al., *Orca*, OSDI 2022). At every iteration

- jobs in line are admitted, in order of priority and arrival, while slots and memory last. What a
  job may come to need is reserved when it is admitted, so none can run out of memory later;
- only so much work of beginning (encoding, prefilling) is taken on that those who run keep moving;
- a job in line for which there is no room takes the place of one that a reader holds up, of one of
  lower priority, or of one that has had its turn of `quantum` steps. Who makes room is suspended
  with all that it has computed, and lines up again behind those who came before.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from serving.config import Batching
from serving.scheduling.deadlines import Deadlines
from serving.scheduling.waiting import Ticket, Waiting


class Stage(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    SUSPENDED = "suspended"
    GONE = "gone"


@dataclass(slots=True, eq=False)
class Job(Ticket):
    """One sequence of steps as the policy sees it. `rows` are the slots that it takes."""

    extents: tuple[int, ...] = ()
    """How far it may come to reach in each growing dimension of its memory, such as tokens."""
    begin_cost: int = 1
    """What its beginning takes, in the units of `Capacity.begin_budget`."""
    stage: Stage = Stage.GONE
    is_blocked: bool = False
    """Nobody takes what it has made, so it shall make no more for now."""
    given_at: int = 0
    """The iteration in which it was last given its slots."""
    place: int = -1
    """Its number among those that want room again."""


J = TypeVar("J", bound=Job)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What jobs share.

    Memory is dense: every row reaches as far as the furthest of those that run, so `n` rows take
    `n` times the sum over the dimensions of the furthest extent and its bytes. As much memory
    again may be taken by suspended jobs.
    """

    slots: int
    memory_bytes: int
    unit_bytes: tuple[int, ...] = ()
    """What one row takes for one unit of each extent."""
    begin_budget: int = 512
    """Work of beginning in one iteration; a single job may go over it."""
    quantum: int = 32
    """Steps after which a job makes room for another of its priority."""

    def admits(self, job: Job) -> bool:
        """Whether a job could run if it were alone."""
        return self.allows(job.rows, job.extents)

    def allows(self, rows: int, furthest: Sequence[int]) -> bool:
        """Whether so many rows can run side by side, of which the furthest reach so far."""
        return rows <= self.slots and self._bytes(rows, furthest) <= self.memory_bytes

    def holds(self, jobs: Iterable[Job]) -> bool:
        """Whether so many jobs can run side by side."""
        rows = 0
        furthest: tuple[int, ...] = (0,) * len(self.unit_bytes)
        for job in jobs:
            rows += job.rows
            furthest = tuple(map(max, furthest, job.extents))
        return self.allows(rows, furthest)

    def bytes_apart(self, job: Job) -> int:
        """What a job takes while it is suspended, at most."""
        return self._bytes(job.rows, job.extents)

    def _bytes(self, rows: int, extents: Sequence[int]) -> int:
        return rows * sum(
            extent * unit for extent, unit in zip(extents, self.unit_bytes, strict=True)
        )


class _Load:
    """What those who run take together, without looking at each of them again."""

    def __init__(self, capacity: Capacity):
        self._capacity = capacity
        self.rows = 0
        # By dimension: how many jobs reach how far.
        self._reaching: list[dict[int, int]] = [{} for _ in capacity.unit_bytes]

    def holds(self, job: Job) -> bool:
        """Whether another job can run beside them."""
        furthest = [
            max(extent, *reaching) if reaching else extent
            for extent, reaching in zip(job.extents, self._reaching, strict=True)
        ]
        return self._capacity.allows(self.rows + job.rows, furthest)

    def add(self, job: Job) -> None:
        self.rows += job.rows
        for extent, reaching in zip(job.extents, self._reaching, strict=True):
            reaching[extent] = reaching.get(extent, 0) + 1

    def remove(self, job: Job) -> None:
        self.rows -= job.rows
        for extent, reaching in zip(job.extents, self._reaching, strict=True):
            if reaching[extent] == 1:
                del reaching[extent]
            else:
                reaching[extent] -= 1


@dataclass(slots=True)
class StepDecision(Generic[J]):
    """What to do now, in this order; then ask again, at `wake_at` at the latest.

    `expired` have waited too long and are answered so; those of `overdue` had begun. `end` have
    left, of whatever stage, and whatever they hold is to be released. The next iteration
    suspends, resumes, begins and steps.
    """

    expired: list[J] = field(default_factory=list)
    overdue: list[J] = field(default_factory=list)
    end: list[J] = field(default_factory=list)
    suspend: list[J] = field(default_factory=list)
    resume: list[J] = field(default_factory=list)
    begin: list[J] = field(default_factory=list)
    step: list[J] = field(default_factory=list)
    wake_at: float = math.inf

    @property
    def has_work(self) -> bool:
        return bool(self.end or self.suspend or self.resume or self.begin or self.step)


class StepPolicy(Generic[J]):
    """Holds the jobs that wait, run and are suspended, and decides what the next iteration does.

    Times are seconds of any one clock that never goes back. A job that `capacity` does not admit
    alone must be refused before it comes here, for it could never run.

    While nobody is in line and nothing happens, all iterations are alike, and the decision of one
    holds for the next.
    """

    def __init__(self, capacity: Capacity, batching: Batching | None = None):
        self._capacity = capacity
        self._waiting = Waiting[J](batching or Batching())
        self._running: dict[J, None] = {}
        self._load = _Load(capacity)
        # A heap of those that want room again: level, number, job; see `_is_in_line`.
        self._resuming: list[tuple[int, int, J]] = []
        self._suspended: dict[J, None] = {}
        self._suspended_bytes = 0
        self._leaving: list[J] = []
        # Of those that have begun.
        self._deadlines = Deadlines[J]()
        self._iteration = 0
        # What is decided for as long as nothing happens.
        self._steady: StepDecision[J] | None = None

    def __len__(self) -> int:
        """Jobs that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Slots that are taken."""
        return self._load.rows

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._running or self._suspended or self._leaving)

    def add(self, job: J, now: float) -> None:
        """Let a job wait. Raises `Overloaded` when its level's queue is full."""
        assert self._capacity.admits(job), "no job may need more than there is. This is a bug."
        self._waiting.add(job, now)
        job.stage = Stage.WAITING
        self._steady = None

    def finish(self, job: J) -> None:
        """A job has made its last step, or its caller is gone. Does nothing for one that left."""
        match job.stage:
            case Stage.WAITING:
                self._waiting.discard(job)
            case Stage.RUNNING:
                self._drop_running(job)
                self._leaving.append(job)
            case Stage.SUSPENDED:
                self._drop_suspended(job)
                self._leaving.append(job)
        job.stage = Stage.GONE
        self._deadlines.discard(job)
        self._steady = None

    def block(self, job: J) -> None:
        """Make no more steps for a job, until it is unblocked."""
        job.is_blocked = True
        self._steady = None

    def unblock(self, job: J) -> None:
        if job.is_blocked and job.stage is Stage.SUSPENDED:
            self._line_up(job)
        job.is_blocked = False
        self._steady = None

    def clear(self) -> list[J]:
        """Give up on all that have not begun, and return them."""
        given_up = self._waiting.clear()
        for job in given_up:
            job.stage = Stage.GONE
        self._steady = None
        return given_up

    def decide(self, now: float) -> StepDecision[J]:
        self._iteration += 1
        decision = self._steady
        if decision is None or decision.wake_at <= now:
            decision = self._decide(now)
            if not (self._waiting or self._resuming):
                steady = StepDecision(step=decision.step, wake_at=decision.wake_at)
                self._steady = steady
        return decision

    def _decide(self, now: float) -> StepDecision[J]:
        decision = StepDecision[J](expired=self._waiting.expire(now))
        for job in decision.expired:
            job.stage = Stage.GONE
        while (overdue := self._deadlines.pop(now)) is not None:
            decision.overdue.append(overdue)
            self.finish(overdue)
        decision.end, self._leaving = self._leaving, []
        self._admit(decision)
        decision.step = [job for job in self._running if not job.is_blocked]
        decision.wake_at = min(self._waiting.next_expiry(), self._deadlines.next())
        return decision

    def _admit(self, decision: StepDecision[J]) -> None:
        budget = self._capacity.begin_budget
        while (job := self._next_in_line()) is not None:
            if job.stage is Stage.WAITING and job.begin_cost > budget and decision.begin:
                return
            if job in decision.suspend:
                return  # it has just made room for those before it
            makes_room = self._who_makes_room(job)
            if makes_room is None:
                return  # nobody behind it goes first, or it might wait forever
            for other in makes_room:
                self._suspend(other)
            decision.suspend += makes_room
            if job.stage is Stage.WAITING:
                self._waiting.discard(job)
                budget -= job.begin_cost
                decision.begin.append(job)
                self._deadlines.add(job, job.deadline)
            else:
                self._drop_suspended(job)
                decision.resume.append(job)
            job.stage = Stage.RUNNING
            job.given_at = self._iteration
            self._running[job] = None
            self._load.add(job)

    def _next_in_line(self) -> J | None:
        """By priority, and then by when they lined up."""
        while self._resuming and not _is_in_line(*self._resuming[0]):
            heapq.heappop(self._resuming)
        waiting = next(iter(self._waiting), None)
        if not self._resuming:
            return waiting
        level, number, resuming = self._resuming[0]
        if waiting is not None and (waiting.level, waiting.number) < (level, number):
            return waiting
        return resuming

    def _who_makes_room(self, job: J) -> list[J] | None:
        """The fewest that must be suspended for this job; None if even that is no help."""
        if self._load.holds(job):
            return []
        staying = dict(self._running)
        leaving: list[J] = []
        suspended_bytes = self._suspended_bytes
        for other in self._removable(job):
            suspended_bytes += self._capacity.bytes_apart(other)
            if suspended_bytes > self._capacity.memory_bytes:
                return None
            del staying[other]
            leaving.append(other)
            if self._capacity.holds((*staying, job)):
                return leaving
        return None

    def _removable(self, job: J) -> list[J]:
        """Who may be made to give way to a job, the one that loses least first."""
        now = self._iteration
        over = now - self._capacity.quantum
        removable = [
            other
            for other in self._running
            # One that began or came back just now has not even had a step.
            if other.given_at < now
            and (
                other.is_blocked
                or other.level > job.level
                or (other.level == job.level and other.given_at <= over)
            )
        ]
        removable.sort(key=lambda other: (not other.is_blocked, -other.level, other.given_at))
        return removable

    def _suspend(self, job: J) -> None:
        self._drop_running(job)
        job.stage = Stage.SUSPENDED
        self._suspended[job] = None
        self._suspended_bytes += self._capacity.bytes_apart(job)
        if not job.is_blocked:
            self._line_up(job)

    def _drop_running(self, job: J) -> None:
        del self._running[job]
        self._load.remove(job)

    def _line_up(self, job: J) -> None:
        job.place = self._waiting.next_number()
        heapq.heappush(self._resuming, (job.level, job.place, job))

    def _drop_suspended(self, job: J) -> None:
        del self._suspended[job]
        self._suspended_bytes -= self._capacity.bytes_apart(job)
        job.place = -1


def _is_in_line(level: int, number: int, job: Job) -> bool:
    """Whether an entry still holds: its job may have left, come back, or be held up meanwhile."""
    return job.place == number and job.stage is Stage.SUSPENDED and not job.is_blocked
