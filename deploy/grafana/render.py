"""Draw a dashboard without Grafana: the same queries, asked of Prometheus, in the same layout.

python -m deploy.grafana.render overview overview.png --prometheus http://127.0.0.1:9090
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image

from deploy.grafana.panels import ALL
from deploy.grafana.queries import Query, load, queries

PAGE, PANEL, INK, FAINT = "#111217", "#181b1f", "#ccccdc", "#2c3235"
COLOURS = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#96d98d")
WIDTH_INCHES, UNIT_INCHES = 15.0, 0.3
"""Of the page, and of one unit of height on Grafana's grid."""
COLUMNS = 24

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """NaN where there is no value."""

    labels: dict[str, str]
    name: str
    values: Floats


@dataclass(frozen=True)
class Source:
    """A Prometheus, and the stretch of time to look at."""

    url: str
    start: float
    end: float
    step: float
    rate_interval: str
    variables: Mapping[str, str]

    @property
    def times(self) -> Floats:
        """Seconds from the start."""
        return np.arange(0, self.end - self.start + self.step / 2, self.step)

    def ask(self, query: Query) -> list[Series]:
        parameters = {
            "query": query.filled(self.variables, self.rate_interval),
            **{"start": f"{self.start}", "end": f"{self.end}", "step": f"{self.step}"},
        }
        body = urllib.parse.urlencode(parameters).encode()
        with urllib.request.urlopen(f"{self.url}/api/v1/query_range", body, 60) as response:  # noqa: S310
            found = json.load(response)["data"]["result"]
        return [self._series(query, each["metric"], each["values"]) for each in found]

    def _series(self, query: Query, labels: dict[str, str], points: list[Any]) -> Series:
        values = np.full(len(self.times), np.nan)
        for at, value in points:
            values[round((at - self.start) / self.step)] = float(value)
        name = re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), query.legend)
        return Series(labels, name or query.panel, values)


