"""This run beside an earlier one: what has become better, what worse, what cannot be told."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loadreport.results import FORMAT

_FAILURES = 0.001
"""The share of requests by which failures may grow, for there may have been none."""

Verdict = Literal["better", "same", "worse", "within noise"]


class Incomparable(Exception):
    """An earlier report is of no use, and why, in one sentence."""


@dataclass(frozen=True)
class Row:
    name: str
    unit: str
    old: float
    new: float
    verdict: Verdict

    @property
    def change(self) -> float:
        """Relative to the earlier value."""
        return self.new / self.old - 1 if self.old else 0.0


def load_baseline(path: Path) -> dict[str, Any]:
    """Raises `Incomparable`."""
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise Incomparable(f"--baseline {path}: {error.strerror}") from None
    except ValueError as error:
        raise Incomparable(f"--baseline {path}: expected a report.json, got {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Incomparable(f"--baseline {path}: expected a report.json of format {FORMAT}")
    return document


def check(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise `Incomparable` if what was measured, or where or how, is not the same.

    `new` needs no results, only what is known beforehand.
    """
    try:
        pairs = {name: (old[name], new[name]) for name in ("model", "front")}
        pairs |= {name: (old["machine"][name], new["machine"][name]) for name in ("cpu", "cores")}
        pairs |= {
            name: (old["settings"][name], new["settings"][name])
            for name in ("clients", "p99_bound_ms")
        }
    except (KeyError, TypeError):
        raise Incomparable(f"--baseline {path}: expected a whole report.json") from None
    for name, (before, now) in pairs.items():
        if before != now:
            raise Incomparable(
                f"--baseline {path}: its {name} is {before!r}, expected {now!r} as in this run"
            )


def compare(
    old: Mapping[str, dict[str, Any]], new: Mapping[str, dict[str, Any]], tolerance: float
) -> list[Row]:
    """What the earlier run has measured. `tolerance` is relative: 0.1 is ten percent.

    A number that only the earlier run has, such as the knee of a server that has none any more, is
    worse. One that it has not has nothing to be compared with.
    """
    rows = []
    for name, before in old.items():
        now = new.get(name)
        if before["value"] is None:
            continue
        if now is None or not math.isfinite(now["value"]):
            rows.append(Row(name, before["unit"], before["value"], math.nan, "worse"))
        else:
            verdict = _verdict(before, now, tolerance)
            rows.append(Row(name, now["unit"], before["value"], now["value"], verdict))
    return rows


def _verdict(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float) -> Verdict:
    """A difference counts if it is beyond the tolerance, and beyond what rounds of one run differ.

    The latter is so if neither median is within the range of the other run's rounds.
    """
    before, now = old["value"], new["value"]
    if new["unit"] == "share":
        return "worse" if now > before * (1 + tolerance) + _FAILURES else "same"
    gain = now / before - 1 if new["more_is_better"] else 1 - now / before
    if abs(gain) <= tolerance:
        return "same"
    if _within(now, old) or _within(before, new):
        return "within noise"
    return "better" if gain > 0 else "worse"


def _within(value: float, rounds: Mapping[str, Any]) -> bool:
    return bool(rounds["least"] <= value <= rounds["most"])


def table(rows: list[Row]) -> str:
    """To read on a terminal."""
    header = ("", "unit", "earlier", "now", "change", "")
    lines = [header] + [
        (
            row.name,
            row.unit,
            f"{row.old:,.4g}",
            f"{row.new:,.4g}",
            f"{row.change:+.1%}",
            row.verdict,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    aligned = []
    for name, unit, *numbers, verdict in lines:
        cells = [name.ljust(widths[0]), unit.ljust(widths[1])]
        cells += [text.rjust(width) for text, width in zip(numbers, widths[2:5], strict=True)]
        aligned.append("  ".join([*cells, verdict]).rstrip())
    return "\n".join(aligned)
