"""What deploy/ holds fits together, and fits the rest of the project."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from click.testing import CliRunner

from deploy.grafana.build import DASHBOARDS, dashboards
from serving.cli import main
from serving.observability.tracing import parse_trace_config
from serving.settings import Settings
from tests.deploy.prometheus import DEPLOYED, ROOT, program

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def alerts() -> list[dict[str, Any]]:
    content = yaml.safe_load((DEPLOYED / "rules" / "alerts.yml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "--lint-fatal", "rules/slo.yml", "rules/alerts.yml"],
        ["test", "rules", "rules_test.yml"],
    ],
    ids=" ".join,
)
def test_promtool(arguments: list[str]) -> None:
    command = [program("promtool"), *arguments]
    result = subprocess.run(command, cwd=DEPLOYED, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_fires_in_the_rule_tests_and_is_silent_when_all_is_well() -> None:
    healthy, *others = yaml.safe_load((DEPLOYED / "rules_test.yml").read_text())["tests"]
    names = {rule["alert"] for rule in alerts()}
    silent = [case for case in healthy["alert_rule_test"] if not case.get("exp_alerts")]
    assert {case["alertname"] for case in silent} == names
    fired = {
        (case["alertname"], alert["exp_labels"]["severity"])
        for test in others
        for case in test["alert_rule_test"]
        for alert in case.get("exp_alerts", ())
    }
    assert fired == {(rule["alert"], rule["labels"]["severity"]) for rule in alerts()}


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    part = OPERATIONS.split("\n## Alerts\n")[1].split("\n## ")[0]
    title, *sections = re.split(r"^### ", part, flags=re.MULTILINE)
    assert not title.strip()
    written = {section.split("\n")[0]: section for section in sections}
    assert set(written) == {rule["alert"] for rule in alerts()}
    for section in written.values():
        assert re.findall(r"^\*\*(\w+)\.\*\*", section, re.MULTILINE) == ["Means", "Look", "Do"]
    for rule in alerts():
        url = rule["annotations"]["runbook_url"]
        assert url == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_committed_dashboards_are_what_the_code_makes() -> None:
    committed = {path.stem: path.read_text() for path in DASHBOARDS.iterdir()}
    assert committed == dashboards(), "run make dashboards"


@pytest.mark.parametrize("name", dashboards())
def test_a_dashboard_is_whole(name: str) -> None:
    dashboard = json.loads(dashboards()[name])
    (source,) = _data_sources()
    used = set(re.findall(r'"uid": "([^"]+)"', json.dumps(dashboard)))
    assert used == {source["uid"], f"slipway-{name}"}
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    titles = [(panel["title"], panel["type"]) for panel in panels]
    assert len(set(titles)) == len(titles) >= 8
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["description"].endswith(".")
        assert panel["targets"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_links_between_dashboards_lead_somewhere() -> None:
    linked = set(re.findall(r"/d/([\w-]+)\?", "".join(dashboards().values())))
    assert linked
    assert linked <= {json.loads(text)["uid"] for text in dashboards().values()}


def test_what_compose_mounts_exists_and_is_read_only() -> None:
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source, _, rest = mount.partition(":")
            if source in COMPOSE["volumes"]:
                continue
            assert (DEPLOY / source).is_dir(), (name, source)
            assert rest.endswith(":ro"), (name, mount)
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    for pattern in config["rule_files"]:
        assert list(DEPLOYED.glob(pattern))
    (provider,) = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/dashboards/slipway.yaml").read_text()
    )["providers"]
    mounted = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    assert mounted["./grafana/dashboards"] == provider["options"]["path"]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (home.parent, home.stem) == (Path(provider["options"]["path"]), "overview")


def test_ports_agree_and_are_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items()}
    hosts = [port.split(":")[1] for ports in published.values() for port in ports]
    assert len(set(hosts)) == len(hosts)
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    own = [Settings.http_port, Settings.grpc_port, Settings.metrics_port]
    assert published["slipway"] == [f"127.0.0.1:{port}:{port}" for port in own]
    inside = {
        f"{name}:{port.rsplit(':')[-1]}" for name, ports in published.items() for port in ports
    }
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    targets = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]
    }
    assert targets["slipway"] == [f"slipway:{Settings.metrics_port}"]
    assert set(targets["slipway"] + targets["triton"]) <= inside
    (training,) = targets["slipway-training"]
    host, port = training.split(":")
    assert f"{host}:host-gateway" in SERVICES["prometheus"]["extra_hosts"]
    assert f"slipway train RECIPE --metrics-port {port}" in OPERATIONS
    (source,) = _data_sources()
    assert source["url"].removeprefix("http://") in inside
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_images_are_pinned_and_watched() -> None:
    for name, service in SERVICES.items():
        # Jaeger's image has no program to ask it with.
        assert name == "jaeger" or service["healthcheck"]["test"][0] == "CMD", name
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), name
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    assert profiles == {
        **{"slipway": None, "prometheus": None, "grafana": None},
        **{"triton": ["triton"], "jaeger": ["traces"]},
    }
    build = SERVICES["slipway"]["build"]
    assert (DEPLOY / build["context"] / "Dockerfile").exists()
    assert f"ARG VARIANT={build['args']['VARIANT']}" in (ROOT / "Dockerfile").read_text()


def test_compose_starts_slipway_as_it_can_be_started() -> None:
    for words in (SERVICES["slipway"]["command"].split(), ["health"]):
        result = CliRunner().invoke(main, [*words, "--help"])
        assert result.exit_code == 0, result.output
    assert "0.0.0.0" in SERVICES["slipway"]["command"]  # or the published ports lead nowhere
    loaded = re.findall(r"--load-model=(\S+)", SERVICES["triton"]["command"])
    assert all((ROOT / "model_repo" / name / "config.pbtxt").exists() for name in loaded)


def test_traces_go_to_where_grafana_looks_for_them() -> None:
    (told,) = re.findall(r'SLIPWAY_TRACE="([^"]+)"', (DEPLOY / "compose.yaml").read_text())
    settings = parse_trace_config(told.replace("#", "").split())
    assert settings.export is not None
    assert settings.anything_is_traced
    url = urlsplit(settings.export.url)
    ports = [port.split(":")[-1] for port in SERVICES["jaeger"]["ports"]]
    assert url.hostname == "jaeger"
    (source,) = _data_sources()
    (destination,) = source["jsonData"]["exemplarTraceIdDestinations"]
    assert destination["name"] == "trace_id"
    assert {str(url.port), str(urlsplit(destination["url"]).port)} == set(ports)


def _data_sources() -> list[dict[str, Any]]:
    content = (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    found = yaml.safe_load(content)["datasources"]
    assert isinstance(found, list)
    return found