def draw(dashboard: dict[str, Any], source: Source) -> Figure:
    panels = dashboard["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(WIDTH_INCHES, height * UNIT_INCHES), facecolor=PAGE)
    for panel in panels:
        place = panel["gridPos"]
        box = (
            place["x"] / COLUMNS,
            1 - (place["y"] + place["h"]) / height,
            place["w"] / COLUMNS,
            place["h"] / height,
        )
        if panel["type"] == "row":
            middle = box[1] + box[3] / 2
            figure.text(
                0.005, middle, panel["title"], color=INK, size=10, weight="bold", va="center"
            )
            continue
        _panel(figure, box, height, panel, source)
    return figure


def _panel(
    figure: Figure,
    box: tuple[float, float, float, float],
    height: int,
    panel: dict[str, Any],
    source: Source,
) -> None:
    """One panel in its box, of which the coordinates are shares of the page."""
    left, bottom, wide, high = box
    inch, inch_up = 1 / WIDTH_INCHES, 1 / (height * UNIT_INCHES)
    gap, gap_up = 0.04 * inch, 0.04 * inch_up
    figure.patches.append(
        mpl.patches.Rectangle(
            (left + gap, bottom + gap_up),
            wide - 2 * gap,
            high - 2 * gap_up,
            transform=figure.transFigure,
            facecolor=PANEL,
            edgecolor=FAINT,
            linewidth=0.6,
            zorder=-1,  # below the axes
        )
    )
    top = bottom + high - 0.1 * inch_up
    figure.text(left + 0.12 * inch, top, panel["title"], color=INK, size=8, va="top")
    found = [series for query in queries(panel) for series in source.ask(query)]
    inset = (0.05, 0.05, 0.05, 0.7) if panel["type"] == "stat" else (0.55, 0.52, 0.15, 0.3)
    axes = figure.add_axes(
        (
            left + inset[0] * inch,
            bottom + inset[1] * inch_up,
            wide - (inset[0] + inset[2]) * inch,
            high - (inset[1] + inset[3]) * inch_up,
        ),
        facecolor=PANEL,
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(colors=INK, labelsize=6.5, length=0)
    _KINDS[panel["type"]](axes, panel, found, source)


def _lines(axes: Axes, panel: dict[str, Any], found: list[Series], source: Source) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults.get("custom", {})
    drawn = [series for series in found if not np.isnan(series.values).all()]
    drawn.sort(key=lambda series: series.name)
    unit = defaults.get("unit", "short")
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    base = np.zeros(len(source.times))
    if stacked:
        # What is nothing all the time would only fill the legend.
        drawn = [series for series in drawn if np.nansum(series.values) > 0]
        for number, series in enumerate(drawn):
            above = base + np.nan_to_num(series.values)
            colour = COLOURS[number % len(COLOURS)]
            axes.fill_between(source.times, base, above, color=colour, alpha=0.6, linewidth=0)
            axes.plot(source.times, above, color=colour, linewidth=0.8, label=series.name)
            base = above
    else:
        for number, series in enumerate(drawn):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(source.times, series.values, color=colour, linewidth=1, label=series.name)
    if custom.get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        highest = max((np.nanmax(series.values) for series in drawn), default=0.0)
        if stacked:
            highest = float(base.max())
        axes.set_ylim(0, defaults.get("max") or (highest or 1.0) * 1.08)
        size = 1024 ** int(math.log(max(highest, 1.0), 1024)) if unit == "bytes" else 1
        axes.set_yticks(_ticks(axes.get_ylim()[1] / size) * size)
    for step in defaults.get("thresholds", {}).get("steps", ()):
        if step["value"] is not None and axes.get_ylim()[1] > step["value"]:
            axes.axhline(step["value"], color=COLOURS[4], linewidth=0.8, linestyle="--")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
    _time_axis(axes, source)
    axes.grid(color=FAINT, linewidth=0.5)
    if drawn:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.1, -0.1),
            ncols=max(1, panel["gridPos"]["w"] * 18 // (6 + max(len(each.name) for each in drawn))),
            fontsize=5.7,
            labelcolor=INK,
            frameon=False,
            handlelength=1,
            columnspacing=1,
        )


def _number(axes: Axes, panel: dict[str, Any], found: list[Series], source: Source) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    axes.set_axis_off()
    for series in found[:1]:
        known = series.values[~np.isnan(series.values)]
        if not len(known):
            continue
        colour = COLOURS[0]
        for step in defaults.get("thresholds", {}).get("steps", ()):
            if step["value"] is not None and known[-1] >= step["value"]:
                colour = {"orange": COLOURS[3], "red": COLOURS[4]}[step["color"]]
        axes.plot(source.times, series.values, color=colour, linewidth=1)
        axes.fill_between(source.times, 0, series.values, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlim(source.times[0], source.times[-1])
        axes.set_ylim(0, (np.nanmax(known) or 1) * 2.2)
        text = shown(float(known[-1]), defaults.get("unit", "short"))
        axes.text(0.5, 0.62, text, transform=axes.transAxes, color=colour, size=18, ha="center")


def _heat(axes: Axes, panel: dict[str, Any], found: list[Series], source: Source) -> None:
    """Each bucket less the one before, since the buckets of Prometheus are cumulative."""
    ordered = sorted(found, key=lambda series: float(series.labels["le"]))
    if not ordered:
        return
    counts = np.diff(np.nan_to_num([series.values for series in ordered]), axis=0, prepend=0).clip(
        min=0
    )
    filled = np.flatnonzero(counts.sum(axis=1))
    lowest, highest = (filled[0], filled[-1] + 1) if len(filled) else (0, len(ordered))
    cells = np.where(counts > 0, counts, np.nan)[lowest:highest]
    axes.pcolormesh(
        source.times, np.arange(highest - lowest), cells, cmap="Oranges_r", shading="nearest"
    )
    unit = panel["options"]["yAxis"].get("unit", "short")
    names = [
        shown(float(series.labels["le"]), unit) if series.labels["le"] != "+Inf" else "∞"
        for series in ordered[lowest:highest]
    ]
    axes.set_yticks(np.arange(highest - lowest) + 0.5, names)
    _time_axis(axes, source)


def _table(axes: Axes, panel: dict[str, Any], found: list[Series], source: Source) -> None:
    axes.set_axis_off()
    order = panel["transformations"][0]["options"]["indexByName"]
    columns = [name for name in sorted(order, key=order.__getitem__) if name != "instance"]
    rows = [
        [series.labels.get(name, "") for name in columns]
        for series in found
        if not np.isnan(series.values[-1])
    ]
    for line, row in enumerate([columns, *sorted(rows)]):
        for place, text in enumerate(row):
            axes.text(
                (0.0, 0.55, 0.75)[place],
                1 - line * 0.11,
                text,
                transform=axes.transAxes,
                color=INK,
                size=7.5,
                weight="bold" if line == 0 else "normal",
            )


_KINDS = {"timeseries": _lines, "stat": _number, "heatmap": _heat, "table": _table}


def shown(value: float, unit: str) -> str:
    """A number as Grafana would write it, in the units that the dashboards use."""
    match unit:
        case "s":
            for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
                if abs(value) * factor >= 1:
                    return f"{value * factor:.3g} {name}"
            return "0 s"
        case "percentunit":
            return f"{value * 100:.3g} %"
        case "bytes":
            for power, name in enumerate(("B", "KiB", "MiB")):
                if abs(value) < 1024 ** (power + 1):
                    return f"{value / 1024**power:.3g} {name}"
            return f"{value / 1024**3:.3g} GiB"
        case "sci":
            return f"{value:.2e}"
        case "reqps":
            return f"{_short(value)} req/s"
        case _:
            return _short(value)


def _ticks(highest: float) -> Floats:
    ticks = np.asarray(MaxNLocator(5).tick_values(0, highest), np.float64)
    return ticks[ticks <= highest]


def _short(value: float) -> str:
    return f"{value / 1000:.3g} K" if abs(value) >= 1000 else f"{value:.3g}"


def _time_axis(axes: Axes, source: Source) -> None:
    axes.set_xlim(source.times[0], source.times[-1])
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{int(value) // 60}:{int(value) % 60:02}")
    )
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 1.5, 3, 6]))


def save(figure: Figure, path: Path) -> None:
    """As PNG with a palette, which takes a third of the bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100, facecolor=figure.get_facecolor())
    Image.open(drawn).convert("RGB").quantize(96).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dashboard", choices=["overview", "model", "generation", "training"])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--seconds", type=float, default=3600, help="up to now")
    parser.add_argument("--rate-interval", default="1m", help="four scrapes, or more")
    parser.add_argument("--model", default=ALL)
    chosen = parser.parse_args()
    end = time.time()
    source = Source(
        chosen.prometheus,
        start=end - chosen.seconds,
        end=end,
        step=chosen.seconds / 240,
        rate_interval=chosen.rate_interval,
        variables={"instance": ALL, "version": ALL, "run": ALL, "model": chosen.model},
    )
    save(draw(load(chosen.dashboard), source), chosen.picture)


if __name__ == "__main__":
    main()
