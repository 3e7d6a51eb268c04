"""What a training run has come to, for Prometheus, while it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from training.checkpoint import EpochRecord
from training.errors import TrainingError
from training.workload import Totals


@dataclass(frozen=True)
class Endpoint:
    """Where a run's metrics are scraped, and by which name they call the run."""

    host: str
    port: int
    run: str


class RunMetrics(Collector):
    """Told by the loop of the first process, read by a scrape.

    What was measured stays on the device until somebody asks for it, so that the loop never waits.
    """

    def __init__(self, run: str, epochs: int):
        self._run = run
        self._epochs = epochs
        self._epoch = 0
        self._steps = 0
        self._examples = 0
        self._learning_rate = 0.0
        self._totals: Totals = {}
        self._last: EpochRecord | None = None

    def begin(self, epoch: int, totals: Totals) -> None:
        """An epoch begins; `totals` are those that the loop adds to."""
        self._epoch = epoch
        self._totals = totals

    def stepped(self, examples: int, learning_rate: float) -> None:
        self._steps += 1
        self._examples += examples
        self._learning_rate = learning_rate

    def validated(self, record: EpochRecord) -> None:
        self._last = record

    def collect(self) -> Iterator[Metric]:
        for name, documentation, value in (
            ("epoch", "The epoch that is being trained, from 1", self._epoch),
            ("epochs", "Epochs that the recipe asks for", self._epochs),
            ("learning_rate", "Of the last step", self._learning_rate),
        ):
            gauge = GaugeMetricFamily(f"slipway_training_{name}", documentation, labels=["run"])
            gauge.add_metric([self._run], value)
            yield gauge
        for name, documentation, value in (
            ("steps", "Steps since the command was started", self._steps),
            ("examples", "Examples since then, over all devices", self._examples),
        ):
            counter = CounterMetricFamily(f"slipway_training_{name}", documentation, labels=["run"])
            counter.add_metric([self._run], value)
            yield counter
        measures = GaugeMetricFamily(
            "slipway_training_measure",
            "Means over examples: train is this epoch so far, as the first process sees it,"
            " validation the last whole epoch",
            labels=["run", "part", "measure"],
        )
        means = dict(self._last.train) if self._last is not None else {}
        # A copy, because the loop may add a measure meanwhile.
        for name, both in dict(self._totals).items():
            total, count = both.tolist()
            if count:
                means[name] = total / count
        for name, mean in means.items():
            measures.add_metric([self._run, "train", name], mean)
        if self._last is not None:
            for name, mean in self._last.validation.items():
                measures.add_metric([self._run, "validation", name], mean)
        yield measures


@contextmanager
def served(metrics: RunMetrics, endpoint: Endpoint | None) -> Iterator[None]:
    """Answer scrapes there, from a thread of its own. Raises `TrainingError` if that cannot be."""
    if endpoint is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(endpoint.port, endpoint.host, registry)
    except OSError as error:
        raise TrainingError(
            f"--metrics-port {endpoint.port} of {endpoint.host}: {error.strerror}"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
