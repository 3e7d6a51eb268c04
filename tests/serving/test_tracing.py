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
from serving.observability.trace_settings import TraceSettings
from serving.observability.tracing import Tracer, parse_trace_config
from serving.types import InferRequest, Stamps
from tests.support import serving, write_model


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
        if number % 20 == 0:
            await asyncio.sleep(0.02)  # a disk keeps up with what comes at once, within bounds
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


@pytest.mark.parametrize(("before", "after"), [("0", "3"), ("3", "0"), ("7", "3")])
async def test_every_file_is_one_array_whatever_log_frequency_becomes(
    tmp_path: Path, before: str, after: str
) -> None:
    tracer = traced(tmp_path / "trace", log_frequency=before)
    for number in range(270):
        if number == 152:
            tracer.settings.update({"log_frequency": [after]})
        tracer.record(request(number=number), "1")
        if number % 20 == 0:
            await asyncio.sleep(0.02)  # a disk keeps up with what comes at once, within bounds
    await tracer.close()
    files = await asyncio.to_thread(lambda: sorted(tmp_path.glob("trace*")))
    traces = [trace for path in files if path.stat().st_size for trace in read(path)]
    assert sorted(int(trace["request_id"]) for trace in traces) == list(range(270))
    numbered = {len(read(path)) for path in files if path.suffix}
    assert max(numbered) == max(int(before), int(after))


async def test_a_second_server_starts_its_files_anew(tmp_path: Path) -> None:
    for name in ("first", "second"):
        tracer = traced(tmp_path / "trace", log_frequency="3")
        for _ in range(3):
            tracer.record(request(name), "1")
        await tracer.close()
    assert [trace["model_name"] for trace in read(tmp_path / "trace.0")] == ["second"] * 3


async def test_log_frequency_is_a_model_s_own(tmp_path: Path) -> None:
    tracer = traced(tmp_path / "trace")
    tracer.settings.update({"log_frequency": ["2"]}, "chosen")
    for _ in range(3):
        tracer.record(request("chosen"), "1")
        tracer.record(request("other"), "1")
    await tracer.close()
    names = [
        [trace["model_name"] for trace in read(tmp_path / name)]
        for name in ("trace", "trace.0", "trace.1")
    ]
    assert names == [["other"] * 3, ["chosen"] * 2, ["chosen"]]


async def test_few_traces_are_held_in_memory(tmp_path: Path) -> None:
    tracer = traced(tmp_path / "trace", log_frequency="999999999999")
    for _ in range(950):
        tracer.record(request(), "1")
        await asyncio.sleep(0)
    assert sum(len(kept.unwritten) for kept in tracer._logs.values()) == 50
    await tracer.close()
    assert len(read(tmp_path / "trace.0")) == 950


async def test_without_a_file_nothing_is_traced() -> None:
    tracer = Tracer(parse_trace_config(["level=TIMESTAMPS", "rate=1", "count=5"]))
    tracer.record(request(), "1")
    assert not tracer._logs
    assert tracer.settings.get()["trace_count"] == "5"


async def test_the_count_is_of_traces_that_are_still_to_be_made(tmp_path: Path) -> None:
    tracer = traced(tmp_path / "trace", count="2")
    for _ in range(5):
        tracer.record(request("a"), "1")
    assert tracer.settings.get()["trace_count"] == "0"
    tracer.settings.update({"trace_count": ["3"]})
    tracer.record(request("b"), "1")
    assert tracer.settings.get()["trace_count"] == "2"
    tracer.settings.update({"trace_count": ["1"]}, "c")
    for name in ("c", "c", "b"):
        tracer.record(request(name), "1")
    assert tracer.settings.get()["trace_count"] == "1"
    assert tracer.settings.get("c")["trace_count"] == "0"
    tracer.settings.update({"trace_count": None}, "c")
    tracer.record(request("c"), "1")
    assert tracer.settings.get()["trace_count"] == "0"
    tracer.settings.update({"trace_count": None})
    assert tracer.settings.get()["trace_count"] == "2"
    await tracer.close()
    names = [trace["model_name"] for trace in read(tmp_path / "trace")]
    # Each model with settings of its own has a buffer of its own.
    assert sorted(names) == ["a", "a", "b", "b", "c", "c"]


async def test_a_model_that_is_gone_leaves_no_trace_in_memory(tmp_path: Path) -> None:
    tracer = traced(tmp_path / "trace", rate="2")
    for number in range(1000):
        name = f"m{number}"
        tracer.settings.update({"trace_rate": ["1"], "log_frequency": ["100"]}, name)
        tracer.record(request(name), "1")
        tracer.forget(name)
        await asyncio.sleep(0)
    assert not tracer._logs
    assert not tracer.settings._models
    assert tracer.settings.get("m7")["trace_rate"] == "2"
    tracer.settings.update({"trace_level": ["OFF"]})
    tracer.settings.update({"trace_level": ["TIMESTAMPS"]}, "last")
    tracer.forget("last")
    assert not tracer.settings.anything_is_traced
    await tracer.close()


@pytest.mark.parametrize("version", ["99999999999999999999", "not a number"])
async def test_a_trace_that_cannot_be_made_fails_nobody(tmp_path: Path, version: str) -> None:
    tracer = traced(tmp_path / "trace")
    tracer.record(request(), "1")
    tracer.record(request(), version)
    await tracer.close()
    versions = [str(trace["model_version"]) for trace in read(tmp_path / "trace")]
    assert versions == ["1", version][: 1 + version.isdecimal()]


async def test_what_cannot_be_written_fails_nobody(tmp_path: Path) -> None:
    tracer = traced(tmp_path / "trace")
    tracer.settings.update({"log_frequency": ["1"]})
    (tmp_path / "trace.0").mkdir()
    for _ in range(2):
        tracer.record(request(), "1")
    await tracer.close()
    assert len(read(tmp_path / "trace.1")) == 1


async def test_a_disk_that_does_not_keep_up_costs_traces_not_memory(tmp_path: Path) -> None:
    tracer = traced(tmp_path / "trace", log_frequency="1")
    for _ in range(1000):
        tracer.record(request(), "1")
    assert len(tracer._writer._work) <= 200
    await tracer.close()
    files = await asyncio.to_thread(lambda: list(tmp_path.glob("trace.*")))
    assert 50 <= len(files) <= 100


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


@pytest.mark.parametrize("value", ["rate=0", "speed=3", "rate", "level=MAX"])
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
