"""Traces as a collector gets them: who is whose parent, what is linked, and what is left out."""

from __future__ import annotations

import asyncio
import http.client
import json
import queue
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from websockets.asyncio.client import connect

from serving.calls import GROUP, MOST_GROUPS, Call, Front, Trace, clean_id
from serving.errors import OperatorError
from serving.observability.trace_context import TraceContext, parse_traceparent
from serving.observability.tracing import parse_trace_config
from tests.serving.collector import INTERNAL, SERVER, Collector, Span, collecting
from tests.serving.recordings import encoded, spoken
from tests.serving.speech_models import write_live, write_recognizer
from tests.serving.test_openai_realtime import pcm
from tests.stepped import write_language_model
from tests.support import (
    WITHOUT_TRAINING,
    RunningServer,
    await_true,
    call,
    serving,
    write_config,
    write_fake,
    write_model,
)

PAIRS = "dynamic_batching { preferred_batch_size: 2 max_queue_delay_microseconds: 5000000 }"
WHOLE = """
platform: "ensemble"
max_batch_size: 64
input { name: "x" data_type: TYPE_FP32 dims: [4] }
output { name: "y" data_type: TYPE_FP32 dims: [4] }
ensemble_scheduling {
  step { model_name: "double" model_version: -1
         input_map { key: "x" value: "x" } output_map { key: "y" value: "half" } }
  step { model_name: "double" model_version: -1
         input_map { key: "x" value: "half" } output_map { key: "y" value: "y" } }
}
"""
MADE = "[0-9a-f]{16}-[0-9a-f]+"
STAGES = ["compute", "gather", "parse", "queue", "scatter", "send"]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[RunningServer]:
    """It traces only what its callers do, until it is told to do more."""
    repository = tmp_path_factory.mktemp("traced") / "models"
    write_fake(repository, "pairs", extra=PAIRS)
    write_model(repository, "double", operation="Add")
    write_model(repository, "text", datatype="BYTES", shape=("batch", 1), dims="[1]")
    write_fake(repository, "failing", fail_every=1)
    write_config(repository, "whole", WHOLE)
    (repository / "whole" / "1").mkdir()
    write_language_model(repository, "writer")
    write_recognizer(repository, "tones")
    write_live(repository, "live")
    options = (*collector.options, "--trace-config", "rate=0", "--log-verbose", "1")
    with serving(repository, *options) as running:
        yield running


class Caller:
    """A trace that begins at the caller."""

    number = 0

    def __init__(self, *, is_sampled: bool = True):
        Caller.number += 1
        self.trace = f"{Caller.number + 0xABC000:032x}"
        self.span = f"{Caller.number + 0xDEF000:016x}"
        self.headers = {
            "traceparent": f"00-{self.trace}-{self.span}-{'01' if is_sampled else '00'}",
            "tracestate": "vendor=opaque",
        }


def infer(server: RunningServer, model: str, caller: Caller, **headers: str) -> int:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.5] * 4}
    body = json.dumps({"inputs": [tensor]}).encode()
    path = f"/v2/models/{model}/infer"
    return call(server.http_port, "POST", path, body, caller.headers | headers)[0]


def root_of(spans: list[Span]) -> Span:
    [root] = [span for span in spans if span.kind == SERVER]
    return root


def children(spans: list[Span], parent: Span) -> list[Span]:
    found = [span for span in spans if span.parent == parent.id]
    for span in found:
        assert parent.began <= span.began <= span.ended <= parent.ended, (parent, span)
    return found


def names(spans: list[Span]) -> list[str]:
    return sorted(span.name for span in spans)


