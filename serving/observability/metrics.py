"""Prometheus metrics: Triton's names, so that dashboards made for Triton draw, and histograms.

A request is recorded once, at its end, from its stamps. Labels are the names of loaded models,
never what a caller sent, so their number is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving import __version__
from serving.types import Stamps

_LABELS = ("model", "version")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Outcome(Enum):
    """How a request ended. Exactly one is counted for each."""

    ANSWERED = "answered"
    INVALID = "invalid"
    REFUSED = "refused"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"


# Triton's `reason` label of failures.
_REASONS = {
    Outcome.INVALID: "OTHER",
    Outcome.REFUSED: "REJECTED",
    Outcome.EXPIRED: "REJECTED",
    Outcome.CANCELLED: "CANCELED",
    Outcome.FAILED: "BACKEND",
}


@dataclass(eq=False)
class ModelMetrics:
    """The running totals of one loaded version. Durations are in seconds, of answered requests."""

    request_histogram: Histogram
    queue_histogram: Histogram
    compute_histogram: Histogram
    rows_histogram: Histogram
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    waiting: Callable[[], int] = lambda: 0
    """How many requests are in the queue at this moment."""
    rows: int = 0
    runs: int = 0
    request_s: float = 0.0
    queue_s: float = 0.0
    compute_input_s: float = 0.0
    compute_infer_s: float = 0.0
    compute_output_s: float = 0.0

    def ran(self, rows: int) -> None:
        """The engine completed one run."""
        self.runs += 1
        self.rows += rows
        self.rows_histogram.observe(rows)

    def ended(self, outcome: Outcome, stamps: Stamps) -> None:
        """A request got its outcome."""
        self.outcomes[outcome] += 1
        if outcome is not Outcome.ANSWERED:
            return
        request_s = stamps.answered - stamps.received
        queue_s = stamps.batched - stamps.queued
        compute_s = stamps.computed - stamps.started
        self.request_s += request_s
        self.queue_s += queue_s
        self.compute_input_s += stamps.started - stamps.batched
        self.compute_infer_s += compute_s
        self.compute_output_s += stamps.answered - stamps.computed
        self.request_histogram.observe(request_s)
        self.queue_histogram.observe(queue_s)
        self.compute_histogram.observe(compute_s)


# Triton's name, its meaning, and where it comes from.
_TRITON_COUNTERS: tuple[tuple[str, str, Callable[[ModelMetrics], float]], ...] = (
    (
        "nv_inference_request_success",
        "Requests that were answered",
        lambda m: m.outcomes[Outcome.ANSWERED],
    ),
    ("nv_inference_count", "Rows computed", lambda m: m.rows),
    ("nv_inference_exec_count", "Runs of the engine", lambda m: m.runs),
    (
        "nv_inference_request_duration_us",
        "Cumulative time of answered requests",
        lambda m: round(m.request_s * 1e6),
    ),
    (
        "nv_inference_queue_duration_us",
        "Cumulative wait of answered requests",
        lambda m: round(m.queue_s * 1e6),
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative time spent stacking inputs",
        lambda m: round(m.compute_input_s * 1e6),
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative time in the engine",
        lambda m: round(m.compute_infer_s * 1e6),
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative time spent splitting outputs",
        lambda m: round(m.compute_output_s * 1e6),
    ),
)


class Metrics(Collector):
    """All models' metrics, and the registry from which they are scraped."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self._request = self._histogram(
            "slipway_request_duration_seconds",
            "From the request received to its outputs ready, for answered requests",
            _SECONDS,
        )
        self._queue = self._histogram(
            "slipway_queue_duration_seconds", "Wait for a batch, for answered requests", _SECONDS
        )
        self._compute = self._histogram(
            "slipway_compute_duration_seconds",
            "Run of the engine that a request was part of, for answered requests",
            _SECONDS,
        )
        self._rows = self._histogram("slipway_batch_rows", "Rows of each run of the engine", _ROWS)
        Info("slipway_build", "What is running", registry=self.registry).info(
            {"version": __version__}
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(self)

    def model(self, name: str, version: str) -> ModelMetrics:
        """The totals of one version; they start at zero and are visible at once."""
        labels = (name, version)
        if labels not in self._models:
            self._models[labels] = ModelMetrics(
                request_histogram=self._request.labels(*labels),
                queue_histogram=self._queue.labels(*labels),
                compute_histogram=self._compute.labels(*labels),
                rows_histogram=self._rows.labels(*labels),
            )
        return self._models[labels]

    def collect(self) -> Iterator[Metric]:
        totals = self._models.items()
        for name, documentation, value in _TRITON_COUNTERS:
            # "unknown", because both text formats keep the type "counter" for names in _total.
            family = Metric(name, documentation, "unknown")
            for (model, version), metrics in totals:
                family.add_sample(name, {"model": model, "version": version}, value(metrics))
            yield family

        failures = Metric(
            "nv_inference_request_failure", "Requests that were not answered", "unknown"
        )
        outcomes = CounterMetricFamily(
            "slipway_requests", "Requests by outcome", labels=(*_LABELS, "outcome")
        )
        waiting = GaugeMetricFamily(
            "nv_inference_pending_request_count", "Requests in the queue", labels=_LABELS
        )
        for (model, version), metrics in totals:
            by_reason = dict.fromkeys(sorted(set(_REASONS.values())), 0)
            for outcome, count in metrics.outcomes.items():
                outcomes.add_metric((model, version, outcome.value), count)
                if outcome in _REASONS:
                    by_reason[_REASONS[outcome]] += count
            for reason, count in by_reason.items():
                failures.add_sample(
                    failures.name, {"model": model, "version": version, "reason": reason}, count
                )
            waiting.add_metric((model, version), metrics.waiting())
        yield from (failures, outcomes, waiting)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, documentation, _LABELS, buckets=buckets, registry=self.registry)
