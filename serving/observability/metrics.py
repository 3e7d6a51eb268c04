"""Prometheus metrics: Triton's names, so that dashboards made for Triton draw, and histograms.

A request is recorded once, at its end, from its stamps. Labels are the names of loaded models,
never what a caller sent, so their number is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from time import monotonic, time_ns

import psutil
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
from serving.errors import OperatorError
from serving.types import Run, Stamps

_LABELS = ("model", "version")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_FIRST_RESPONSE_MS = (100, 500, 2000, 5000)
_MAX_POSITIONS = 1000
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


@dataclass(slots=True)
class Total:
    """How often something was done, and the seconds that it took altogether."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
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


@dataclass(eq=False)
class ModelMetrics:
    """The running totals of one version of a model, whatever loads it has seen.

    Stages are of answered requests that the cache had no answer for.
    """

    request_histogram: Histogram
    queue_histogram: Histogram
    compute_histogram: Histogram
    rows_histogram: Histogram
    first_response_histogram: Histogram
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    waiting: Callable[[], int] = lambda: 0
    """How many requests are in the queue at this moment."""
    rows: int = 0
    runs: int = 0
    load_s: float = 0.0
    """What the last load took."""
    last_inference_ms: int = 0
    """When a request last came in, in milliseconds since 1970."""
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

    def ran(self, run: Run) -> None:
        """The engine completed one run."""
        self.runs += 1
        self.rows += run.rows
        self.rows_histogram.observe(run.rows)
        totals = self.by_rows.setdefault(run.rows, RunTotals())
        totals.compute_input.add(run.started - run.batched)
        totals.compute_infer.add(run.computed - run.started)
        totals.compute_output.add(run.answered - run.computed)

    def responded(self, position: int, seconds: float, stamps: Stamps) -> None:
        """A decoupled model gave one more response, `seconds` after the one before."""
        if position == 0:
            self.first_response_histogram.observe((monotonic() - stamps.received) * 1e3)
        self._at(position).success.add(seconds)

    def stream_ended(self, position: int, seconds: float, outcome: Outcome) -> None:
        """No response came at this position, for the reason of the request's outcome."""
        totals = self._at(position)
        match outcome:
            case Outcome.ANSWERED:
                totals.empty.add(seconds)
            case Outcome.CANCELLED:
                totals.cancel.add(seconds)
            case _:
                totals.fail.add(seconds)

    def ended(self, outcome: Outcome, stamps: Stamps) -> None:
        """A request got its outcome."""
        self.outcomes[outcome] += 1
        self.last_inference_ms = time_ns() // 1_000_000
        if outcome is not Outcome.ANSWERED:
            self.fail.add(monotonic() - stamps.received if stamps.received else 0.0)
            return
        request_s = stamps.answered - stamps.received
        self.success.add(request_s)
        self.request_histogram.observe(request_s)
        if stamps.cached:
            self.cache_hit.add(stamps.looked_up - stamps.received)
            return
        if stamps.looked_up:
            self.cache_miss.add(stamps.looked_up - stamps.received)
        queue_s = stamps.batched - stamps.queued
        compute_s = stamps.computed - stamps.started
        self.queue.add(queue_s)
        self.compute_input.add(stamps.started - stamps.batched)
        self.compute_infer.add(compute_s)
        self.compute_output.add(stamps.answered - stamps.computed)
        self.queue_histogram.observe(queue_s)
        self.compute_histogram.observe(compute_s)

    def _at(self, position: int) -> ResponseTotals:
        # Responses without end must not be memory without end.
        return self.by_position.setdefault(min(position, _MAX_POSITIONS), ResponseTotals())


