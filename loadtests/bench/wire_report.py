"""What wire_speed.py keeps of each measurement, its tables and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report import table
from wire_contenders import CONTENDERS, SERVERS
from wire_load import Loaded
from wire_networks import NETWORKS, Rate

_SERVERS = list(dict.fromkeys(contender.server for contender in CONTENDERS.values()))
"""Each with a colour of its own."""
_MARKERS = {"v2-json": "o", "lists": "o", "v2-binary": "s", "raw": "s", "v2-grpc": "^"}


@dataclass
class Measured:
    """Of one contender and number of connections: an entry for each round."""

    requests_per_s: list[float] = field(default_factory=list)
    p50_s: list[float] = field(default_factory=list)
    p99_s: list[float] = field(default_factory=list)
    server_cores: list[float] = field(default_factory=list)
    load_cores: list[float] = field(default_factory=list)
    failed: int = 0

    def add(self, loaded: Loaded) -> None:
        self.requests_per_s.append(loaded.requests_per_s)
        self.p50_s.append(loaded.p50_s)
        self.p99_s.append(loaded.p99_s)
        self.server_cores.append(loaded.server_cores)
        self.load_cores.append(loaded.load_cores)
        self.failed += loaded.failed


@dataclass
class Started:
    """Of one server: an entry for each round."""

    cold_start_s: list[float] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)
    """Of all its processes, after all measurements."""

    def add(self, cold_start_s: float, rss_bytes: int) -> None:
        self.cold_start_s.append(cold_start_s)
        self.rss_bytes.append(rss_bytes)


@dataclass
class OfNetwork:
    tried: dict[int, Rate]
    """The bare loop by batch size, before the rounds."""
    measured: dict[str, dict[int, Measured]]
    """By contender and connections."""
    floor: list[Rate] = field(default_factory=list)
    """Its best batch size, at each round."""
    started: dict[str, Started] = field(default_factory=dict)

    @property
    def best(self) -> int:
        return max(self.tried, key=lambda batch: self.tried[batch].rows_per_s)

    @property
    def bare(self) -> float:
        return median(rate.rows_per_s for rate in self.floor)


@dataclass
class Results:
    others_cpu: list[float] = field(default_factory=list)
    """The share of the CPU that others took while no server ran, at each round."""
    networks: dict[str, OfNetwork] = field(default_factory=dict)

    def begin(self, network: str, tried: dict[int, Rate], contenders: Sequence[str]) -> None:
        self.networks[network] = OfNetwork(tried, {name: {} for name in contenders})


def tables(results: Results) -> str:
    parts = []
    for name, found in results.networks.items():
        parts.append(f"`{name}`: {NETWORKS[name].about}.")
        parts += [_tried(found), _summary(found), _measured(found), _started(found)]
    return "\n\n".join(parts)


def _tried(found: OfNetwork) -> str:
    rates = [f"{rate.rows_per_s:,.0f}" for rate in found.tried.values()]
    return table(["bare loop, batches of", *map(str, found.tried)], [["rows/s", *rates]])


def _summary(found: OfNetwork) -> str:
    """A line for each contender, which tells most of the most connections."""
    asked = sorted({each for rates in found.measured.values() for each in rates})
    fewest, most = asked[0], asked[-1]
    rows = []
    for name, by_connections in found.measured.items():
        full = by_connections[most]
        rows.append(
            [
                CONTENDERS[name].label,
                *(f"{median(by_connections[each].requests_per_s):,.0f}" for each in asked),
                f"{median(full.requests_per_s) / found.bare:.3f}",
                _ratio(found, name, most),
                f"{1000 * median(by_connections[fewest].p50_s):,.2f}",
                f"{1000 * median(full.p99_s):,.2f}",
                f"{median(full.server_cores):.2f}",
                f"{median(full.load_cores):.2f}",
            ]
        )
    header = [
        "requests/s at connections",
        *map(str, asked),
        f"of the bare loop, at {most}",
        f"Slipway is × as fast, at {most}",
        f"p50 ms at {fewest}",
        f"p99 ms at {most}",
        f"server's cores at {most}",
        "load's cores",
    ]
    return table(header, rows)


def _measured(found: OfNetwork) -> str:
    cores = median(rate.cores for rate in found.floor)
    label = f"bare loop, batches of {found.best}"
    rows = [[label, "", f"{found.bare:,.0f}", "", "1.000", "", "", "", f"{cores:.2f}", "", ""]]
    for name, by_connections in found.measured.items():
        for connections, each in by_connections.items():
            rate = median(each.requests_per_s)
            rows.append(
                [
                    CONTENDERS[name].label,
                    str(connections),
                    f"{rate:,.0f}",
                    f"{min(each.requests_per_s):,.0f}–{max(each.requests_per_s):,.0f}",
                    f"{rate / found.bare:.3f}",
                    _ratio(found, name, connections),
                    f"{1000 * median(each.p50_s):,.2f}",
                    f"{1000 * median(each.p99_s):,.2f}",
                    f"{median(each.server_cores):.2f}",
                    f"{median(each.load_cores):.2f}",
                    str(each.failed),
                ]
            )
    header = [
        "contender",
        "connections",
        "requests/s",
        "of the rounds",
        "of the bare loop",
        "Slipway is × as fast",
        "p50 ms",
        "p99 ms",
        "server's cores",
        "load's cores",
        "failed",
    ]
    return table(header, rows)


def _ratio(found: OfNetwork, name: str, connections: int) -> str:
    ours = found.measured.get(CONTENDERS[name].beside, {}).get(connections)
    rate = median(found.measured[name][connections].requests_per_s)
    if ours is None or not rate:
        return "–"
    return f"{median(ours.requests_per_s) / rate:.2f}"


def _started(found: OfNetwork) -> str:
    rows = [
        [
            SERVERS[server],
            f"{median(each.cold_start_s):.2f}",
            f"{min(each.cold_start_s):.2f}–{max(each.cold_start_s):.2f}",
            f"{median(each.rss_bytes) / 2**20:,.0f}",
        ]
        for server, each in found.started.items()
    ]
    return table(["server", "cold start, s", "of the rounds", "RSS MiB"], rows)


def plot(path: Path, results: Results) -> None:
    """Write a PNG: requests in a second by connections, a panel for each network."""
    figure = Figure(figsize=(5.5 * len(results.networks) + 2.5, 4.4), dpi=75, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(results.networks), squeeze=False)[0]
    for axes, (network, found) in zip(panels, results.networks.items(), strict=True):
        for name, by_connections in found.measured.items():
            contender = CONTENDERS[name]
            axes.loglog(
                list(by_connections),
                [median(each.requests_per_s) for each in by_connections.values()],
                color=f"C{_SERVERS.index(contender.server)}",
                marker=_MARKERS[contender.wire],
                markersize=5,
                label=contender.label,
            )
        if network != "small":
            # Of the small network it is so far above that the others would be a line.
            axes.axhline(found.bare, color="k", linestyle="--", linewidth=1, label="bare loop")
        asked = sorted({each for rates in found.measured.values() for each in rates})
        axes.set_xticks(asked, [str(each) for each in asked])
        axes.minorticks_off()
        axes.set_title(f"{network}: requests/s by connections", fontsize=10)
        axes.grid(alpha=0.3)
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    # Without the program's name the same numbers make the same bytes.
    figure.savefig(path, metadata={"Software": None})
