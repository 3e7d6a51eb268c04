"""The queries of a dashboard as Prometheus gets them, for whoever asks them without Grafana."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).parent / "dashboards"


@dataclass(frozen=True)
class Query:
    panel: str
    expression: str
    legend: str

    def filled(self, variables: Mapping[str, str], rate_interval: str) -> str:
        """What Grafana would send. Raises `KeyError` for a variable that has no value."""
        values = {**variables, "__rate_interval": rate_interval}
        return re.sub(r"\$(\w+)", lambda found: values[found[1]], self.expression)


def load(name: str) -> dict[str, Any]:
    """A dashboard as it is committed."""
    found = json.loads((DASHBOARDS / f"{name}.json").read_text())
    assert isinstance(found, dict)
    return found


def queries(panel: dict[str, Any]) -> Iterator[Query]:
    for target in panel.get("targets", ()):
        yield Query(panel["title"], target["expr"], target.get("legendFormat", ""))


def all_queries(dashboard: dict[str, Any]) -> Iterator[Query]:
    """Those of panels, variables and annotations."""
    for panel in dashboard["panels"]:
        yield from queries(panel)
    for variable in dashboard["templating"]["list"]:
        metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
        yield Query(f"variable {label}", f"count by ({label}) ({metric})", f"{{{{{label}}}}}")
    for annotation in dashboard["annotations"]["list"]:
        yield Query(annotation["name"], annotation["expr"], "")
