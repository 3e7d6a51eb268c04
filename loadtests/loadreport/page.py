"""The report as one page that needs nothing else: no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from loadreport import plots
from loadreport.compare import Row
from loadreport.measure import KEEPS_UP
from loadreport.results import Results, Scenario, number
from loadreport.stages import STAGES

_WIDTH, _HEIGHT = 6.2, 4.2


@dataclass(frozen=True)
class _Tile:
    value: str
    unit: str
    says: str


@dataclass(frozen=True)
class _Figure:
    title: str
    says: str
    svg: str


def render(results: Results, rows: Sequence[Row] | None, baseline: str) -> str:
    """HTML. `rows` and `baseline` tell of an earlier run, if there is one to compare with."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    environment.filters["number"] = number
    scenarios = [*results.closed, *([results.open] if results.open else [])]
    streamed = [each for each in scenarios if each.rounds[-1].first_event is not None]
    return environment.get_template("report.html").render(
        results=results,
        rows=rows,
        baseline_says=baseline,
        tiles=_tiles(results),
        figures=_figures(results),
        scenarios=scenarios,
        streamed=[each for each in streamed if each.rounds[-1].between_events is not None],
        stages=[name for name in STAGES if any(name in _served(each) for each in scenarios)],
        ranged=_ranged,
        keeps_up=KEEPS_UP,
    )


def _served(scenario: Scenario) -> Sequence[str]:
    return list(scenario.rounds[-1].served.stages)


def _ranged(scenario: Scenario, name: str) -> Markup:
    """A cell: the median, and the range below it."""
    values = scenario.values(name)
    low, high = number(min(values)), number(max(values))
    spread = Markup("<br><small>{}–{}</small>").format(low, high) if len(values) > 1 else ""
    return Markup('<td data-value="{}: {}">{}{}</td>').format(
        scenario.name, name, number(scenario.median(name)), spread
    )


def _tiles(results: Results) -> list[_Tile]:
    bound = number(results.settings["p99_bound_ms"])
    knee, opened = results.knee, results.open
    tiles = [
        _Tile(number(knee.rate_per_s), "requests/s", f"knee: the most within p99 ≤ {bound} ms")
        if knee.rate_per_s
        else _Tile("none", "", f"no rate was borne within p99 ≤ {bound} ms")
    ]
    if opened is not None:
        p50, p99 = number(opened.median("latency.p50")), number(opened.median("latency.p99"))
        tiles.append(
            _Tile(f"{p50} / {p99}", "ms", f"p50 / p99 at {number(opened.rate_per_s)} requests/s")
        )
    best = max(results.closed, key=lambda scenario: scenario.median("answered_per_s"))
    rate = best.median("answered_per_s")
    tiles.append(_Tile(number(rate), "requests/s", f"best closed loop: {best.name[8:]}"))
    if "graph" in results.floors:
        graph = next(value for name, value, _ in plots.rates(results) if name == "graph alone")
        tiles.append(_Tile(f"{100 * rate / graph:.0f}", "%", "of what the graph alone does"))
    return tiles


def _figures(results: Results) -> list[_Figure]:
    figures = [
        _Figure(
            "Throughput against latency",
            "The open loop offers more and more; past the knee, requests pile up.",
            plots.svg(plots.throughput, results, _WIDTH, _HEIGHT),
        ),
        _Figure(
            "Latency by percentile",
            "Of all rounds. Between the open loop's two lines, requests waited to be sent.",
            plots.svg(plots.distribution, results, _WIDTH, _HEIGHT),
        ),
        _Figure(
            "Where the time goes",
            "The server's own stages from /metrics, and what a client waits beyond them.",
            plots.svg(plots.stages, results, _WIDTH, _HEIGHT),
        ),
    ]
    if results.open is not None:
        figures.append(
            _Figure(
                "The open loop over time",
                "The last round: what was answered, and the latency of what was due.",
                plots.svg(plots.timeline, results, _WIDTH, _HEIGHT),
            )
        )
    figures.append(
        _Figure(
            "Beside the floors",
            "The graph without a server, the server without a graph, and both together.",
            plots.svg(plots.floors, results, _WIDTH, _HEIGHT),
        )
    )
    return figures
