"""The requests that wait: by priority, in order of arrival, each until its time is up.

Pure, as the policies that are built on it: without a clock, a loop or a lock.
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
from serving.scheduling.padding import Shape


@dataclass(slots=True, eq=False)
class Ticket:
    """A request as a policy sees it: its size, its wishes, and its place in the queue."""

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


class Waiting(Generic[T]):
    """Requests of one priority level come in the order in which they were added; a lower level
    goes first. Iterating gives that order.

    Times are seconds of any one clock that never goes back.
    """

    def __init__(self, rules: Batching):
        self._levels: dict[int, _Level[T]] = {
            level: _Level(level, rules.policy(level))
            for level in range(min(1, rules.priority_levels), rules.priority_levels + 1)
        }
        self._default_level = rules.default_priority_level
        self._queues = [queue for level in self._levels.values() for queue in level.queues]
        self._count = 0
        self._numbers = itertools.count()
        self._deadlines = Deadlines[T]()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return itertools.chain.from_iterable(self._queues)

    def add(self, ticket: T, now: float) -> None:
        """Let a request wait. Raises `Overloaded` when its level's queue is full."""
        level = self._levels.get(ticket.priority)
        if level is None:
            level = self._levels[self._default_level]
        rules = level.policy
        if rules.max_queue_size and len(level) >= rules.max_queue_size:
            raise Overloaded(
                f"Exceeds maximum queue size: {rules.max_queue_size} requests are waiting already"
            )
        ticket.level = level.number
        ticket.number = next(self._numbers)
        ticket.queued_at = now
        if rules.timeout_s or ticket.timeout_s or ticket.deadline < math.inf:
            self._limit(ticket, rules, now)
        level.on_time[ticket] = None
        self._count += 1

    def next_number(self) -> int:
        """A place in the order of arrival that nobody has."""
        return next(self._numbers)

    def discard(self, ticket: T) -> bool:
        """Forget a request; false if it does not wait."""
        level = self._levels.get(ticket.level)
        if level is None or not level.remove(ticket):
            return False
        self._count -= 1
        if self._deadlines:
            self._deadlines.discard(ticket)
        return True

    def take(self, tickets: Sequence[T]) -> None:
        """Forget some that wait."""
        if len(tickets) == self._count and not self._deadlines:
            for queue in self._queues:
                queue.clear()
            self._count = 0
        else:
            for ticket in tickets:
                self.discard(ticket)

    def clear(self) -> list[T]:
        """Give up on all that wait, and return them."""
        tickets = list(self)
        self.take(tickets)
        return tickets

    def expire(self, now: float) -> list[T]:
        """Take out those whose time is up."""
        expired: list[T] = []
        if not self._deadlines:
            return expired
        while (ticket := self._deadlines.pop(now)) is not None:
            if now < ticket.expires_at:
                self._levels[ticket.level].delay(ticket)
                self._deadlines.add(ticket, ticket.expires_at)
            else:
                self.discard(ticket)
                expired.append(ticket)
        return expired

    def next_expiry(self) -> float:
        """When to call `expire` again; infinity if nothing can expire."""
        return self._deadlines.next()

    def _limit(self, ticket: T, rules: QueuePolicy, now: float) -> None:
        """Let a request wait no longer than it may."""
        timeout_s = _granted_timeout(rules, ticket.timeout_s)
        in_time = min(ticket.deadline, now + timeout_s if timeout_s else math.inf)
        is_delayed = rules.timeout_action is TimeoutAction.DELAY
        ticket.expires_at = min(ticket.expires_at, ticket.deadline if is_delayed else in_time)
        self._deadlines.add(ticket, in_time)


class _Level(Generic[T]):
    """One priority level's queue: those on time, then those that a timeout has put behind."""

    def __init__(self, number: int, policy: QueuePolicy):
        self.number = number
        self.policy = policy
        # Ordered dictionaries are queues from whose middle an entry leaves in constant time.
        self.on_time: OrderedDict[T, None] = OrderedDict()
        self._delayed: OrderedDict[T, None] = OrderedDict()
        self.queues = (self.on_time, self._delayed)

    def __len__(self) -> int:
        return len(self.on_time) + len(self._delayed)

    def delay(self, ticket: T) -> None:
        del self.on_time[ticket]
        self._delayed[ticket] = None

    def remove(self, ticket: T) -> bool:
        """Whether it was here."""
        for queue in self.queues:
            if ticket in queue:
                del queue[ticket]
                return True
        return False


def _granted_timeout(rules: QueuePolicy, wished_s: float) -> float:
    """A request may shorten the time that its queue grants, where the queue allows it."""
    if wished_s <= 0 or not rules.allow_timeout_override:
        return rules.timeout_s
    return min(wished_s, rules.timeout_s or math.inf)
