"""What was measured: a table, a plot of the trade-off, and the numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from serving.tuning.search import Final, rank
from serving.tuning.setting import Setting
from serving.tuning.trial import Point, Trial

RESULTS_FILE = "results.json"
PLOT_FILE = "trade-off.png"
_COLUMNS = ("instances", "threads", "batches", "delay µs")


def ordered(
    trials: Sequence[Trial], finals: Sequence[Final], today: Setting, bound_ms: float
) -> list[Trial]:
    """Today's setting, then the others, the best first; what was measured again by its medians."""
    medians = {final.median.setting: final.median for final in finals}
    latest = [medians.get(trial.setting, trial) for trial in trials]

    def place(trial: Trial) -> tuple[bool, bool, bool, float]:
        within, score = rank(trial, bound_ms)
        return trial.setting != today, trial.setting not in medians, not within, -score

    return sorted(latest, key=place)


def table(
    trials: Sequence[Trial], finals: Sequence[Final], today: Setting, chosen: Setting | None
) -> str:
    """A row for each trial, in their order; what was not measured again comes below a line."""
    again = {final.median.setting for final in finals}
    heads = [*_COLUMNS]
    for point in trials[0].points:
        heads += [f"{point.concurrency}: rows/s", "p50 ms", "p99 ms"]
    rows: list[list[str]] = []
    marks = []
    for trial in trials:
        setting = trial.setting
        delay = "" if setting.batches is None else str(setting.delay_us)
        row = [str(setting.instances), setting.thread_text, setting.batch_text, delay]
        for point in trial.points:
            row += [_number(point.rows_per_s), _number(point.p50_ms), _number(point.p99_ms)]
        rows.append(row)
        notes = ["today"] * (setting == today) + ["chosen"] * (setting == chosen)
        marks.append(", ".join(notes) or ("" if setting in again else "measured once"))
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (heads, *rows)
    ]
    return "\n".join(
        f"{line}  {mark}".rstrip() for line, mark in zip(lines, ["", *marks], strict=True)
    )


def write_results(
    path: Path,
    trials: Sequence[Trial],
    finals: Sequence[Final],
    today: Setting,
    chosen: Setting | None,
    **circumstances: Any,
) -> None:
    """Every number, as JSON; one that is not finite is null."""
    results = {
        **circumstances,
        "today": asdict(today),
        "chosen": None if chosen is None else asdict(chosen),
        "trials": [_plain(trial) for trial in trials],
        "rounds": [[_plain(trial) for trial in final.rounds] for final in finals],
    }
    path.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")


def can_plot() -> bool:
    return find_spec("matplotlib") is not None


def plot(
    path: Path,
    title: str,
    trials: Sequence[Trial],
    finals: Sequence[Final],
    today: Setting,
    chosen: Setting | None,
    bound_ms: float,
) -> None:
    """Throughput over p99 at the largest concurrency within the bound, one point for a setting.

    Open ones were measured once, shortly.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    points = {trial.setting: _shown(trial, bound_ms) for trial in trials}
    points = {setting: point for setting, point in points.items() if isfinite(point.p99_ms)}
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    front = pareto(list(points.values()))
    axes.step(
        [point.p99_ms for point in front],
        [point.rows_per_s for point in front],
        where="post",
        color="#4a90c8",
        lw=1.2,
        marker="D",
        ms=8,
        mfc="none",
        label="Pareto front",
    )
    again = {final.median.setting for final in finals}
    for is_final, face, label in ((True, "#1c5d99", "median of 3"), (False, "white", "one, short")):
        some = [point for setting, point in points.items() if (setting in again) == is_final]
        axes.scatter(
            [point.p99_ms for point in some],
            [point.rows_per_s for point in some],
            s=24,
            facecolors=face,
            edgecolors="#1c5d99",
            zorder=3,
            label=f"a setting, {label}",
        )
    for setting, label, colour in ((today, "today", "#2e7d4f"), (chosen, "chosen", "#d9730d")):
        if setting in points:
            at = points[setting]
            size = 130 if label == "today" else 60
            axes.scatter(
                [at.p99_ms],
                [at.rows_per_s],
                s=size,
                facecolors="none",
                edgecolors=colour,
                linewidths=2,
                zorder=4,
                label=f"{label}: {setting}",
            )
    axes.axvline(bound_ms, color="#c0392b", lw=1, ls="--", label=f"bound, {bound_ms:g} ms")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("p99, ms")
    axes.set_ylabel("rows/s")
    axes.set_title(title, fontsize=10)
    axes.grid(color="#e4e8ec")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=1)
    figure.savefig(path, dpi=120)


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in p99 without being slower, by rising p99."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.p99_ms, -each.rows_per_s)):
        if not front or point.rows_per_s > front[-1].rows_per_s:
            front.append(point)
    return front


def _shown(trial: Trial, bound_ms: float) -> Point:
    return trial.best_within(bound_ms) or trial.fastest


def _number(value: float) -> str:
    if not isfinite(value):
        return "refused"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plain(trial: Trial) -> dict[str, Any]:
    points = [
        {name: value if isfinite(value) else None for name, value in asdict(point).items()}
        for point in trial.points
    ]
    return {"setting": asdict(trial.setting), "points": points}