def test_a_batched_request(server: RunningServer, collector: Collector) -> None:
    """One comes over HTTP and one over gRPC, each in a trace of its own; they share a batch."""
    by_http, by_grpc = Caller(), Caller()
    tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(infer, server, "pairs", by_http, **{"x-request-id": "mine"})
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            client.infer("pairs", [tensor], headers=by_grpc.headers)
        assert other.result() == 200
    computes, roots = [], []
    for caller in (by_http, by_grpc):
        spans = collector.trace(caller.trace, 7)
        root = root_of(spans)
        assert (root.parent, root.state, root.service) == (caller.span, "vendor=opaque", "tested")
        assert names(children(spans, root)) == STAGES
        assert not root.is_error
        computes += [span for span in spans if span.name == "compute"]
        roots.append(root)
    http, grpc = roots
    assert http.name == "POST /v2/models/pairs/infer"
    assert (
        http.attributes.items()
        >= {
            "http.request.method": "POST",
            "http.route": "/v2/models/{model}/infer",
            "http.response.status_code": 200,
            "slipway.request.id": "mine",
            "slipway.model.name": "pairs",
            "slipway.model.version": "1",
            "slipway.outcome": "answered",
            "slipway.front": "v2_http",
        }.items()
    )
    assert grpc.name == "inference.GRPCInferenceService/ModelInfer pairs"
    assert (
        grpc.attributes.items()
        >= {
            "rpc.system.name": "grpc",
            "rpc.method": "inference.GRPCInferenceService/ModelInfer",
            "rpc.response.status_code": "OK",
        }.items()
    )
    [link] = {tuple(span.links) for span in computes}
    [(trace, id)] = link
    [batch] = collector.trace(trace, 1)
    assert (batch.id, batch.name, batch.parent) == (id, "batch pairs", "")
    assert sorted(batch.links) == sorted((root.trace, root.id) for root in roots)
    assert batch.attributes["slipway.batch.size"] == 2
    assert batch.attributes["slipway.batch.requests"] == 2
    for compute in computes:
        assert compute.attributes["slipway.batch.size"] == 2
        assert batch.began <= compute.began <= compute.ended <= batch.ended


def test_a_streamed_request(server: RunningServer, collector: Collector) -> None:
    caller = Caller()
    asked = json.dumps({"text_input": "the dog", "max_new_tokens": 80}).encode()
    path = "/v2/models/writer/generate_stream"
    status, body = call(server.http_port, "POST", path, asked, caller.headers)
    assert status == 200
    spans = collector.whole(caller.trace)
    root = root_of(spans)
    assert (root.name, root.parent) == ("POST /v2/models/writer/generate_stream", caller.span)
    assert names(children(spans, root)) == STAGES
    assert root.attributes["slipway.events"] == body.count(b"data: ")
    assert root.attributes["gen_ai.request.model"] == "writer"
    first, last = root.events["first event"], root.events["last event"]
    assert root.began < first < last < root.ended
    took = root.attributes["gen_ai.response.time_to_first_chunk"]
    assert took == pytest.approx((first - root.began) / 1e9, abs=1e-4)
    [compute] = [span for span in spans if span.name == "compute"]
    groups = children(spans, compute)
    assert set(names(groups)) == {"steps"}
    assert len(spans) == 1 + len(STAGES) + len(groups)
    steps = sum(group.attributes["slipway.steps"] for group in groups)
    assert steps >= root.attributes["slipway.events"]
    assert len(groups) == -(-steps // GROUP) > 1
    assert {group.attributes["slipway.rows.max"] for group in groups} == {1}


def test_requests_of_a_grpc_stream(server: RunningServer, collector: Collector) -> None:
    caller = Caller()
    tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
    answers: queue.Queue[object] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put(error), headers=caller.headers)
        for number in range(2):
            client.async_stream_infer("double", [tensor], request_id=f"r{number}")
        assert [answers.get(timeout=20) for _ in range(2)] == [None, None]
    spans = collector.trace(caller.trace, 2 * 7)
    roots = [span for span in spans if span.parent == caller.span]
    assert {span.name for span in roots} == {
        "inference.GRPCInferenceService/ModelStreamInfer double"
    }
    assert {span.attributes["slipway.request.id"] for span in roots} == {"r0", "r1"}
    assert all(names(children(spans, root)) == STAGES for root in roots)


async def test_a_live_recording(server: RunningServer, collector: Collector) -> None:
    """Every message that makes the model compute has a root of its own."""
    caller = Caller()
    at = f"ws://{server.http}/v1/realtime?model=live"
    async with connect(at, additional_headers=caller.headers) as socket:
        await socket.send(pcm("seven"))
        await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        async for text in socket:
            if json.loads(text)["type"].endswith("transcription.completed"):
                break
    await asyncio.to_thread(
        await_true,
        lambda: sum(s.kind == SERVER and s.trace == caller.trace for s in collector.spans) == 2,
    )
    spans = [span for span in collector.spans if span.trace == caller.trace]
    roots = [span for span in spans if span.kind == SERVER]
    assert {(root.name, root.parent) for root in roots} == {("/v1/realtime live", caller.span)}
    chunks = [chunk for root in roots for chunk in children(spans, root)]
    assert len(chunks) > 2
    assert set(names(chunks)) == {"infer live"}
    assert all(names(children(spans, chunk)) == STAGES[:-1] for chunk in chunks)


