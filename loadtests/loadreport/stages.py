"""What the server says of its own time, from /metrics scraped before and after a load."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

STAGES = ("parse", "queue", "gather", "compute", "scatter", "send")
_HISTOGRAM = "slipway_stage_duration_seconds"
_BATCH = "slipway_batch_rows"
_STEP = "slipway_step_rows"
_CPU = "process_cpu_seconds_total"
_TOKENS = "slipway_tokens_total"
_REQUESTS = "slipway_requests_total"


@dataclass(frozen=True)
class Stage:
    count: float
    mean_ms: float
    p99_ms: float
    """From the buckets, as Prometheus would tell it."""


@dataclass(frozen=True)
class Served:
    """Between two scrapes."""

    stages: Mapping[str, Stage]
    cpu_s: float
    mean_batch_rows: float | None
    """Of the engine's runs or, for a model that takes steps, of its steps; None if there were
    none."""
    work_per_request: float | None
    """What a model that takes steps made for a request, on average, in tokens or the like."""


@dataclass
class _Histogram:
    sum: float = 0.0
    count: float = 0.0
    buckets: dict[float, float] = field(default_factory=dict)
    """Cumulative, by upper bound."""

    def less(self, before: _Histogram) -> _Histogram:
        buckets = {
            bound: count - before.buckets.get(bound, 0.0) for bound, count in self.buckets.items()
        }
        return _Histogram(self.sum - before.sum, self.count - before.count, buckets)

    def quantile(self, q: float) -> float:
        """Linear within a bucket; the last finite bound if it is beyond all."""
        wanted, lower, below = q * self.count, 0.0, 0.0
        for bound, count in sorted(self.buckets.items()):
            if count >= wanted:
                if bound == float("inf") or count == below:
                    return lower
                return lower + (bound - lower) * (wanted - below) / (count - below)
            lower, below = bound, count
        return lower

    @property
    def mean(self) -> float | None:
        return self.sum / self.count if self.count else None


class Scrape:
    """One scrape of a server's /metrics, as far as it tells of one model."""

    def __init__(self, url: str, model: str):
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        self._cpu_s = 0.0
        self._made = self._answered = 0.0
        self._histograms: dict[str, _Histogram] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == _CPU:
                    self._cpu_s = sample.value
                elif sample.labels.get("model") != model:
                    continue
                elif sample.name == _TOKENS:
                    self._made += sample.value * (sample.labels["kind"] == "made")
                elif sample.name == _REQUESTS:
                    self._answered += sample.value * (sample.labels["outcome"] == "answered")
                else:
                    self._take(family.name, sample.name, sample.labels, sample.value)

    def _take(self, family: str, name: str, labels: Mapping[str, str], value: float) -> None:
        """Add a sample to its histogram; of all versions and fronts together."""
        if family == _HISTOGRAM:
            key = labels["stage"]
        elif family in (_BATCH, _STEP):
            key = family
        else:
            return
        histogram = self._histograms.setdefault(key, _Histogram())
        if name.endswith("_sum"):
            histogram.sum += value
        elif name.endswith("_count"):
            histogram.count += value
        elif name.endswith("_bucket"):
            bound = float(labels["le"])
            histogram.buckets[bound] = histogram.buckets.get(bound, 0.0) + value

    def since(self, before: Scrape) -> Served:
        stages = {}
        for name in STAGES:
            spent = self._less(before, name)
            if spent.mean is not None:
                p99 = 1000 * spent.quantile(0.99)
                stages[name] = Stage(spent.count, 1000 * spent.mean, p99)
        rows = self._less(before, _STEP).mean
        if rows is None:
            rows = self._less(before, _BATCH).mean
        made, answered = self._made - before._made, self._answered - before._answered
        work = made / answered if made and answered else None
        return Served(stages, self._cpu_s - before._cpu_s, rows, work)

    def _less(self, before: Scrape, key: str) -> _Histogram:
        empty = _Histogram()
        return self._histograms.get(key, empty).less(before._histograms.get(key, empty))
