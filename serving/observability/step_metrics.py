"""Metrics of the models that answer in steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from serving.observability.families import LABELS, Found, add_spread, labelled
from serving.observability.spread import Spread
from serving.observability.totals import StepTotals

_HISTOGRAMS: tuple[tuple[str, str, Callable[[StepTotals], Spread]], ...] = (
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


def of_steps(models: Found) -> Iterator[Metric]:
    """What of each model there is since its first step, and the slots that it has before."""
    found = [(version, metrics, metrics.steps) for version, metrics in models if metrics.steps]
    for name, documentation, spread in _HISTOGRAMS:
        histogram = HistogramMetricFamily(name, documentation)
        for version, metrics, steps in found:
            add_spread(histogram, labelled(version), spread(steps), metrics.created)
        yield histogram
    tokens = CounterMetricFamily(
        "slipway_tokens",
        "Tokens (or what else a model counts in) that were generated, taken in, and padding",
        labels=(*LABELS, "kind"),
    )
    suspensions = CounterMetricFamily(
        "slipway_suspensions", "How often a request made room for another", labels=LABELS
    )
    for version, _, steps in found:
        for kind in fields(steps.work):
            tokens.add_metric((*version, kind.name), getattr(steps.work, kind.name))
        suspensions.add_metric(version, steps.suspensions)
    taken = GaugeMetricFamily("slipway_active_slots", "Slots that are taken", labels=LABELS)
    slots = GaugeMetricFamily("slipway_slots", "Slots that there are", labels=LABELS)
    memory = GaugeMetricFamily(
        "slipway_step_memory_bytes",
        "Memory set aside for what running requests have computed, such as keys and values",
        labels=LABELS,
    )
    for version, metrics in models:
        if (live := metrics.live()) is not None and live.slots:
            slots.add_metric(version, live.slots)
            taken.add_metric(version, live.running_slots)
            memory.add_metric(version, live.memory_bytes)
    yield from (tokens, suspensions, taken, slots, memory)
