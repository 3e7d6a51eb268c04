"""Every query of the dashboards and rules, asked of a real Prometheus under a known load."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image

from deploy.grafana import queries
from deploy.grafana.build import dashboards
from deploy.grafana.render import Source, draw, save
from tests.deploy.load import TOKENS, Counts, send, write_repository
from tests.deploy.prometheus import DEPLOYED, Prometheus, program, prometheus
from tests.serving.collector import Collector, collecting
from tests.support import RunningServer, await_true, call, free_port, serving
from tests.training.endless import endless_training

# What Grafana puts in where nothing is chosen; the model dashboard needs one.
VARIABLES = {"instance": ".*", "version": ".*", "model": "ragged", "run": ".*"}
MODEL_OF = {"generation": ".*"}

# Panels whose lines may lie at zero under this load.
MAY_BE_ZERO = {"Waiting", "Queue", "In flight", "Made room for others", "Slots", "Slots taken"}
"""Gauges of a moment, and what does not happen here."""


@dataclass(frozen=True)
class Scene:
    prometheus: Prometheus
    server: RunningServer
    repository: Path
    collector: Collector
    sent: Counts


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A server that has had its load, a training that goes on, and Prometheus, which saw it all."""
    program("prometheus")
    directory = tmp_path_factory.mktemp("scene")
    repository = directory / "repository"
    write_repository(repository)
    training_port = free_port()
    explicit = ("--model-control-mode", "explicit", "--load-model", "*")
    with (
        collecting() as collector,
        endless_training(directory / "endless", training_port),
        serving(repository, *explicit, *collector.options, "--trace-config", "rate=1") as server,
        prometheus(
            directory / "prometheus",
            {"slipway": server.metrics_port, "slipway-training": training_port},
        ) as asked,
    ):
        await_true(lambda: bool(asked.query("slipway_requests_total")))
        sent = send(server, 1.0)
        # What was counted for the first time has a rate from its second change on.
        await_true(lambda: bool(asked.query("slipway_first_event_seconds_count")))
        sent += send(server, 2.0)
        await_true(lambda: asked.value("sum(slipway_requests_total)") == sum(sent.values()))
        trained = "slipway_training_epoch >= 3 and rate(slipway_training_steps_total[1m]) > 0"
        await_true(lambda: bool(asked.query(trained)), within_s=180)
        yield Scene(asked, server, repository, collector, sent)


def test_requests_are_counted_exactly(scene: Scene) -> None:
    counted = {
        (labels["model"], labels["front"], labels["outcome"]): value
        for labels, value in scene.prometheus.query(
            "sum by (model, front, outcome) (slipway_requests_total) > 0"
        )
    }
    assert counted == scene.sent


def test_everything_else_is_counted_exactly(scene: Scene) -> None:
    answered = sum(count for (_, _, outcome), count in scene.sent.items() if outcome == "answered")
    assert {
        query: scene.prometheus.value(query)
        for query in (
            'up{job="slipway"}',
            "sum(slipway_request_duration_seconds_count)",
            'sum(slipway_request_duration_seconds_bucket{le="+Inf"})',
            'slipway_stage_duration_seconds_count{front="v2_grpc", stage="compute"} > 0',
            'sum(slipway_refusals_total{reason="queue_full"})',
            'sum(slipway_refusals_total{reason="invalid"})',
            'sum(slipway_refusals_total{reason="timeout"})',
            "slipway_unresolved_requests_total",
            'nv_cache_num_hits_per_model{model="ragged"}',
            'nv_cache_num_misses_per_model{model="ragged"}',
            'slipway_model_loads_total{model="ragged", result="success"}',
            'slipway_padding_total{kind="real"}',
            'slipway_padding_total{kind="padding"}',
            'slipway_tokens_total{model="translator", kind="made"}',
            'slipway_first_event_seconds_count{model="translator"}',
            'slipway_queue_capacity{model="narrow"}',
            'slipway_model_state{model="double", version="1", state="READY"}',
            "slipway_in_flight_requests",
        )
    } == {
        'up{job="slipway"}': 1,
        "sum(slipway_request_duration_seconds_count)": answered,
        'sum(slipway_request_duration_seconds_bucket{le="+Inf"})': answered,
        'slipway_stage_duration_seconds_count{front="v2_grpc", stage="compute"} > 0': 6,
        'sum(slipway_refusals_total{reason="queue_full"})': scene.sent[
            "narrow", "v2_http", "refused"
        ],
        'sum(slipway_refusals_total{reason="invalid"})': 4,
        'sum(slipway_refusals_total{reason="timeout"})': 2,
        "slipway_unresolved_requests_total": 2,
        'nv_cache_num_hits_per_model{model="ragged"}': 2,
        'nv_cache_num_misses_per_model{model="ragged"}': 4,
        'slipway_model_loads_total{model="ragged", result="success"}': 3,
        'slipway_padding_total{kind="real"}': 26,
        'slipway_padding_total{kind="padding"}': 14,
        'slipway_tokens_total{model="translator", kind="made"}': 6 * TOKENS,
        'slipway_first_event_seconds_count{model="translator"}': 4,
        'slipway_queue_capacity{model="narrow"}': 2,
        'slipway_model_state{model="double", version="1", state="READY"}': 1,
        "slipway_in_flight_requests": 0,
    }


