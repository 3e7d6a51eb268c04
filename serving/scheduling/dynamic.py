"""Batches concurrent requests for one engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from serving.engines.base import Engine
from serving.errors import Overloaded
from serving.scheduling.batch import BatchLayout
from serving.scheduling.driver import Driver, Handed
from serving.scheduling.outcomes import Answer, expired, fail
from serving.scheduling.policy import BatchPolicy
from serving.scheduling.waiting import Ticket
from serving.types import InferRequest, Run, Tensors


class _Entry(Ticket):
    """Made for every request, by a constructor that takes a third of the time of a dataclass's."""

    __slots__ = ("answer", "request")

    def __init__(
        self, request: InferRequest, answer: Answer[Tensors], rows: int, layout: BatchLayout
    ):
        self.request = request
        self.answer = answer
        self.rows = rows
        self.shape_key = layout.key(request.inputs)
        self.padded_shapes = layout.padded_shapes(request.inputs)
        self.priority = request.priority
        self.timeout_s = request.timeout_s
        self.deadline = request.deadline
        self.expires_at = math.inf


class DynamicScheduler(Driver[_Entry]):
    """Batches by a `BatchPolicy`; see `Driver` for what a request can expect.

    `infer` raises `Overloaded` when the queue is full.
    """

    def __init__(
        self,
        engine: Engine,
        policy: BatchPolicy[_Entry],
        layout: BatchLayout,
        *,
        instances: int,
        on_run: Callable[[Run], None],
    ):
        super().__init__(engine, policy, layout, on_run=on_run)
        self._policy = policy
        self._free_instances = instances
        # Requests in the run that was started last.
        self._latest = 0
        # What runs as soon as an instance is free, without a word from the loop.
        self._next: Handed[_Entry] | None = None
        self._next_is_full = False
        self._next_expires_at = math.inf

    @property
    def depth(self) -> int:
        return len(self._policy) + (len(self._next.entries) if self._next else 0)

    def give_up(self) -> None:
        self._take_back()
        super().give_up()

    def _accept(
        self, request: InferRequest, rows: int, answer: Answer[Tensors], now: float
    ) -> _Entry:
        entry = _Entry(request, answer, rows, self._layout)
        try:
            self._policy.add(entry, now)
        except Overloaded:
            if not self._free_instances:
                raise
            # Those of this turn only seem to wait: nobody has looked for an instance for them yet.
            self._decide()
            self._policy.add(entry, now)
        return entry

    def _forget(self, entry: _Entry) -> None:
        if self._next is not None and entry in self._next.entries:
            self._take_back()
        self._policy.discard(entry)

    def _act(self, now: float) -> float:
        if self._next_expires_at <= now:
            self._take_back()
            self._next_expires_at = math.inf
        while True:
            decision = self._policy.decide(now, free_instances=self._free_instances)
            for entry in decision.expired:
                fail(entry.answer, expired())
            if not decision.batch:
                break
            self._free_instances -= 1
            self._latest = len(decision.batch)
            if self._start(decision.batch, partial(self._finish, len(decision.batch))):
                if len(self._policy):
                    self._decide_soon()
                return math.inf
        if self._engine.queues and not self._free_instances and len(self._policy):
            self._look_ahead()
        return min(decision.wake_at, self._next_expires_at)

    def _look_ahead(self) -> None:
        """Hand over what runs next, once more if there are others who can join it."""
        if self._next is not None and not self._next_is_full:
            self._take_back()
        if self._next is None:
            entries, self._next_is_full = self._policy.ahead(self._latest)
            if entries:
                self._next = self._hand_over(entries)
                self._next_expires_at = min([entry.expires_at for entry in entries])

    def _take_back(self) -> None:
        """Let those wait that were to run next, if they do not run already."""
        if self._next is not None and self._withdrawn(self._next):
            self._policy.put_back(self._next.entries)
            self._next = None
            self._next_expires_at = math.inf

    def _finish(self, requests: int, run: Run | None) -> None:
        if self._next is None:
            self._free_instances += 1
        else:
            batch, self._next = self._next, None
            self._next_expires_at = math.inf
            self._latest = len(batch.entries)
            self._follow(batch, partial(self._finish, len(batch.entries)))
        if run is not None:
            seconds = run.answered - run.batched
            self._policy.ran(requests, run.rows, seconds, run.answered)
