"""What one version of a model has done so far: counts, times, and how the times are spread.

A request is recorded once, at its end, from its stamps, and counted with others by `settle`.
Everything belongs to the event loop's thread, so nothing here takes a lock.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, time, time_ns
from typing import TYPE_CHECKING

import numpy as np

from serving.calls import Front
from serving.observability.spread import SECONDS, Spread
from serving.observability.stages import FrontTotals, Outcome
from serving.types import Iteration, Run, Stamps, Work

if TYPE_CHECKING:
    from serving.model import Model

__all__ = ["ModelMetrics", "Outcome", "Spread", "Total"]

_STEP_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_FIRST_RESPONSE_MS = (100, 500, 2000, 5000)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MAX_POSITIONS = 1000


@dataclass(slots=True)
class Total:
    """How often something was done, and the seconds that it took altogether."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """So often more, which took so long together."""
        self.count += times
        self.seconds += seconds


@dataclass(slots=True)
class RunTotals:
    """The stages of the runs that had one certain number of rows."""

    compute_input: Total = field(default_factory=Total)
    compute_infer: Total = field(default_factory=Total)
    compute_output: Total = field(default_factory=Total)


@dataclass(slots=True)
class ResponseTotals:
    """The responses at one position in the answers of a decoupled model."""

    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    cancel: Total = field(default_factory=Total)
    empty: Total = field(default_factory=Total)
    """A request ended without a response at this position or an error."""


@dataclass(slots=True)
class StepTotals:
    """Of a model that answers in steps."""

    seconds: Spread = field(default_factory=lambda: Spread(_STEP_SECONDS))
    """Of each iteration."""
    rows: Spread = field(default_factory=lambda: Spread(_ROWS))
    """Stepped in each iteration."""
    suspensions: int = 0
    work: Work = field(default_factory=Work)
    first_event: Spread = field(default_factory=lambda: Spread(SECONDS))
    between_events: Spread = field(default_factory=lambda: Spread(_STEP_SECONDS))


@dataclass(eq=False, slots=True)
class ModelMetrics:
    """The running totals of one version of a model, whatever loads it has seen.

    Stages are of answered requests that the cache had no answer for.
    """

    has_spreads: bool = True
    """Whether times are sorted into the buckets of histograms, which only Prometheus shows."""
    fronts: dict[Front, FrontTotals] = field(
        default_factory=lambda: {front: FrontTotals() for front in Front}
    )
    refusals: Counter[str] = field(default_factory=Counter)
    """Requests that were not served though nothing failed, by reason."""
    elements: int = 0
    """Of inputs that are padded: what the requests had, and what was added."""
    padding: int = 0
    live: Callable[[], Model | None] = lambda: None
    """The model at this moment, for what it alone knows."""
    rows: int = 0
    runs: int = 0
    load_s: float = 0.0
    """What the last load took."""
    last_inference_ms: int = 0
    """When the latest request came in that reached the model's queue, in milliseconds since 1970.

    Known once that request has ended. Neither a request that was refused before it could wait nor
    one that the response cache answered counts, as with Triton.
    """
    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    compute_input: Total = field(default_factory=Total)
    compute_infer: Total = field(default_factory=Total)
    compute_output: Total = field(default_factory=Total)
    cache_hit: Total = field(default_factory=Total)
    cache_miss: Total = field(default_factory=Total)
    by_rows: dict[int, RunTotals] = field(default_factory=dict)
    by_position: dict[int, ResponseTotals] = field(default_factory=dict)
    request_spread: Spread = field(default_factory=lambda: Spread(SECONDS))
    rows_spread: Spread = field(default_factory=lambda: Spread(_ROWS))
    first_response_ms_spread: Spread = field(default_factory=lambda: Spread(_FIRST_RESPONSE_MS))
    steps: StepTotals | None = None
    """Of a model that answers in steps, once it has made one."""
    created: float = field(default_factory=time)
    """Since when this counts, in seconds since 1970."""

    def count(self, outcome: Outcome) -> int:
        """Requests of all fronts that ended so."""
        return sum(totals.outcomes[outcome] for totals in self.fronts.values())

    def stage(self, name: str) -> Spread:
        """The times of one stage, of the requests of all fronts."""
        return Spread.of(SECONDS, (totals.stages[name] for totals in self.fronts.values()))

    def ran(self, run: Run) -> None:
        """The engine completed one run."""
        self.runs += 1
        self.rows += run.rows
        self.elements += run.elements
        self.padding += run.padding
        self.rows_spread.add(run.rows)
        totals = self.by_rows.get(run.rows)
        if totals is None:
            totals = self.by_rows[run.rows] = RunTotals()
        totals.compute_input.add(run.started - run.batched)
        totals.compute_infer.add(run.computed - run.started)
        totals.compute_output.add(run.answered - run.computed)

    def watch(self, model: Model) -> None:
        """Ask this model, for as long as it is there, what is so at a moment."""
        self.live = weakref.ref(model)

    def iterated(self, iteration: Iteration) -> None:
        """All requests that run together have made a step."""
        steps = self._steps()
        steps.seconds.add(iteration.seconds)
        steps.rows.add(iteration.work.made)
        steps.suspensions += iteration.suspended
        steps.work.made += iteration.work.made
        steps.work.taken_in += iteration.work.taken_in
        steps.work.padding += iteration.work.padding

    def event(self, seconds: float, *, is_first: bool) -> None:
        """A streaming request has its next event."""
        steps = self._steps()
        (steps.first_event if is_first else steps.between_events).add(seconds)

    def _steps(self) -> StepTotals:
        if self.steps is None:
            self.steps = StepTotals()
        return self.steps

    def responses(self, stamps: Stamps) -> Responses:
        """For one request to a decoupled model, whose responses it times."""
        return Responses(self, stamps)

    def ended(
        self, outcome: Outcome, stamps: Stamps, front: Front = Front.INTERNAL, reason: str = ""
    ) -> None:
        """A request got its outcome; `reason` is why it was refused, if it was."""
        totals = self.fronts[front]
        if outcome is Outcome.ANSWERED and not stamps.cached:
            if stamps.looked_up:
                self.cache_miss.add(stamps.looked_up - stamps.received)
            if totals.computed(stamps):
                self.settle()
            return
        totals.outcomes[outcome] += 1
        if outcome is Outcome.ANSWERED:
            request_s = stamps.answered - stamps.received
            self.success.add(request_s)
            if self.has_spreads:
                self.request_spread.add(request_s)
            self.cache_hit.add(stamps.looked_up - stamps.received)
            return
        if reason:
            self.refusals[reason] += 1
        if stamps.queued:
            self._came_in(stamps.received)
        self.fail.add(monotonic() - stamps.received if stamps.received else 0.0)

    def settle(self) -> None:
        """Count what is only kept so far. To be called before anything is read here."""
        for totals in self.fronts.values():
            if (times := totals.settle()) is None:
                continue
            count = len(times)
            whole = times[:, -1] - times[:, 0]
            self.success.add(float(whole.sum()), count)
            if self.has_spreads:
                self.request_spread.add_all(whole)
            _, *stages = np.diff(times).sum(axis=0).tolist()
            for total, seconds in zip(
                (self.queue, self.compute_input, self.compute_infer, self.compute_output),
                stages,
                strict=True,
            ):
                total.add(seconds, count)
            if (queued := times[times[:, 1] > 0]).size:
                self._came_in(float(queued[:, 0].max()))

    def _came_in(self, received: float) -> None:
        ago_ms = round((monotonic() - received) * 1e3)
        self.last_inference_ms = max(self.last_inference_ms, time_ns() // 1_000_000 - ago_ms)

    def sent(self, stamps: Stamps, front: Front, trace_id: str = "") -> None:
        """The answer to a request that was counted has left, seen by a trace or not."""
        if not self.has_spreads:
            return
        totals = self.fronts[front]
        if stamps.sent:
            totals.sent(stamps)
        if trace_id:
            totals.exemplify(stamps, trace_id)
            self.request_spread.exemplify(stamps.answered - stamps.received, trace_id)


class Responses:
    """Times the responses to one request, each from the moment that its computing began.

    That is when the request's turn came, and then whenever the next response was asked for: a slow
    reader is no slow model.
    """

    __slots__ = ("_metrics", "_position", "_since", "_stamps")

    def __init__(self, metrics: ModelMetrics, stamps: Stamps):
        self._metrics = metrics
        self._stamps = stamps
        self._position = 0
        self._since = 0.0

    def came(self) -> None:
        """The model gave one more response."""
        now = monotonic()
        if self._position == 0:
            self._metrics.first_response_ms_spread.add((now - self._stamps.received) * 1e3)
            self._since = self._stamps.batched or self._stamps.received
        self._totals().success.add(now - self._since)
        self._position += 1
        self._since = 0.0

    def asked(self) -> None:
        """The reader is done with that response and asks for the next."""
        self._since = monotonic()

    def ended(self, outcome: Outcome) -> None:
        """No further response will come, for the reason of the request's outcome."""
        if self._position == 0:
            if not self._stamps.batched:
                return
            self._since = self._stamps.batched
        took = monotonic() - self._since if self._since else 0.0
        totals = self._totals()
        match outcome:
            case Outcome.ANSWERED:
                totals.empty.add(took)
            case Outcome.CANCELLED:
                totals.cancel.add(took)
            case _:
                totals.fail.add(took)

    def _totals(self) -> ResponseTotals:
        # Responses without end must not be memory without end.
        position = min(self._position, _MAX_POSITIONS)
        return self._metrics.by_position.setdefault(position, ResponseTotals())