def test_a_recording_in_pieces(server: RunningServer, collector: Collector) -> None:
    caller = Caller()
    body = encoded(spoken(" ".join(["seven eight", "nine", "ten"] * 8)), kind="wav")
    assert call(server.http_port, "POST", "/models/tones", body, caller.headers)[0] == 200
    spans = collector.whole(caller.trace)
    root = root_of(spans)
    assert (root.name, root.parent) == ("POST /models/tones", caller.span)
    pieces = children(spans, root)
    assert len(pieces) > 2
    for piece in pieces:
        assert (piece.name, piece.kind) == ("infer tones", INTERNAL)
        assert names(children(spans, piece)) == STAGES[:-1]


def test_an_ensemble_s_members_are_within(server: RunningServer, collector: Collector) -> None:
    caller = Caller()
    assert infer(server, "whole", caller) == 200
    spans = collector.trace(caller.trace, 1 + 6 + 2 * (1 + 5))
    root = root_of(spans)
    [compute] = [span for span in children(spans, root) if span.name == "compute"]
    members = children(spans, compute)
    assert names(members) == ["infer double"] * 2
    first, second = sorted(members, key=lambda span: span.began)
    assert first.ended <= second.ended
    assert names(children(spans, first)) == STAGES[:-1]


def test_what_goes_wrong(server: RunningServer, collector: Collector) -> None:
    """The server's own faults are errors; what is wrong with a request is told, but none."""
    for model, status, is_error, kind in (
        ("failing", 500, True, "failed"),
        ("nobody", 404, False, "not_found"),
        ("text", 400, False, "invalid"),
    ):
        caller = Caller()
        assert infer(server, model, caller) == status
        root = root_of(collector.whole(caller.trace))
        assert root.is_error is is_error
        assert root.attributes["error.type"] == kind
        assert root.attributes["http.response.status_code"] == status
        expected = "…" if model == "nobody" else model
        assert root.name == f"POST /v2/models/{expected}/infer"


def test_the_protocol_s_settings_sample(server: RunningServer, collector: Collector) -> None:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        assert client.get_trace_settings()["trace_mode"] == "opentelemetry"

        def traced(callers: list[Caller]) -> list[str]:
            """Those of the callers whose requests were traced, in their order."""
            assert [infer(server, "double", caller) for caller in callers] == [200] * len(callers)
            last = Caller()
            client.update_trace_settings("text", {"trace_level": ["TIMESTAMPS"]})
            infer(server, "text", last)  # spans are sent in order
            collector.trace(last.trace, 1)
            return [
                span.parent
                for caller in callers
                for span in collector.spans
                if span.trace == caller.trace and span.kind == SERVER
            ]

        unsampled = [Caller(is_sampled=False) for _ in range(12)]
        client.update_trace_settings("double", {"trace_rate": "5"})
        assert traced(unsampled) == [unsampled[at].span for at in (4, 9)]
        client.update_trace_settings("double", {"trace_rate": "1", "trace_count": "3"})
        assert len(traced([Caller(is_sampled=False) for _ in range(5)])) == 3
        assert len(traced([Caller() for _ in range(5)])) == 5
        client.update_trace_settings("double", {"trace_level": ["OFF"]})
        assert traced([Caller()]) == []
        client.update_trace_settings(
            "double", {"trace_level": None, "trace_rate": None, "trace_count": None}
        )
        client.update_trace_settings("text", {"trace_level": None})


def test_the_metrics_lead_to_the_trace(server: RunningServer, collector: Collector) -> None:
    caller = Caller()
    assert infer(server, "double", caller) == 200
    headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
    text = call(server.metrics_port, "GET", "/metrics", headers=headers)[1].decode()
    [line] = re.findall(
        rf'slipway_request_duration_seconds_bucket.*model="double".*trace_id="{caller.trace}".*',
        text,
    )
    assert " # {" in line
    stages = re.findall(rf'stage="(\w+)".*trace_id="{caller.trace}"', text)
    assert sorted(stages) == STAGES
    assert "trace_id" not in call(server.metrics_port, "GET", "/metrics")[1].decode()


