"""What all collectors of models' totals share: labels, and how a spread becomes a histogram."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.samples import Exemplar

from serving.observability.spread import Spread
from serving.observability.totals import ModelMetrics

LABELS = ("model", "version")

Version = tuple[str, str]
"""A model's name and version."""
Found = Iterable[tuple[Version, ModelMetrics]]


def add_spread(
    family: HistogramMetricFamily,
    labels: dict[str, str],
    spread: Spread,
    created: float,
) -> None:
    """Add a histogram's samples, with the traces to look at where there are any."""
    count = 0
    for bound, count, exemplar in spread.cumulative():
        family.add_sample(
            f"{family.name}_bucket",
            labels | {"le": "+Inf" if bound == inf else str(float(bound))},
            count,
            exemplar=exemplar
            and Exemplar({"trace_id": exemplar.trace_id}, exemplar.value, exemplar.at),
        )
    family.add_sample(f"{family.name}_count", labels, count)
    family.add_sample(f"{family.name}_sum", labels, spread.sum)
    family.add_sample(f"{family.name}_created", labels, created)


def labelled(version: Sequence[str]) -> dict[str, str]:
    return dict(zip(LABELS, version, strict=True))
