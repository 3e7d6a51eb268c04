"""The plots of the report, as SVG that stands in the page."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from loadreport.results import QUANTILES, Results, Scenario, number
from loadreport.stages import STAGES

INK, MUTED, GRID = "#1f2933", "#5f6c7b", "#e4e8ec"
CLOSED = ("#9ec5e8", "#4a90c8", "#1c5d99", "#0b3559", "#051c30")
OPEN, BOUND, KNEE = "#d9730d", "#c0392b", "#2e7d4f"
_STAGE_COLOURS = {
    "parse": "#b8d4ea",
    "queue": "#f0c05a",
    "gather": "#8fb8a8",
    "compute": "#3f7cac",
    "scatter": "#a79cc9",
    "send": "#d9a5b3",
    "outside the server": "#d3d9df",
    "sent late": "#e2955c",
}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#c4ccd4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
    # The same numbers make the same file.
    "svg.hashsalt": "slipway",
}


def svg(
    draw: Callable[[Figure, Results], None], results: Results, width: float, height: float
) -> str:
    """The `<svg>` element of a plot of so many inches."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, results)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True
        )
    text = file.getvalue()
    return text[text.index("<svg") :]


def throughput(figure: Figure, results: Results) -> None:
    """Latency over throughput, with the knee."""
    axes = figure.subplots()
    bound = results.settings["p99_bound_ms"]
    knee = results.knee
    for name, shade, width in (("p99", OPEN, 1.8), ("p50", "#f2b36b", 1.4)):
        rates = [step.rate_per_s for step in results.ramp]
        values = [getattr(step.rounds[-1].latency, name) for step in results.ramp]
        axes.plot(
            rates, values, color=shade, lw=width, marker="o", ms=4.5, label=f"open loop, {name}"
        )
        beyond = [
            (rate, value)
            for rate, value in zip(rates, values, strict=True)
            if rate > knee.rate_per_s
        ]
        axes.plot(*zip(*beyond, strict=True), "o", ms=4.5, mfc="white", mec=shade)
    closed = [
        (each.median("answered_per_s"), each.median("latency.p99")) for each in results.closed
    ]
    axes.plot(
        [rate for rate, _ in closed],
        [p99 for _, p99 in closed],
        "s",
        color=CLOSED[2],
        ms=5,
        label="closed loop, p99, with n clients",
    )
    for scenario, point in zip(results.closed, closed, strict=True):
        axes.annotate(
            str(scenario.clients),
            point,
            (0, -6),
            textcoords="offset points",
            ha="center",
            va="top",
            color=CLOSED[2],
            fontsize=8,
        )
    axes.axhline(bound, color=BOUND, lw=1, ls="--", label=f"bound of p99, {number(bound)} ms")
    if knee.rate_per_s:
        label = f"knee, {number(knee.rate_per_s)} requests/s"
        axes.axvline(knee.rate_per_s, color=KNEE, lw=1.2, label=label)
    axes.set_xlabel("requests/s: offered by the open loop, answered in the closed ones")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _log_ms(axes)
    _legend_below(figure, axes, 2)


def distribution(figure: Figure, results: Results) -> None:
    """Latency by percentile, with an axis that has room for the last ones."""
    axes = figure.subplots()
    places = [_nines(q) for q in QUANTILES]
    for scenario, shade in zip(results.closed, _shades(len(results.closed)), strict=True):
        axes.plot(places, scenario.distribution, color=shade, lw=1.6, label=scenario.name)
    opened = results.open
    if opened is not None and opened.distribution:
        name = f"open, {number(opened.rate_per_s)}/s"
        axes.plot(places, opened.distribution, color=OPEN, lw=2, label=f"{name}, from due")
        axes.plot(
            places,
            opened.distribution_from_sent,
            color=OPEN,
            lw=1.4,
            ls=":",
            label=f"{name}, from sent",
        )
    shown = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
    axes.set_xticks([_nines(q) for q in shown], ["least", "p50", "p90", "p99", "p99.9", "p99.99"])
    axes.set_xlim(0, _nines(shown[-1]))
    axes.set_xlabel("percentile of the answers")
    _log_ms(axes)
    _legend_below(figure, axes, 2)


