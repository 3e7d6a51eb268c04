"""Batches concurrent requests for one engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from serving.engines.base import Engine
from serving.errors import Overloaded
from serving.scheduling.batch import BatchLayout
from serving.scheduling.driver import Driver
from serving.scheduling.gathering import Gathering
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
        self._gathering: Gathering | None = None
        if policy.ordered_rows > 1 and layout.can_be_gathered:
            self._gathering = Gathering(policy.ordered_rows)

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
            before, self._may_compute = self._may_compute, False
            try:
                self._decide()
            finally:
                self._may_compute = before
            self._policy.add(entry, now)
        # Who is to run at once may be a batch alone, and need not be copied.
        if not self._free_instances and self._gathering is not None:
            request.inputs = self._gathering.add(request.inputs, rows)
        return entry

    def _forget(self, entry: _Entry) -> None:
        self._policy.discard(entry)

    def _act(self, now: float) -> float:
        while True:
            decision = self._policy.decide(now, free_instances=self._free_instances)
            if decision.batch:
                # Before anybody is told, who may ask again at once.
                self._free_instances -= 1
            for entry in decision.expired:
                fail(entry.answer, expired())
            if not decision.batch:
                return decision.wake_at
            if self._start(decision.batch, partial(self._finish, len(decision.batch))):
                if len(self._policy):
                    self._decide_soon()
                return math.inf

    def _finish(self, requests: int, run: Run | None) -> None:
        self._free_instances += 1
        if run is not None:
            seconds = run.answered - run.batched
            self._policy.ran(requests, run.rows, seconds, run.answered)
