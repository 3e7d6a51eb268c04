from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from serving.errors import InvalidRequest, OperatorError, Unsupported
from serving.observability.tracing import Tracer, TraceSettings, parse_trace_config
from serving.types import InferRequest, Stamps
from tests.support import run_slipway, serving, write_model


def traced(path: Path, **settings: str) -> Tracer:
    values = [f"triton,file={path}", "level=TIMESTAMPS", "rate=1"]
    return Tracer(parse_trace_config(values + [f"{k}={v}" for k, v in settings.items()]))


def request(name: str = "m", number: int = 0) -> InferRequest:
    now = time.monotonic()
    stamps = Stamps(received=now, queued=now + 1, batched=now + 2, started=now + 3)
    stamps.computed, stamps.answered = now + 4, now + 5
    return InferRequest(name, {}, id=str(number), stamps=stamps)


def read(path: Path) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = json.loads(path.read_text())
    return traces


async def test_one_file_is_one_array(tmp_path: Path) -> None:
    tracer = traced(tmp_path / "trace.json")
    for number in range(250):
        tracer.record(request(number=number), "3")
    await tracer.close()
    traces = read(tmp_path / "trace.json")
    assert [trace["request_id"] for trace in traces] == [str(number) for number in range(250)]
    assert len({trace["id"] for trace in traces}) == 250
    assert (traces[0]["model_name"], traces[0]["model_version"]) == ("m", 3)
    stages = traces[0]["timestamps"]
    assert [stage["name"] for stage in stages] == [
        *("REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END"),
        *("COMPUTE_OUTPUT_START", "COMPUTE_END", "REQUEST_END"),
    ]
    assert [stage["ns"] for stage in stages] == sorted(stage["ns"] for stage in stages)


async def test_a_log_frequency_makes_many_files(tmp_path: Path) -> None:
    tracer = traced(tmp_path / "trace", log_frequency="10")
    for number in range(25):
        tracer.record(request(number=number), "1")
    await tracer.close()
    files = await asyncio.to_thread(lambda: list(tmp_path.iterdir()))
    lengths = {path.name: len(read(path)) for path in files if path.name != "trace"}
    assert lengths == {"trace.0": 10, "trace.1": 10, "trace.2": 5}


async def test_rate_and_count(tmp_path: Path) -> None:
    tracer = traced(tmp_path / "trace.json", rate="10", count="3")
    for number in range(1, 100):
        tracer.record(request(number=number), "1")
    await tracer.close()
    assert [trace["request_id"] for trace in read(tmp_path / "trace.json")] == ["10", "20", "30"]


async def test_settings_of_one_model(tmp_path: Path) -> None:
    tracer = Tracer(parse_trace_config([f"triton,file={tmp_path}/t.json", "rate=1"]))
    tracer.settings.update({"trace_level": ["TIMESTAMPS"]}, "chosen")
    for name in ("chosen", "other"):
        tracer.record(request(name), "1")
    tracer.settings.update({"trace_level": None}, "chosen")
    tracer.record(request("chosen"), "1")
    await tracer.close()
    assert [trace["model_name"] for trace in read(tmp_path / "t.json")] == ["chosen"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"trace_level": ["LOUD"]}, InvalidRequest),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, InvalidRequest),
        ({"trace_level": []}, InvalidRequest),
        ({"trace_rate": ["0"]}, InvalidRequest),
        ({"trace_rate": ["many"]}, InvalidRequest),
        ({"trace_rate": ["1", "2"]}, InvalidRequest),
        ({"trace_count": ["-2"]}, InvalidRequest),
        ({"trace_file": ["x"]}, Unsupported),
        ({"trace_mode": ["opentelemetry"]}, Unsupported),
    ],
)
def test_bad_changes_change_nothing(changes: dict[str, list[str]], error: type[Exception]) -> None:
    settings = TraceSettings()
    before = settings.get()
    with pytest.raises(error):
        settings.update({"log_frequency": ["5"], **changes})
    assert settings.get() == before


@pytest.mark.parametrize(
    "value", ["rate=0", "opentelemetry,url=x", "mode=opentelemetry", "speed=3", "rate", "level=MAX"]
)
def test_bad_options(value: str) -> None:
    with pytest.raises(OperatorError, match="--trace-config"):
        parse_trace_config([value])


def test_over_the_network(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "double", operation="Add")
    path = tmp_path / "trace.json"
    with (
        serving(tmp_path / "models", "--trace-config", f"triton,file={path}") as server,
        tritonclient.http.InferenceServerClient(server.http) as http,
        tritonclient.grpc.InferenceServerClient(server.grpc) as rpc,
    ):
        assert http.get_trace_settings()["trace_rate"] == "1000"
        changed = rpc.update_trace_settings(
            "double", {"trace_level": ["TIMESTAMPS"], "trace_rate": "1"}, as_json=True
        )
        assert changed["settings"]["trace_level"]["value"] == ["TIMESTAMPS"]
        assert http.get_trace_settings("double")["trace_level"] == ["TIMESTAMPS"]
        assert http.get_trace_settings()["trace_level"] == ["OFF"]
        with pytest.raises(InferenceServerException, match="unknown model"):
            http.get_trace_settings("nobody")
        tensor = tritonclient.http.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
        http.infer("double", [tensor], request_id="mine")
        http.update_trace_settings("double", {"trace_level": None})
        assert http.get_trace_settings("double")["trace_level"] == ["OFF"]
        assert rpc.get_log_settings(as_json=True)["settings"]["log_info"]["bool_param"]
        assert http.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
        with pytest.raises(InferenceServerException, match="log_format"):
            http.update_log_settings({"log_format": "loud"})
    assert [trace["request_id"] for trace in read(path)] == ["mine"]


def test_the_log(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "double", operation="Add")
    path = tmp_path / "log"
    with (
        serving(tmp_path / "models", "--log-format", "ISO8601") as server,
        tritonclient.http.InferenceServerClient(server.http) as http,
    ):
        assert server.log[0]["timestamp"][-1] == "Z"
        assert len(server.log[0]["timestamp"]) == len("2026-01-01T00:00:00Z")
        http.update_log_settings({"log_info": False})
    assert not server.events("draining")
    result = run_slipway("serve", "--model-repository", str(path), "--log-file", str(path))
    assert result.returncode == 1
    assert path.exists()
