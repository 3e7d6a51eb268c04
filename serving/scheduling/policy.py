"""The batching policy: pure, without a clock, a loop or a lock.

The rules are those of Triton's dynamic batcher. A batch is taken when an instance is free and

- a preferred size can be made exactly (the largest that can), or
- no further request could join (the batch is full, or the next in line does not fit it), or
- the oldest member has waited for `max_queue_delay`.

Requests of one priority level start in the order in which they came; a lower number goes first.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from serving.config import Batching, QueuePolicy, TimeoutAction
from serving.errors import Overloaded
from serving.scheduling.deadlines import Deadlines
from serving.scheduling.padding import Padding, Shape


@dataclass(slots=True, eq=False)
class Ticket:
    """A request as the policy sees it: its size, its wishes, and its place in the queue."""

    rows: int
    shape_key: Hashable = None
    """Only requests with equal keys can be stacked."""
    padded_shapes: Sequence[Shape] = ()
    """Those of one row of the inputs that are padded to the longest in the batch; see `Padding`."""
    priority: int = 0
    timeout_s: float = 0.0
    deadline: float = math.inf
    """When the caller stops listening, whatever the queue grants."""
    level: int = 0
    number: int = 0
    queued_at: float = 0.0
    expires_at: float = math.inf
    """When it is answered at the latest, unless it runs by then."""


T = TypeVar("T", bound=Ticket)


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """What to do now: answer `expired`, run `batch` (if any), and ask again by `wake_at`."""

    expired: list[T]
    batch: list[T]
    wake_at: float


class BatchPolicy(Generic[T]):
    """Holds the waiting requests and decides which of them run next.

    Times are seconds of any one clock that never goes back. `max_rows` bounds a batch; a single
    request above it must be refused before it comes here, for it could never run. Without
    `batching` every request runs alone.
    """

    def __init__(self, max_rows: int, batching: Batching | None):
        self._merges = batching is not None
        self._max_rows = max_rows
        self._rules = batching or Batching()
        self._preferred = frozenset(self._rules.preferred_batch_sizes)
        self._levels: dict[int, _Level[T]] = {
            level: _Level(self._rules.policy(level))
            for level in range(min(1, self._rules.priority_levels), self._rules.priority_levels + 1)
        }
        self._numbers = itertools.count()
        self._waiting: dict[int, T] = {}
        self._deadlines = Deadlines[T]()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ticket: T, now: float) -> None:
        """Let a request wait. Raises `Overloaded` when its level's queue is full."""
        ticket.level = (
            ticket.priority
            if ticket.priority in self._levels
            else self._rules.default_priority_level
        )
        level = self._levels[ticket.level]
        rules = level.policy
        if rules.max_queue_size and len(level) >= rules.max_queue_size:
            raise Overloaded(
                f"Exceeds maximum queue size: {rules.max_queue_size} requests are waiting already"
            )
        ticket.number = next(self._numbers)
        ticket.queued_at = now
        timeout_s = _granted_timeout(rules, ticket.timeout_s)
        in_time = min(ticket.deadline, now + timeout_s if timeout_s else math.inf)
        is_delayed = rules.timeout_action is TimeoutAction.DELAY
        ticket.expires_at = min(ticket.expires_at, ticket.deadline if is_delayed else in_time)
        self._deadlines.add(ticket, in_time)
        self._waiting[ticket.number] = ticket
        level.on_time[ticket] = None

    def discard(self, ticket: T) -> None:
        """Forget a request whose caller is gone. Does nothing if it no longer waits."""
        if self._waiting.pop(ticket.number, None) is not None:
            self._deadlines.discard(ticket)
            self._levels[ticket.level].remove(ticket)

    def clear(self) -> list[T]:
        """Give up on all that wait, and return them."""
        tickets = list(self._waiting.values())
        for ticket in tickets:
            self.discard(ticket)
        return tickets

    def decide(self, now: float, *, instance_is_free: bool) -> Decision[T]:
        expired = self._expire(now)
        batch, wake_at = self._form(now) if instance_is_free else ([], math.inf)
        for ticket in batch:
            self.discard(ticket)
        return Decision(expired, batch, min(wake_at, self._deadlines.next()))

    def _expire(self, now: float) -> list[T]:
        expired = []
        while (ticket := self._deadlines.pop(now)) is not None:
            if now < ticket.expires_at:
                self._levels[ticket.level].delay(ticket)
                self._deadlines.add(ticket, ticket.expires_at)
            else:
                self.discard(ticket)
                expired.append(ticket)
        return expired

    def _form(self, now: float) -> tuple[list[T], float]:
        """The batch to run now, or none and the time at which there will be one."""
        batch: list[T] = []
        rows = preferred = 0
        oldest = math.inf
        complete = False
        padding = Padding()
        for ticket in self._in_order():
            joins = not batch or (
                self._merges
                and rows + ticket.rows <= self._max_rows
                and ticket.shape_key == batch[0].shape_key
            )
            shapes = ticket.padded_shapes
            if not joins or (shapes and not padding.takes(ticket.rows, shapes)):
                complete = True
                break
            batch.append(ticket)
            rows += ticket.rows
            oldest = min(oldest, ticket.queued_at)
            if rows in self._preferred:
                preferred = len(batch)
        if preferred:
            return batch[:preferred], now
        due = oldest + self._rules.max_queue_delay_s
        if complete or rows >= self._max_rows or not self._merges or now >= due:
            return batch, now
        return [], due

    def _in_order(self) -> Iterator[T]:
        for level in self._levels.values():
            yield from level


class _Level(Generic[T]):
    """One priority level's queue: those on time, then those that a timeout has put behind."""

    def __init__(self, policy: QueuePolicy):
        self.policy = policy
        # Ordered dictionaries are queues from whose middle an entry leaves in constant time.
        self.on_time: OrderedDict[T, None] = OrderedDict()
        self._delayed: OrderedDict[T, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.on_time) + len(self._delayed)

    def __iter__(self) -> Iterator[T]:
        yield from self.on_time
        yield from self._delayed

    def delay(self, ticket: T) -> None:
        del self.on_time[ticket]
        self._delayed[ticket] = None

    def remove(self, ticket: T) -> None:
        if ticket in self.on_time:
            del self.on_time[ticket]
        else:
            del self._delayed[ticket]


def _granted_timeout(rules: QueuePolicy, wished_s: float) -> float:
    """A request may shorten the time that its queue grants, where the queue allows it."""
    if wished_s <= 0 or not rules.allow_timeout_override:
        return rules.timeout_s
    return min(wished_s, rules.timeout_s or math.inf)
