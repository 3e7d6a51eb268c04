"""The batching policy: pure, without a clock, a loop or a lock.

The rules are those of Triton's dynamic batcher. A batch is taken when an instance is free and

- a preferred size can be made exactly (the largest that can), or
- no further request could join (the batch is full, or the next in line does not fit it), or
- the oldest member has waited for `max_queue_delay`.

With `Returns`, and where no size is preferred, `max_queue_delay` is only the most that a batch may
wait beside a free instance: it does so while that is expected to pay, and else starts at once.

Requests of one priority level start in the order in which they came; a lower number goes first.
Where a `PaddingRule` says so, a request of another length is passed over, but never the oldest.
"""

from __future__ import annotations

import math
from typing import Generic, NamedTuple

from serving.config import Batching, TimeoutAction
from serving.scheduling.padding import ORDINARY, Padding, PaddingRule
from serving.scheduling.returns import Returns
from serving.scheduling.waiting import T, Waiting

LOOK_AHEAD = 256
"""Requests that may be passed over in the search for others of like length."""


class Decision(NamedTuple, Generic[T]):
    """What to do now: answer `expired`, run `batch` (if any), and ask again by `wake_at`."""

    expired: list[T]
    batch: list[T]
    wake_at: float


class BatchPolicy(Generic[T]):
    """Holds the waiting requests and decides which of them run next.

    Times are seconds of any one clock that never goes back. `max_rows` bounds a batch; a single
    request above it must be refused before it comes here, for it could never run. Without
    `batching` every request runs alone. `returns` expects who comes next.
    """

    def __init__(
        self,
        max_rows: int,
        batching: Batching | None,
        padding: PaddingRule = ORDINARY,
        returns: Returns | None = None,
    ):
        self._merges = batching is not None
        self._max_rows = max_rows
        self._padding = padding
        self._rules = batching or Batching()
        self._returns = returns
        level = self._rules.priority_levels
        delays = self._rules.policy(level).timeout_action is TimeoutAction.DELAY
        is_ordered = self._merges and level <= 1 and not delays
        self.ordered_rows = max_rows if is_ordered else 1
        """That run together, at most, and in the order in which they came; 1 if later ones may go
        first."""
        self._preferred = frozenset(self._rules.preferred_batch_sizes)
        self._waiting = Waiting[T](self._rules)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ticket: T, now: float) -> None:
        """Let a request wait. Raises `Overloaded` when its level's queue is full."""
        self._waiting.add(ticket, now)
        if self._returns is not None:
            self._returns.came(now)

    def ran(self, requests: int, rows: int, seconds: float, now: float) -> None:
        """Learn that a batch of so many requests and rows has ended, and how long it took."""
        if self._returns is not None:
            self._returns.ran(requests, rows, seconds, now)

    def discard(self, ticket: T) -> None:
        """Forget a request whose caller is gone. Does nothing if it no longer waits."""
        self._waiting.discard(ticket)

    def clear(self) -> list[T]:
        """Give up on all that wait, and return them."""
        return self._waiting.clear()

    def decide(self, now: float, *, free_instances: int) -> Decision[T]:
        waiting = self._waiting
        expired = waiting.expire(now)
        wake_at = math.inf
        if free_instances and waiting:
            batch, wake_at = self._form(now, free_instances)
            if batch:
                waiting.take(batch)
                return Decision(expired, batch, now)
        return Decision(expired, [], min(wake_at, waiting.next_expiry()))

    def _form(self, now: float, free_instances: int) -> tuple[list[T], float]:
        """The batch to run now, or none and the time at which there will be one."""
        batch: list[T] = []
        rows = preferred = passed_over = 0
        oldest = math.inf
        complete = False
        padding: Padding | None = None
        for ticket in self._waiting:
            if rows and not (
                self._merges
                and rows + ticket.rows <= self._max_rows
                and ticket.shape_key == batch[0].shape_key
            ):
                complete = True
                break
            if ticket.padded_shapes:
                padding = padding or Padding(self._padding)
                if not padding.takes(ticket.rows, ticket.padded_shapes):
                    if self._padding.passes_over and passed_over < LOOK_AHEAD:
                        passed_over += 1
                        continue
                    complete = True
                    break
            batch.append(ticket)
            rows += ticket.rows
            if ticket.queued_at < oldest:
                oldest = ticket.queued_at
            if rows in self._preferred:
                preferred = len(batch)
        if preferred:
            return batch[:preferred], now
        longest_s = self._rules.max_queue_delay_s
        due = oldest + longest_s
        if longest_s and self._returns is not None and not self._preferred:
            # While another instance is free, those who come will not wait for this one.
            alone = free_instances == 1
            due = self._returns.wait_until(rows, oldest, now, longest_s) if alone else now
        if complete or rows >= self._max_rows or not self._merges or now >= due:
            return batch, now
        return [], due