def test_the_access_log_leads_to_the_trace(server: RunningServer) -> None:
    caller = Caller()
    assert infer(server, "double", caller, **{"x-request-id": "find me"}) == 200
    await_true(lambda: any(line.get("request_id") == "findme" for line in server.log))
    [line] = [line for line in server.log if line.get("request_id") == "findme"]
    assert line["trace_id"] == caller.trace
    assert (line["front"], line["outcome"], line["model"]) == ("v2_http", "answered", "double")
    stages = ("parse", "queue", "compute_input", "compute_infer", "compute_output", "send")
    assert all(line[f"{stage}_ms"] >= 0 for stage in stages)


def test_request_ids_come_back(server: RunningServer) -> None:
    def answered(path: str, body: bytes = b"", id: str | None = None) -> str:
        headers = {} if id is None else {"x-request-id": id}
        with closing(http.client.HTTPConnection("127.0.0.1", server.http_port)) as connection:
            connection.request("POST" if body else "GET", path, body, headers)
            response = connection.getresponse()
            response.read()
            return response.headers["x-request-id"]

    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.5] * 4}
    body = json.dumps({"id": "of the body", "inputs": [tensor]}).encode()
    own = "mine:7\\<b>"
    assert answered("/v2/models/double/infer", body, own) == "mine:7b"
    assert answered("/v2/models/double/infer", body) == "ofthebody"
    assert answered("/v2/models/nobody/infer", body, own) == "mine:7b"
    assert answered("/v2/models/double/infer", b"no JSON", own) == "mine:7b"
    assert answered("/v2/health/live", id=own) == "mine:7b"
    assert answered("/nowhere", id=own) == "mine:7b"
    made = [answered("/v2/models/double/infer", body.replace(b"of the body", b"")) for _ in "ab"]
    assert all(re.fullmatch(MADE, id) for id in made)
    assert made[0] != made[1]
    grpc = tritonclient.grpc
    x = grpc.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(np.zeros((1, 4), np.float32))
    with grpc.InferenceServerClient(server.grpc) as client:
        given = {"x-request-id": own}
        for model, headers in (("double", given), ("nobody", given), ("double", {})):
            request = grpc.service_pb2.ModelInferRequest(model_name=model, id="of the message")
            stub = client._client_stub.ModelInfer
            try:
                trailing = stub.with_call(request, metadata=tuple(headers.items()))[1]
            except Exception as error:  # which gRPC makes of two classes at once
                trailing = error
            ids = dict(trailing.trailing_metadata())
            assert re.fullmatch("mine:7b" if headers else MADE, ids["x-request-id"])


def test_no_payload_is_told_of(server: RunningServer, collector: Collector) -> None:
    """What is in a request appears in no log, at the most talkative, nor in any trace."""
    marker = "payload-nobody-may-see"
    # Which no time in a log is.
    number = 98765.4375
    caller = Caller()
    for model, document in (
        ("text", {"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": [marker]}),
        ("text", {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [marker]}),
        ("text", {"name": "x", "shape": [2, 9], "datatype": "BYTES", "data": [marker] * 18}),
        ("text", {"name": "x", "shape": marker, "datatype": "BYTES", "data": [marker]}),
        ("failing", {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [number] * 4}),
    ):
        body = json.dumps({"inputs": [document], "parameters": {"hint": marker}}).encode()
        call(server.http_port, "POST", f"/v2/models/{model}/infer", body, caller.headers)
    asked = json.dumps({"text_input": marker, "max_new_tokens": marker}).encode()
    call(server.http_port, "POST", "/v2/models/writer/generate", asked, caller.headers)
    asked = json.dumps({"text_input": marker, "max_new_tokens": 3}).encode()
    call(server.http_port, "POST", "/v2/models/writer/generate_stream", asked, caller.headers)
    last = Caller()
    infer(server, "double", last)
    collector.trace(last.trace, 7)
    assert sum(span.trace == caller.trace and span.kind == SERVER for span in collector.spans) == 7
    assert not any(marker.encode() in raw for raw in collector.raw)
    log = json.dumps(server.log)
    assert log.count(caller.trace) == 7
    assert marker not in log
    assert str(number) not in log


