"""What was measured, as a table to read and a picture to show."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from contenders import CONTENDERS
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scenarios import Burst, Short, Throughput, percentile

OURS, OTHERS = "tab:blue", "tab:gray"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown, aligned."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def joined(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    return "\n".join(joined(line) for line in (header, rule, *rows))


def throughput_table(found: Mapping[str, Throughput], same: Mapping[str, float]) -> str:
    rows = []
    best = statistics.median(found["slipway"].tokens_per_s) if "slipway" in found else None
    for name, each in found.items():
        tokens = statistics.median(each.tokens_per_s)
        rows.append(
            [
                CONTENDERS[name].label,
                f"{tokens:,.0f}",
                f"{min(each.tokens_per_s):,.0f}–{max(each.tokens_per_s):,.0f}",
                "" if best is None or not tokens else f"{best / tokens:.2f}",
                f"{statistics.median(each.requests_per_s):,.1f}",
                f"{1000 * percentile(each.latencies_s, 50):,.0f}",
                f"{1000 * percentile(each.latencies_s, 99):,.0f}",
                f"{statistics.median(each.server_cores):.2f}",
                f"{statistics.median(each.cpu_s_per_1000_tokens):.3f}",
                f"{each.peak_rss_mb:,.0f}",
                f"{100 * statistics.median(each.load_cores):.0f} %",
                f"{100 * same[name]:.1f} %",
                str(each.failed),
            ]
        )
    header = [
        "contender",
        "tokens/s",
        "of the rounds",
        "Slipway is × as fast",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "cores used",
        "CPU s per 1,000 tokens",
        "peak RSS MB",
        "load generator's core",
        "same answers",
        "failed",
    ]
    return table(header, rows)


def short_table(found: Mapping[str, Short]) -> str:
    rows = []
    for name, each in found.items():
        alone, beside = percentile(each.alone_s, 99), percentile(each.beside_s, 99)
        rows.append(
            [
                CONTENDERS[name].label,
                *(f"{1000 * percentile(each.alone_s, q):,.1f}" for q in (50, 99)),
                *(f"{1000 * percentile(each.beside_s, q):,.1f}" for q in (50, 99)),
                f"{beside / alone:.2f}",
                f"{len(each.alone_s):,} / {len(each.beside_s):,}",
                f"{statistics.median(each.long_per_s):,.1f}",
            ]
        )
    header = [
        "contender",
        "alone p50 ms",
        "alone p99 ms",
        "beside long ones p50 ms",
        "beside p99 ms",
        "p99 ratio",
        "short requests",
        "long ones/s",
    ]
    return table(header, rows)


def burst_table(bursts: Sequence[Burst]) -> str:
    rows = [
        [
            burst.label,
            f"{burst.requests:,}",
            _counts(burst.statuses[turn]),
            _counts(burst.counted[turn]),
            f"{burst.seconds[turn]:.2f}",
            f"{burst.rss_before_mb[turn]:,.0f}",
            f"{burst.rss_peak_mb[turn]:,.0f}",
        ]
        for burst in bursts
        for turn in range(len(burst.seconds))
    ]
    header = [
        "queue",
        "requests at once",
        "clients saw",
        "/metrics counted",
        "seconds",
        "RSS MB before",
        "RSS MB at most",
    ]
    return table(header, rows)


def plot(path: Path, found: Mapping[str, Throughput], shorts: Mapping[str, Short]) -> None:
    """Write a PNG of 1,200 pixels' width."""
    panels = 2 * bool(found) + bool(shorts)
    figure = Figure(figsize=(12, 3.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = iter(figure.subplots(1, panels, squeeze=False)[0])
    if found:
        panel = next(axes)
        _bars(
            panel,
            {name: statistics.median(each.tokens_per_s) for name, each in found.items()},
            "tokens/s (dots: rounds)",
        )
        for place, each in enumerate(found.values()):
            panel.plot(each.tokens_per_s, [place] * len(each.tokens_per_s), "k.", markersize=4)
        panel = next(axes)
        p99 = {name: 1000 * percentile(each.latencies_s, 99) for name, each in found.items()}
        _bars(panel, p99, "latency, ms: p99 (line: p50)")
        for place, each in enumerate(found.values()):
            p50 = 1000 * percentile(each.latencies_s, 50)
            panel.plot([p50, p50], [place - 0.4, place + 0.4], "k")
        panel.tick_params(labelleft=False)
    if shorts:
        panel = next(axes)
        _bars(
            panel,
            {name: each.ratio for name, each in shorts.items()},
            "short requests: p99 beside long ones / alone",
        )
        panel.axvline(2, color="k", linestyle="--", linewidth=0.8)
        panel.tick_params(labelleft=not found)
    # Without the program's name the same numbers make the same bytes.
    figure.savefig(path, metadata={"Software": None})


def _bars(axes: Axes, values: Mapping[str, float], title: str) -> None:
    labels = [CONTENDERS[name].label for name in values]
    colours = [OURS if name.startswith("slipway") else OTHERS for name in values]
    axes.barh(range(len(values)), list(values.values()), color=colours)
    axes.set_yticks(range(len(values)), labels)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} × {name}" for name, number in sorted(counts.items()))
