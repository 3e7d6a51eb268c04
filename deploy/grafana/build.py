"""Write the dashboards that Grafana loads: `python -m deploy.grafana.build`."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import generation, model, overview, training

DASHBOARDS = Path(__file__).parent / "dashboards"


def dashboards() -> dict[str, str]:
    """Name -> the JSON of the dashboard."""
    found = {}
    for module in (overview, model, generation, training):
        built = module.build().build()
        for place, panel in enumerate(built.panels or (), start=1):
            # Links to panels need numbers, which Grafana would choose anew.
            panel.id_val = place
        text = json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True)
        found[module.__name__.rpartition(".")[2]] = f"{text}\n"
    return found


def main() -> None:
    DASHBOARDS.mkdir(exist_ok=True)
    for name, text in dashboards().items():
        (DASHBOARDS / f"{name}.json").write_text(text)


if __name__ == "__main__":
    main()