@pytest.mark.parametrize("kind", ["silent", "refusing"])
def test_a_collector_that_is_not_there_hurts_nobody(tmp_path: Path, kind: str) -> None:
    write_model(tmp_path, "double", operation="Add")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        collector = Collector(silent.getsockname()[1])
        if kind == "refusing":
            silent.close()
        small = ("bsp_max_queue_size=20", "bsp_max_export_batch_size=10")
        options = [o for s in small for o in ("--trace-config", f"opentelemetry,{s}")]
        with serving(tmp_path, *collector.options, "--trace-config", "rate=1", *options) as server:
            took = []
            for _ in range(200):
                begun = time.monotonic()
                assert infer(server, "double", Caller()) == 200
                took.append(time.monotonic() - begun)
            begun = time.monotonic()
    assert max(took) < 1
    assert time.monotonic() - begun < 8
    assert server.events("stopped")
    assert server.events("traces are lost: the collector does not take them")
    assert len(server.events("traces may be lost")) <= 1, "the log is not flooded"
    assert len(server.log) < 10


def test_without_the_extra_the_start_says_what_to_install(tmp_path: Path) -> None:
    lacking = WITHOUT_TRAINING.replace("'torch'", "'torch', 'opentelemetry.sdk'")
    command = [sys.executable, "-c", lacking, "serve", "--model-repository", str(tmp_path)]
    result = subprocess.run(
        [*command, "--trace-config", "mode=opentelemetry"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "pip install 'slipway[tracing]'" in result.stderr


@pytest.mark.parametrize(
    "values",
    [
        ["mode=jaeger"],
        ["jaeger,url=x"],
        ["opentelemetry,url=ftp://x"],
        ["opentelemetry,url="],
        ["opentelemetry,resource=service.name"],
        ["opentelemetry,bsp_max_queue_size=0"],
        ["opentelemetry,bsp_max_queue_size=10"],
        ["opentelemetry,speed=1"],
        ["mode=opentelemetry", "rate=-1"],
        ["rate=0"],
    ],
)
def test_bad_options(values: list[str]) -> None:
    with pytest.raises(OperatorError, match="--trace-config"):
        parse_trace_config(values)


def test_options() -> None:
    values = [
        "rate=0",
        "opentelemetry,url=collector:4318/v1/traces",
        "opentelemetry,resource=a=b=c",
    ]
    settings = parse_trace_config(
        [*values, "mode=opentelemetry", "opentelemetry,bsp_schedule_delay=9"]
    )
    assert settings.export is not None
    assert settings.export.url == "http://collector:4318/v1/traces"
    assert settings.export.resource == {"a": "b=c"}
    assert settings.export.schedule_delay_ms == 9
    assert settings.get()["trace_mode"] == "opentelemetry"
    settings.update({"trace_rate": ["0"]})
    assert parse_trace_config(["opentelemetry,url=x"]).export is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"00-{'0' * 31}1-{'0' * 15}2-01", TraceContext(1, 2, True)),
        (f" 00-{'0' * 31}1-{'0' * 15}2-00 ", TraceContext(1, 2, False)),
        (f"01-{'0' * 31}1-{'0' * 15}2-03-more", TraceContext(1, 2, True)),
        (f"00-{'0' * 31}1-{'0' * 15}2-01-more", None),
        (f"ff-{'0' * 31}1-{'0' * 15}2-01", None),
        (f"00-{'0' * 32}-{'0' * 15}2-01", None),
        (f"00-{'0' * 31}1-{'0' * 16}-01", None),
        (f"00-{'0' * 31}A-{'0' * 15}2-01", None),
        ("", None),
        ("garbage", None),
    ],
)
def test_traceparent(header: str, expected: TraceContext | None) -> None:
    assert parse_traceparent(header) == expected


def test_a_long_text_has_a_bounded_trace() -> None:
    trace = Trace(1)
    for step in range(10_000):
        trace.stepped(step, step + 1, step % 7)
    assert len(trace.steps) <= MOST_GROUPS
    assert sum(group.steps for group in trace.steps) == 10_000
    assert [group.ended for group in trace.steps[:-1]] == [g.began for g in trace.steps[1:]]
    assert (trace.steps[0].began, trace.steps[-1].ended) == (0, 10_000)
    assert {group.most_rows for group in trace.steps} == {6}


def test_ids_are_clean_and_short() -> None:
    assert clean_id("a b\r\nc: d\x00é") == "abc:d"
    assert len(clean_id("x" * 1000)) == 128
    asked = Call(Front.TASK, id="made")
    asked.identify(" \n")
    assert (asked.id, asked.has_own_id) == ("made", False)