# Triton's name, its meaning, and where it comes from.
_Counter = tuple[str, str, Callable[[ModelMetrics], float]]
_COUNTERS: tuple[_Counter, ...] = (
    (
        "nv_inference_request_success",
        "Requests that were answered",
        lambda m: m.outcomes[Outcome.ANSWERED],
    ),
    ("nv_inference_count", "Rows computed", lambda m: m.rows),
    ("nv_inference_exec_count", "Runs of the engine", lambda m: m.runs),
    (
        "nv_cache_num_hits_per_model",
        "Requests that the response cache answered",
        lambda m: m.cache_hit.count,
    ),
    (
        "nv_cache_num_misses_per_model",
        "Answered requests that were not in the response cache",
        lambda m: m.cache_miss.count,
    ),
)
_LATENCY_COUNTERS: tuple[_Counter, ...] = (
    (
        "nv_inference_request_duration_us",
        "Cumulative time of answered requests",
        lambda m: round(m.success.seconds * 1e6),
    ),
    (
        "nv_inference_queue_duration_us",
        "Cumulative wait of answered requests",
        lambda m: round(m.queue.seconds * 1e6),
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative time spent stacking inputs",
        lambda m: round(m.compute_input.seconds * 1e6),
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative time in the engine",
        lambda m: round(m.compute_infer.seconds * 1e6),
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative time spent splitting outputs",
        lambda m: round(m.compute_output.seconds * 1e6),
    ),
    (
        "nv_cache_hit_duration_per_model",
        "Cumulative time of finding answers in the response cache, in microseconds",
        lambda m: round(m.cache_hit.seconds * 1e6),
    ),
    (
        "nv_cache_miss_duration_per_model",
        "Cumulative time of not finding them, in microseconds",
        lambda m: round(m.cache_miss.seconds * 1e6),
    ),
)


@dataclass(frozen=True)
class MetricsConfig:
    """What `--metrics-config` chooses, under Triton's names."""

    counter_latencies: bool = True
    histogram_latencies: bool = False

    @classmethod
    def parse(cls, values: Sequence[str]) -> MetricsConfig:
        """From `name=true` or `name=false`. Raises `OperatorError` for anything else."""
        chosen: dict[str, bool] = {}
        names = [item.name for item in fields(cls)]
        for value in values:
            name, _, state = value.partition("=")
            if name not in names or state not in ("true", "false"):
                raise OperatorError(
                    f"--metrics-config {value}: expected {' or '.join(names)}, then =true or =false"
                )
            chosen[name] = state == "true"
        return cls(**chosen)


class Metrics(Collector):
    """All models' metrics, and the registry from which they are scraped."""

    def __init__(self, config: MetricsConfig | None = None) -> None:
        config = config or MetricsConfig()
        self.registry = CollectorRegistry()
        self.unresolved = 0
        """Requests for a model that is not served."""
        self._counters = _COUNTERS + (_LATENCY_COUNTERS if config.counter_latencies else ())
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
        self._first_response = Histogram(
            "nv_inference_first_response_histogram_ms",
            "From the request received to its first response, for decoupled models",
            _LABELS,
            buckets=_FIRST_RESPONSE_MS,
            registry=self.registry if config.histogram_latencies else None,
        )
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
                first_response_histogram=self._first_response.labels(*labels),
            )
        return self._models[labels]

    def collect(self) -> Iterator[Metric]:
        totals = self._models.items()
        for name, documentation, value in self._counters:
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
        loads = GaugeMetricFamily(
            "nv_model_load_duration_secs", "What the last load took", labels=_LABELS
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
            loads.add_metric((model, version), metrics.load_s)
        yield from (failures, outcomes, waiting, loads)
        yield CounterMetricFamily(
            "slipway_unresolved_requests",
            "Requests for a model that is not served",
            value=self.unresolved,
        )
        yield from _machine()

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, documentation, _LABELS, buckets=buckets, registry=self.registry)


def _machine() -> Iterator[Metric]:
    """What Triton tells of the machine; the utilisation is that since the last scrape."""
    memory = psutil.virtual_memory()
    for name, documentation, value in (
        ("nv_cpu_utilization", "Share of all cores in use, 0 to 1", psutil.cpu_percent() / 100),
        ("nv_cpu_memory_total_bytes", "Memory of the machine", memory.total),
        ("nv_cpu_memory_used_bytes", "Memory of the machine in use", memory.used),
    ):
        yield GaugeMetricFamily(name, documentation, value=value)
