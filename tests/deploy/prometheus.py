"""A real Prometheus, for as long as a test asks it."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import await_true, free_port

ROOT = Path(__file__).parent.parent.parent
DEPLOYED = ROOT / "deploy" / "prometheus"

Labels = dict[str, str]


def program(name: str) -> str:
    """prometheus or promtool. Where there is none the test is skipped, or fails in CI."""
    own = ROOT / ".venv" / "opt" / "prometheus" / "usr" / "bin" / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is not None:
        return found
    missing = f"{name} is missing; scripts/prometheus gets it where there is apt"
    if os.environ.get("REQUIRE_PROMETHEUS"):
        pytest.fail(missing)
    pytest.skip(missing)


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expression: str) -> list[tuple[Labels, float]]:
        """The samples of an instant query that are numbers, NaN being none."""
        data = self._ask("query", {"query": expression})
        found = data["result"]
        if data["resultType"] == "scalar":
            found = [{"metric": {}, "value": found}]
        samples = [(each["metric"], float(each["value"][1])) for each in found]
        return [(labels, value) for labels, value in samples if not math.isnan(value)]

    def value(self, expression: str) -> float:
        """Of a query that has one sample."""
        ((_, value),) = self.query(expression)
        return value

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._ask("rules", {})["groups"] for rule in group["rules"]]

    def exemplars(self, selector: str) -> list[dict[str, str]]:
        """The labels of all that were scraped of these series."""
        last_minutes = {"start": f"{time.time() - 600}", "end": f"{time.time()}"}
        found = self._ask("query_exemplars", {"query": selector, **last_minutes})
        return [exemplar["labels"] for series in found for exemplar in series["exemplars"]]

    def firing(self) -> set[tuple[str, str]]:
        """Name and model of the alerts that fire, as Prometheus itself has written them down."""
        return {
            (labels["alertname"], labels.get("model", ""))
            for labels, _ in self.query('ALERTS{alertstate="firing"}')
        }

    def _ask(self, path: str, parameters: Mapping[str, str]) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as response:
            return json.load(response)["data"]


@contextmanager
def prometheus(directory: Path, targets: Mapping[str, int]) -> Iterator[Prometheus]:
    """With the configuration and the rules of deploy/, but once a second and on these ports.

    Only jobs that have a port are scraped, and an alert fires as soon as its condition is met.
    """
    url = f"127.0.0.1:{free_port()}"
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    config["scrape_configs"] = [
        jobs[name] | {"static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        for name, port in targets.items()
    ]
    rules = directory / "rules"
    rules.mkdir(parents=True)
    for pattern in config["rule_files"]:
        for path in DEPLOYED.glob(pattern):
            content = yaml.safe_load(path.read_text())
            for group in content["groups"]:
                for rule in group["rules"]:
                    rule.pop("for", None)
            (rules / path.name).write_text(yaml.safe_dump(content))
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={url}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            await_true(lambda: process.poll() is not None or _is_ready(url))
            assert process.poll() is None, (directory / "log").read_text()
            yield Prometheus(f"http://{url}")
        finally:
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{url}/-/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
