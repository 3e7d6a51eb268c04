"""Metrics under Triton's names, so that its dashboards draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import psutil
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric

from serving.errors import OperatorError
from serving.observability.families import LABELS, Found, add_spread, labelled
from serving.observability.totals import ModelMetrics, Outcome

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
        lambda m: m.count(Outcome.ANSWERED),
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


def of_models(found: Found, config: MetricsConfig) -> Iterator[Metric]:
    """Those that are labelled with a model."""
    for name, documentation, value in _COUNTERS + (
        _LATENCY_COUNTERS if config.counter_latencies else ()
    ):
        # "unknown", because both text formats keep the type "counter" for names in _total.
        family = Metric(name, documentation, "unknown")
        for version, metrics in found:
            family.add_sample(name, labelled(version), value(metrics))
        yield family
    if config.histogram_latencies:
        histogram = HistogramMetricFamily(
            "nv_inference_first_response_histogram_ms",
            "From the request received to its first response, for decoupled models",
        )
        for version, metrics in found:
            add_spread(
                histogram, labelled(version), metrics.first_response_ms_spread, metrics.created
            )
        yield histogram
    failures = Metric("nv_inference_request_failure", "Requests that were not answered", "unknown")
    waiting = GaugeMetricFamily(
        "nv_inference_pending_request_count", "Requests in the queue", labels=LABELS
    )
    loads = GaugeMetricFamily(
        "nv_model_load_duration_secs", "What the last load took", labels=LABELS
    )
    for version, metrics in found:
        by_reason = dict.fromkeys(sorted(set(_REASONS.values())), 0)
        for outcome, reason in _REASONS.items():
            by_reason[reason] += metrics.count(outcome)
        for reason, count in by_reason.items():
            failures.add_sample(failures.name, labelled(version) | {"reason": reason}, count)
        live = metrics.live()
        waiting.add_metric(version, live.waiting if live is not None else 0)
        loads.add_metric(version, metrics.load_s)
    yield from (failures, waiting, loads)


def of_machine() -> Iterator[Metric]:
    """What Triton tells of the machine; the utilisation is that since the last scrape."""
    memory = psutil.virtual_memory()
    for name, documentation, value in (
        ("nv_cpu_utilization", "Share of all cores in use, 0 to 1", psutil.cpu_percent() / 100),
        ("nv_cpu_memory_total_bytes", "Memory of the machine", memory.total),
        ("nv_cpu_memory_used_bytes", "Memory of the machine in use", memory.used),
    ):
        yield GaugeMetricFamily(name, documentation, value=value)