def stages(figure: Figure, results: Results) -> None:
    """Where the mean latency of each load was spent."""
    axes = figure.subplots()
    scenarios = [*results.closed, *([results.open] if results.open else [])]
    bars = [where_it_went(scenario) for scenario in scenarios]
    names = [name for name in _STAGE_COLOURS if any(name in bar for bar in bars)]
    left = np.zeros(len(bars))
    for name in names:
        widths = np.array([bar.get(name, 0.0) for bar in bars])
        axes.barh(
            range(len(bars)), widths, left=left, height=0.62, color=_STAGE_COLOURS[name], label=name
        )
        left += widths
    for place, total in enumerate(left):
        axes.annotate(
            f"{number(total)} ms", (total, place), (4, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(bars)), [_two_lines(scenario) for scenario in scenarios])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.16 * max(left))
    axes.set_xlabel("mean time of a request, ms")
    _legend_below(figure, axes, 4)


def where_it_went(scenario: Scenario) -> dict[str, float]:
    """The mean latency of a request in milliseconds, by where it was spent, of the median round.

    What the server does not account for is outside of it: the network, the client, and threads
    that wait for a core.
    """
    ordered = sorted(scenario.rounds, key=lambda each: each.latency.mean)
    found = ordered[len(ordered) // 2]
    answered = max(1, found.requests + found.unfinished - found.failed)
    spent = {
        # A recording, say, is several requests to the model.
        name: stage.mean_ms * stage.count / answered
        for name in STAGES
        if (stage := found.served.stages.get(name)) is not None
    }
    spent["outside the server"] = max(0.0, found.latency_from_sent.mean - sum(spent.values()))
    if scenario.kind == "open":
        spent["sent late"] = max(0.0, found.latency.mean - found.latency_from_sent.mean)
    return spent


def timeline(figure: Figure, results: Results) -> None:
    """The last round of the open loop, from its first moment to its last."""
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.4))
    opened = results.open
    assert opened is not None
    assert opened.timeline is not None
    line = opened.timeline
    seconds = (np.arange(len(line.answered_per_s)) + 0.5) * line.bin_s
    above.fill_between(seconds, line.answered_per_s, step="mid", color=CLOSED[0], label="answered")
    above.axhline(opened.rate_per_s, color=OPEN, lw=1.2, label="offered")
    above.set_ylabel("requests/s")
    above.set_ylim(0, 1.15 * max(*line.answered_per_s, opened.rate_per_s))
    above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    above.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2)
    for name, values, shade in (("most", line.max, OPEN), ("p50", line.p50, CLOSED[2])):
        shown = [math.nan if value is None else value for value in values]
        below.plot(seconds, shown, ".-", color=shade, lw=1, ms=3, label=name)
    below.set_xlabel("seconds since the start")
    _log_ms(below)
    below.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2)


def floors(figure: Figure, results: Results) -> None:
    """Requests a second: of the graph alone, of the gateway alone, and of both together."""
    axes = figure.subplots()
    bars = rates(results)
    axes.barh(
        range(len(bars)),
        [rate for _, rate, _ in bars],
        color=[shade for _, _, shade in bars],
        height=0.6,
    )
    for place, (_, rate, _) in enumerate(bars):
        axes.annotate(number(rate), (rate, place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.15 * max(rate for _, rate, _ in bars))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("requests/s")


def rates(results: Results) -> list[tuple[str, float, str]]:
    """Name, median requests a second, and colour."""
    best = max(results.closed, key=lambda scenario: scenario.median("answered_per_s"))
    bars = [
        (name, float(np.median(results.floors[key].rounds)), "#c4ccd4")
        for key, name in (("graph", "graph alone"), ("fake", "fake engine"))
        if key in results.floors
    ]
    bars.append((f"closed loop, {best.clients}", best.median("answered_per_s"), CLOSED[2]))
    if results.knee.rate_per_s:
        bars.append(("knee", results.knee.rate_per_s, KNEE))
    return bars


def _nines(q: float) -> float:
    return -math.log10(1 - min(q, QUANTILES[-1]))


def _shades(number: int) -> Sequence[str]:
    places = np.linspace(0, min(len(CLOSED) - 1, max(number - 1, 2)), number)
    return [CLOSED[round(place)] for place in places]


def _two_lines(scenario: Scenario) -> str:
    if scenario.kind == "open":
        return f"open,\n{number(scenario.rate_per_s)}/s"
    return scenario.name.replace(", ", ",\n")


def _log_ms(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_ylabel("latency, ms")
    # At least the powers of ten and what is between them where there is little.
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    axes.set_yticks(
        [
            sub * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for sub in subs
            if low <= sub * 10.0**power <= high
        ]
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
