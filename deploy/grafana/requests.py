"""Panels about requests that several dashboards show, each of those that its selector picks."""

from __future__ import annotations

from grafana_foundation_sdk.builders import heatmap, stat
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.models import units

from deploy.grafana.panels import heat, lines, number, quantile, rate

REQUESTS = "slipway_requests_total"
DURATION = "slipway_request_duration_seconds"

_BAD = 'outcome=~"failed|refused|expired"'
_COUNTED = 'outcome!~"invalid|cancelled"'
"""Requests that are the server's to answer; see the rules."""


def per_second(selector: str) -> stat.Panel:
    return number(
        "Requests per second",
        "With every outcome.",
        rate(REQUESTS, selector),
        unit=units.RequestsPerSecond,
    )


def not_answered(selector: str) -> stat.Panel:
    bad = rate(REQUESTS, f"{selector}, {_BAD}")
    counted = rate(REQUESTS, f"{selector}, {_COUNTED}")
    return number(
        "Not answered",
        "Share of the requests that are the server's to answer: without those that are"
        " invalid or whose callers went away.",
        f"({bad} or vector(0)) / {counted}",
        unit=units.PercentUnit,
        thresholds=[(0.001, "orange"), (0.05, "red")],
        decimals=2,
    )


def slowest(selector: str) -> stat.Panel:
    return number(
        "Slowest percent",
        "99 % of answered requests took less.",
        quantile(0.99, DURATION, selector),
        unit=units.Seconds,
    )


def by_outcome(selector: str, width: int = 8) -> TimeSeries:
    return _by("outcome", "Each request has exactly one.", selector, width)


def by_front(selector: str, width: int = 8) -> TimeSeries:
    return _by("front", "By which protocol they came in.", selector, width)


def spread(selector: str, width: int = 8) -> heatmap.Panel:
    return heat(
        "All requests",
        "From received to outputs ready. Dots are single requests, with their traces.",
        DURATION,
        selector,
        unit="s",
        width=width,
        exemplars=True,
    )


def _by(label: str, description: str, selector: str, width: int) -> TimeSeries:
    return lines(
        f"Requests by {label}",
        description,
        (rate(REQUESTS, selector, by=label), f"{{{{{label}}}}}"),
        unit=units.RequestsPerSecond,
        stacked=True,
        width=width,
    )
