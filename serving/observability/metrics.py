"""The Prometheus form of every model's totals, under Triton's names, so that its dashboards draw.

Labels are the names of loaded models, never what a caller sent, so their number is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from math import inf

import psutil
from prometheus_client import CollectorRegistry, Info, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from serving import __version__
from serving.errors import OperatorError
from serving.observability.totals import ModelMetrics, Outcome, Spread, StepTotals

_LABELS = ("model", "version")

# Triton's `reason` label of failures.
_REASONS = {
    Outcome.INVALID: "OTHER",
    Outcome.REFUSED: "REJECTED",
    Outcome.EXPIRED: "REJECTED",
    Outcome.CANCELLED: "CANCELED",
    Outcome.FAILED: "BACKEND",
}


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

# A histogram's name, its meaning, and where it comes from.
_Histogram = tuple[str, str, Callable[[ModelMetrics], Spread]]
_HISTOGRAMS: tuple[_Histogram, ...] = (
    (
        "slipway_request_duration_seconds",
        "From the request received to its outputs ready, for answered requests",
        lambda m: m.request_spread,
    ),
    (
        "slipway_queue_duration_seconds",
        "Wait for a batch, for answered requests",
        lambda m: m.queue_spread,
    ),
    (
        "slipway_compute_duration_seconds",
        "Run of the engine that a request was part of, for answered requests",
        lambda m: m.compute_spread,
    ),
    ("slipway_batch_rows", "Rows of each run of the engine", lambda m: m.rows_spread),
)
_LATENCY_HISTOGRAMS: tuple[_Histogram, ...] = (
    (
        "nv_inference_first_response_histogram_ms",
        "From the request received to its first response, for decoupled models",
        lambda m: m.first_response_ms_spread,
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
        self._histograms = _HISTOGRAMS + (_LATENCY_HISTOGRAMS if config.histogram_latencies else ())
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        Info("slipway_build", "What is running", registry=self.registry).info(
            {"version": __version__}
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(self)

    def model(self, name: str, version: str) -> ModelMetrics:
        """The totals of one version; they start at zero and are visible at once."""
        return self._models.setdefault((name, version), ModelMetrics())

    def forget(self, name: str, version: str) -> None:
        """Show no more of a version that is served no more."""
        self._models.pop((name, version), None)

    def _steps(self) -> Iterator[Metric]:
        """Of the models that answer in steps."""
        found = [
            (labels, metrics, metrics.steps)
            for labels, metrics in self._models.items()
            if metrics.steps is not None
        ]
        for name, documentation, spread in _STEP_HISTOGRAMS:
            histogram = HistogramMetricFamily(name, documentation, labels=_LABELS)
            for labels, metrics, steps in found:
                _add(histogram, labels, spread(steps), metrics.created)
            yield histogram
        tokens = CounterMetricFamily(
            "slipway_tokens",
            "Tokens (or what else a model counts in) that were generated, taken in, and padding",
            labels=(*_LABELS, "kind"),
        )
        suspensions = CounterMetricFamily(
            "slipway_suspensions", "How often a request made room for another", labels=_LABELS
        )
        slots = GaugeMetricFamily("slipway_active_slots", "Slots that are taken", labels=_LABELS)
        memory = GaugeMetricFamily(
            "slipway_step_memory_bytes",
            "Memory set aside for what running requests have computed, such as keys and values",
            labels=_LABELS,
        )
        for labels, metrics, steps in found:
            for kind in fields(steps.work):
                tokens.add_metric((*labels, kind.name), getattr(steps.work, kind.name))
            suspensions.add_metric(labels, steps.suspensions)
            live = metrics.live()
            slots.add_metric(labels, live.running_slots if live is not None else 0)
            memory.add_metric(labels, live.memory_bytes if live is not None else 0)
        yield from (tokens, suspensions, slots, memory)

    def collect(self) -> Iterator[Metric]:
        totals = self._models.items()
        for name, documentation, value in self._counters:
            # "unknown", because both text formats keep the type "counter" for names in _total.
            family = Metric(name, documentation, "unknown")
            for (model, version), metrics in totals:
                family.add_sample(name, {"model": model, "version": version}, value(metrics))
            yield family
        for name, documentation, spread in self._histograms:
            histogram = HistogramMetricFamily(name, documentation, labels=_LABELS)
            for labels, metrics in totals:
                _add(histogram, labels, spread(metrics), metrics.created)
            yield histogram

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
            live = metrics.live()
            waiting.add_metric((model, version), live.waiting if live is not None else 0)
            loads.add_metric((model, version), metrics.load_s)
        yield from (failures, outcomes, waiting, loads)
        yield from self._steps()
        yield CounterMetricFamily(
            "slipway_unresolved_requests",
            "Requests for a model that is not served",
            value=self.unresolved,
        )
        yield from _machine()


_STEP_HISTOGRAMS: tuple[tuple[str, str, Callable[[StepTotals], Spread]], ...] = (
    (
        "slipway_step_duration_seconds",
        "One iteration: a step of all requests that run together, with what begins in it",
        lambda s: s.seconds,
    ),
    ("slipway_step_rows", "Rows that were stepped in one iteration", lambda s: s.rows),
    (
        "slipway_first_event_seconds",
        "From a streaming request received to its first event",
        lambda s: s.first_event,
    ),
    (
        "slipway_between_events_seconds",
        "From one event of a streaming request to its next",
        lambda s: s.between_events,
    ),
)


def _add(
    family: HistogramMetricFamily, labels: tuple[str, str], spread: Spread, created: float
) -> None:
    buckets = [
        ("+Inf" if bound == inf else str(float(bound)), float(count))
        for bound, count in spread.cumulative()
    ]
    family.add_metric(labels, buckets, sum_value=spread.sum)
    family.add_sample(f"{family.name}_created", dict(zip(_LABELS, labels, strict=True)), created)


def _machine() -> Iterator[Metric]:
    """What Triton tells of the machine; the utilisation is that since the last scrape."""
    memory = psutil.virtual_memory()
    for name, documentation, value in (
        ("nv_cpu_utilization", "Share of all cores in use, 0 to 1", psutil.cpu_percent() / 100),
        ("nv_cpu_memory_total_bytes", "Memory of the machine", memory.total),
        ("nv_cpu_memory_used_bytes", "Memory of the machine in use", memory.used),
    ):
        yield GaugeMetricFamily(name, documentation, value=value)
