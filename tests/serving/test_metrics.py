"""What Prometheus reads of a server under a load that is known."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from serving.calls import Front
from serving.observability.metrics import Metrics
from serving.observability.spread import FINE_SECONDS, SECONDS, Spread
from serving.observability.totals import Outcome
from serving.types import Stamps
from tests.support import RunningServer, await_true, call, metric, serving, write_fake, write_model

NARROW = "dynamic_batching { default_queue_policy { max_queue_size: 2 } }"
COLLECTS = "dynamic_batching { preferred_batch_size: 2 max_queue_delay_microseconds: 5000000 }"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    write_model(repository, "double", operation="Add")
    write_fake(repository, "narrow", delay_ms=800, max_batch_size=1, extra=NARROW)
    ragged = write_fake(repository, "ragged", dims="[-1]", extra=COLLECTS) / "config.pbtxt"
    ragged.write_text(ragged.read_text().replace("[-1]", "[-1] allow_ragged_batch: true", 1))
    write_model(repository, "broken", datatype="INT8", dims="[5]")
    with serving(repository, "--exit-on-error", "false") as running:
        yield running


def infer(server: RunningServer, model: str, length: int = 4, **document: Any) -> int:
    tensor = {"name": "x", "shape": [1, length], "datatype": "FP32", "data": [0.5] * length}
    body = json.dumps({"inputs": [tensor], **document}).encode()
    return call(server.http_port, "POST", f"/v2/models/{model}/infer", body)[0]


def infer_grpc(server: RunningServer, model: str) -> None:
    tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.infer(model, [tensor])


def series(server: RunningServer) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
    _, text = call(server.metrics_port, "GET", "/metrics", headers=headers)
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(text.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


def is_counted(server: RunningServer, name: str, count: int, labels: dict[str, str]) -> bool:
    return metric(server, name, **labels) == count


def test_every_stage_of_every_front(server: RunningServer) -> None:
    for _ in range(3):
        assert infer(server, "double") == 200
    for _ in range(2):
        infer_grpc(server, "double")
    for front, count in (("v2_http", 3), ("v2_grpc", 2)):
        labels = {"model": "double", "version": "1", "front": front}
        assert metric(server, "slipway_requests_total", **labels, outcome="answered") == count
        for stage in ("parse", "queue", "gather", "compute", "scatter", "send"):
            name = "slipway_stage_duration_seconds"
            # gRPC says that an answer has left after its caller has it.
            await_true(
                partial(is_counted, server, f"{name}_count", count, labels | {"stage": stage})
            )
            assert 0 < metric(server, f"{name}_sum", **labels, stage=stage) < count
    for name in ("request", "queue", "compute"):
        assert metric(server, f"slipway_{name}_duration_seconds_count", model="double") == 5
    stages = [
        metric(server, "slipway_stage_duration_seconds_sum", model="double", stage=stage)
        for stage in ("parse", "queue", "gather", "compute", "scatter")
    ]
    whole = metric(server, "slipway_request_duration_seconds_sum", model="double")
    assert sum(stages) == pytest.approx(whole)


def test_refusals_have_their_reasons(server: RunningServer) -> None:
    """One runs, two wait, and the three who come then are refused."""
    pending = "nv_inference_pending_request_count"
    with ThreadPoolExecutor(3) as pool:
        begun = [pool.submit(infer, server, "narrow")]
        await_true(lambda: metric(server, "slipway_in_flight_requests") == 1)
        await_true(lambda: metric(server, pending) == 0)
        begun += [pool.submit(infer, server, "narrow") for _ in range(2)]
        await_true(lambda: metric(server, pending) == 2)
        assert [infer(server, "narrow") for _ in range(3)] == [503, 503, 503]
        assert [each.result() for each in begun] == [200, 200, 200]
    assert infer(server, "narrow", outputs=[{"name": "z"}]) == 400
    assert infer(server, "narrow", parameters={"priority": "first"}) == 400
    tensor = {"name": "x", "shape": [9, 4], "datatype": "FP32", "data": [0] * 36}
    assert infer(server, "narrow", inputs=[tensor]) == 400
    for reason, count in (("queue_full", 3), ("invalid", 3)):
        assert metric(server, "slipway_refusals_total", model="narrow", reason=reason) == count
    assert metric(server, "slipway_queue_capacity", model="narrow") == 2
    assert ("slipway_queue_capacity", (("model", "double"), ("version", "1"))) not in series(server)
    assert metric(server, "slipway_in_flight_requests") == 0


def test_padding_is_counted(server: RunningServer) -> None:
    with ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(infer, server, "ragged", length) for length in (3, 10)]
        assert [each.result() for each in begun] == [200, 200]
    assert metric(server, "slipway_padding_total", model="ragged", kind="real") == 13
    assert metric(server, "slipway_padding_total", model="ragged", kind="padding") == 7
    assert metric(server, "slipway_padding_total", model="double") == 0


def test_the_repository_s_models_have_their_states(server: RunningServer) -> None:
    def state(model: str, version: str) -> set[str]:
        names = ("READY", "LOADING", "UNLOADING", "UNAVAILABLE")
        labels = {"model": model, "version": version}
        return {
            name for name in names if metric(server, "slipway_model_state", **labels, state=name)
        }

    assert state("double", "1") == {"READY"}
    assert state("broken", "1") == {"UNAVAILABLE"}
    name = "slipway_model_loads_total"
    assert metric(server, name, model="double", result="success") == 1
    assert metric(server, name, model="double", result="failure") == 0
    assert metric(server, name, model="broken", result="failure") == 1


def test_the_event_loop_is_looked_at(server: RunningServer) -> None:
    name = "slipway_event_loop_lag_seconds_count"
    before = metric(server, name)
    await_true(lambda: metric(server, name) >= before + 2)
    assert metric(server, "slipway_event_loop_lag_seconds_bucket", le="5.0") > 0


def test_names_that_callers_invent_make_no_series(server: RunningServer) -> None:
    infer(server, "double")
    infer(server, "double", inputs=[])
    before = series(server)
    unresolved = metric(server, "slipway_unresolved_requests_total")
    with closing(http.client.HTTPConnection("127.0.0.1", server.http_port)) as connection:
        for number in range(1000):
            path = (
                f"/v2/models/invented-{number}/infer",
                f"/v2/models/double/versions/{number + 2}/infer",
                f"/models/invented-{number}",
                f"/v2/models/double/infer?x={number}",
                f"/v1/invented/{number}",
            )[number % 5]
            headers = {
                f"x-invented-{number}": "1",
                "x-request-id": f"id {number}",
                "traceparent": f"00-{number:032x}-{number:016x}-01",
                "user-agent": f"invented/{number}",
            }
            body = json.dumps({"id": f"r{number}", "inputs": [], f"key-{number}": number})
            connection.request(f"POST{number}" if number % 7 == 0 else "POST", path, body, headers)
            connection.getresponse().read()
            if number % 7 == 0:
                connection.close()  # a method that nobody knows is no HTTP
    assert series(server) == before
    assert metric(server, "slipway_unresolved_requests_total") > unresolved + 100


def test_a_server_without_metrics(tmp_path: Path) -> None:
    write_model(tmp_path, "double", operation="Add")
    with serving(tmp_path, "--allow-metrics", "false") as here:
        assert not here.metrics_port
        assert infer(here, "double") == 200
        assert call(here.http_port, "GET", "/metrics")[0] == 404
        _, text = call(here.http_port, "GET", "/v2/models/double/stats")
        [stats] = json.loads(text)["model_stats"]
        assert stats["inference_stats"]["success"]["count"] == 1
        assert stats["inference_stats"]["queue"]["ns"] > 0


def test_exemplars_lead_from_a_bucket_to_a_trace() -> None:
    metrics = Metrics()
    totals = metrics.model("m", "1")
    stamps = Stamps(received=1, queued=1.5, batched=2, started=2, computed=4, answered=4, sent=4.25)
    totals.ended(Outcome.ANSWERED, stamps, Front.V2_HTTP)
    totals.sent(stamps, Front.V2_HTTP, "5" * 32)
    shown = {
        (sample.name, sample.labels.get("stage"), sample.labels["le"]): sample.exemplar
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.exemplar
    }
    stage = "slipway_stage_duration_seconds_bucket"
    assert shown.keys() == {
        (stage, "parse", "0.5"),
        (stage, "queue", "0.5"),
        (stage, "compute", "2.5"),
        (stage, "gather", "5e-05"),
        (stage, "scatter", "5e-05"),
        (stage, "send", "0.25"),
        ("slipway_request_duration_seconds_bucket", None, "5.0"),
        ("slipway_queue_duration_seconds_bucket", None, "0.5"),
        ("slipway_compute_duration_seconds_bucket", None, "2.5"),
    }
    assert shown[stage, "send", "0.25"].labels == {"trace_id": "5" * 32}
    assert shown[stage, "send", "0.25"].value == 0.25


def test_fine_buckets_make_coarse_ones() -> None:
    values = [0.00003, 0.0004, 0.0005, 0.7, 40, 30]
    fine, coarse = Spread(FINE_SECONDS), Spread(SECONDS)
    for value in values:
        fine.add(value)
        coarse.add(value)
    fine.exemplify(0.00003, "a")
    fine.exemplify(0.0004, "b")
    whole = Spread.of(SECONDS, [fine, fine])
    assert [count for _, count, _ in whole.cumulative()] == [
        2 * count for _, count, _ in coarse.cumulative()
    ]
    assert whole.sum == 2 * coarse.sum
    [first, *_] = [exemplar for *_, exemplar in whole.cumulative()]
    assert first is not None
    assert first.trace_id == "b"
