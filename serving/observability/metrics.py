"""The Prometheus form of every model's totals, and of the server's own.

Labels are the names of loaded models, never what a caller sent, so their number is bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Info, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from serving import __version__
from serving.observability.families import LABELS, Found, Version, add_spread, labelled
from serving.observability.loop_lag import LoopLag
from serving.observability.spread import Spread
from serving.observability.step_metrics import of_steps
from serving.observability.totals import ModelMetrics
from serving.observability.triton_metrics import MetricsConfig, of_machine, of_models

__all__ = ["Metrics", "MetricsConfig"]

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
        lambda m: m.stage("queue"),
    ),
    (
        "slipway_compute_duration_seconds",
        "Run of the engine that a request was part of, for answered requests",
        lambda m: m.stage("compute"),
    ),
    ("slipway_batch_rows", "Rows of each run of the engine", lambda m: m.rows_spread),
)

STATES = ("READY", "LOADING", "UNLOADING", "UNAVAILABLE")
_LOADS = {True: "success", False: "failure"}


class Metrics(Collector):
    """All models' metrics, and the registry from which they are scraped.

    Without `enabled` nothing is scraped, and only the totals that the statistics extension tells
    are kept.
    """

    def __init__(self, config: MetricsConfig | None = None, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.registry = CollectorRegistry()
        self.unresolved = 0
        """Requests for a model that is not served."""
        self.in_flight: Callable[[], int] = lambda: 0
        """Requests that a model has and that have no outcome yet."""
        self.loop_lag = LoopLag()
        self.states: Callable[[], Iterable[tuple[str, str, str]]] = tuple
        """Name, version and state of every model that the repositories have."""
        self._config = config or MetricsConfig()
        self._models: dict[Version, ModelMetrics] = {}
        self._loads: dict[str, Counter[bool]] = {}
        Info("slipway_build", "What is running", registry=self.registry).info(
            {"version": __version__}
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(self)

    def model(self, name: str, version: str) -> ModelMetrics:
        """The totals of one version; they start at zero and are visible at once."""
        return self._models.setdefault((name, version), ModelMetrics(has_spreads=self.enabled))

    def loaded(self, name: str, *, successfully: bool) -> None:
        """A version of a model that is in a repository was loaded, or could not be."""
        self._loads.setdefault(name, Counter())[successfully] += 1

    def forget(self, name: str, versions: Iterable[str]) -> None:
        """Show no more of a model that is served no more, nor of its versions."""
        self._loads.pop(name, None)
        for version in versions:
            self._models.pop((name, version), None)

    def collect(self) -> Iterator[Metric]:
        found = tuple(self._models.items())
        for _, totals in found:
            totals.settle()
        yield from of_models(found, self._config)
        yield from _requests(found)
        yield from of_steps(found)
        yield from self._repository()
        yield CounterMetricFamily(
            "slipway_unresolved_requests",
            "Requests for a model that is not served",
            value=self.unresolved,
        )
        yield GaugeMetricFamily(
            "slipway_in_flight_requests",
            "Requests that wait or run, those of ensembles to their members included",
            value=self.in_flight(),
        )
        lag = HistogramMetricFamily(
            "slipway_event_loop_lag_seconds",
            "How late the event loop came to a task that was due, looked at ten times a second",
        )
        add_spread(lag, {}, self.loop_lag.spread, self.loop_lag.created)
        yield lag
        yield from of_machine()

    def _repository(self) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "slipway_model_state",
            "1 for the state that a version is in; the empty version is a model as a whole",
            labels=(*LABELS, "state"),
        )
        for name, version, state in self.states():
            for each in STATES:
                states.add_metric((name, version, each), float(each == state))
        loads = CounterMetricFamily(
            "slipway_model_loads", "Versions that were loaded or not", labels=("model", "result")
        )
        # All that is there from the beginning: who counts from 1 has not grown.
        for name in sorted({name for name, _, _ in self.states()} | self._loads.keys()):
            counts = self._loads.get(name, Counter())
            for successfully, result in _LOADS.items():
                loads.add_metric((name, result), counts[successfully])
        yield from (states, loads)


def _requests(found: Found) -> Iterator[Metric]:
    for name, documentation, spread in _HISTOGRAMS:
        histogram = HistogramMetricFamily(name, documentation)
        for version, metrics in found:
            add_spread(histogram, labelled(version), spread(metrics), metrics.created)
        yield histogram
    stages = HistogramMetricFamily(
        "slipway_stage_duration_seconds", "Where the time of answered requests went"
    )
    outcomes = CounterMetricFamily(
        "slipway_requests", "Requests by outcome", labels=(*LABELS, "front", "outcome")
    )
    refusals = CounterMetricFamily(
        "slipway_refusals",
        "Requests that were not served though nothing failed",
        labels=(*LABELS, "reason"),
    )
    capacities = GaugeMetricFamily(
        "slipway_queue_capacity", "Requests that may wait, where that is bounded", labels=LABELS
    )
    padding = CounterMetricFamily(
        "slipway_padding",
        "Elements of inputs that are padded to the longest of a batch",
        labels=(*LABELS, "kind"),
    )
    for version, metrics in found:
        for front, totals in metrics.fronts.items():
            for outcome, count in totals.outcomes.items():
                outcomes.add_metric((*version, front.value, outcome.value), count)
            for stage, times in totals.stages.items():
                if times.count:
                    labels = labelled(version) | {"front": front.value, "stage": stage}
                    add_spread(stages, labels, times, metrics.created)
        for reason, count in metrics.refusals.items():
            refusals.add_metric((*version, reason), count)
        live = metrics.live()
        if live is not None and live.queue_capacity is not None:
            capacities.add_metric(version, live.queue_capacity)
        if metrics.elements:
            padding.add_metric((*version, "real"), metrics.elements)
            padding.add_metric((*version, "padding"), metrics.padding)
    yield from (stages, outcomes, refusals, capacities, padding)