@pytest.mark.parametrize("name", dashboards())
def test_every_query_of_a_dashboard_returns_data(scene: Scene, name: str) -> None:
    variables = VARIABLES | {"model": MODEL_OF.get(name, VARIABLES["model"])}
    asked = [
        (query, query.filled(variables, "1m"))
        for query in queries.all_queries(queries.load(name))
        # No alert fires yet; the test of a real one asks for it.
        if not query.expression.startswith("ALERTS")
    ]
    assert len(asked) > 10
    empty, zero = [], []
    for query, expression in asked:
        samples = scene.prometheus.query(expression)
        if not samples:
            empty.append((query.panel, expression))
        elif max(value for _, value in samples) <= 0 and query.panel not in MAY_BE_ZERO:
            zero.append((query.panel, expression))
        for label in re.findall(r"{{(\w+)}}", query.legend):
            assert all(label in labels for labels, _ in samples), (query.panel, label)
    assert not empty
    assert not zero


def test_exemplars_lead_to_traces(scene: Scene) -> None:
    for histogram in ("request_duration", "stage_duration"):
        exemplars = scene.prometheus.exemplars(f"slipway_{histogram}_seconds_bucket")
        traces = {labels["trace_id"] for labels in exemplars}
        assert traces
        await_true(functools.partial(_has_all, scene.collector, traces))


def _has_all(collector: Collector, traces: set[str]) -> bool:
    return traces <= {span.trace for span in collector.spans}


@pytest.mark.parametrize("name", dashboards())
def test_a_dashboard_is_drawn(scene: Scene, name: str, tmp_path: Path) -> None:
    end = time.time()
    variables = VARIABLES | {"model": MODEL_OF.get(name, VARIABLES["model"])}
    source = Source(scene.prometheus.url, end - 30, end, 1, "1m", variables)
    figure = draw(queries.load(name), source)
    panels = [panel for panel in queries.load(name)["panels"] if panel["type"] != "row"]
    assert len(figure.axes) == len(panels)
    for panel, axes in zip(panels, figure.axes, strict=True):
        assert axes.lines or axes.collections or axes.texts, panel["title"]
    save(figure, tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as picture:
        assert picture.width == 1500


def recorded() -> list[str]:
    return sorted({rule["record"] for rule in _rules("slo.yml") if "record" in rule})


def _rules(file: str) -> list[dict[str, str]]:
    content = yaml.safe_load((DEPLOYED / "rules" / file).read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("name", recorded())
def test_every_recording_rule_returns_data(scene: Scene, name: str) -> None:
    assert {labels["slo"] for labels, _ in scene.prometheus.query(name)} == {
        "availability",
        "latency",
    }


def test_burn_rates_are_those_of_the_load(scene: Scene) -> None:
    burn = {
        (labels["model"], labels["slo"]): value
        for labels, value in scene.prometheus.query("model_slo:slipway_burn_rate:5m")
    }
    assert burn["failing", "availability"] == pytest.approx(1000)
    assert burn["double", "availability"] == 0
    assert 0 < burn["narrow", "availability"] < 1000
    assert 0 <= burn["translator", "latency"] <= 100


@pytest.mark.parametrize(
    "rule", _rules("alerts.yml"), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}"
)
def test_every_alert_asks_for_what_there_is(scene: Scene, rule: dict[str, str]) -> None:
    """Each of its series exists, and with its thresholds at zero it would have something to say."""
    expression = rule["expr"]
    series = re.findall(r"\b(?:slipway_|nv_|model_slo:|up\b)[\w:]*(?:{[^}]*})?", expression)
    assert series
    for selector in series:
        assert scene.prometheus.query(selector), selector
    if "unless" not in expression:  # what is there cannot be missing; that alert fires below
        without_past = expression.replace("offset 15m", "")
        relaxed = re.sub(r"(?:==|>=|>) [\d.]+", ">= 0", without_past)
        assert scene.prometheus.query(relaxed), relaxed


def test_alerts_fire_for_real(scene: Scene) -> None:
    """A reload that fails, and a model that is not served any more."""
    failing = {("SlipwayErrorRatio", "failing"), ("SlipwayAvailabilityBurn", "failing")}
    await_true(lambda: failing <= scene.prometheus.firing())
    assert not scene.prometheus.firing() & {
        *(("SlipwayReloadFailed", "double"), ("SlipwayModelNotReady", "spare")),
        *(("SlipwayErrorRatio", "double"), ("SlipwayAvailabilityBurn", "double")),
        ("SlipwayTargetDown", ""),
    }
    (scene.repository / "double" / "2").mkdir()
    (scene.repository / "double" / "2" / "model.onnx").write_bytes(b"no graph")
    status, _ = call(scene.server.http_port, "POST", "/v2/repository/models/double/load")
    assert status == 400
    status, _ = call(scene.server.http_port, "POST", "/v2/repository/models/spare/unload")
    assert status == 200
    wanted = {("SlipwayReloadFailed", "double"), ("SlipwayModelNotReady", "spare")}
    await_true(lambda: wanted <= scene.prometheus.firing())
    # The old version serves on.
    assert ("SlipwayModelNotReady", "double") not in scene.prometheus.firing()
    for name in dashboards():
        (alerts,) = (
            query
            for query in queries.all_queries(queries.load(name))
            if query.expression.startswith("ALERTS")
        )
        assert len(scene.prometheus.query(alerts.expression)) >= 4


def test_rules_are_healthy(scene: Scene) -> None:
    broken = {
        rule["name"]: rule.get("lastError")
        for rule in scene.prometheus.rules()
        if rule["health"] != "ok"
    }
    assert not broken
