"""The generate extension: plain JSON in, plain JSON or server-sent events out."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support import (
    RunningServer,
    await_true,
    call,
    metric,
    serving,
    write_config,
    write_fake,
    write_model,
)

DECOUPLED = "model_transaction_policy { decoupled: true }"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("generate")
    write_models(repository)
    with serving(repository) as server:
        yield server


def write_models(repository: Path) -> None:
    write_model(repository, "double", operation="Add")
    write_model(repository, "text", datatype="BYTES", shape=("batch", "n"), dims="[-1]")
    options: dict[str, Any] = {"max_batch_size": 0, "dims": "[-1]", "extra": DECOUPLED}
    write_fake(repository, "repeat", datatype="INT32", **options)
    write_fake(repository, "faltering", datatype="INT32", fail_every=3, **options)
    write_fake(repository, "failing", datatype="INT32", fail_every=1, **options)
    write_fake(repository, "slow", datatype="INT32", delay_ms=100, **options)
    two = write_config(
        repository,
        "two",
        """
        backend: "fake"
        max_batch_size: 4
        input [
          { name: "TEXT" data_type: TYPE_STRING dims: [1] },
          { name: "GRID" data_type: TYPE_FP32 dims: [-1, 2] }
        ]
        output [
          { name: "said" data_type: TYPE_STRING dims: [1] },
          { name: "grid" data_type: TYPE_FP32 dims: [-1, 2] }
        ]
        """,
    )
    (two / "1").mkdir()


def ask(server: RunningServer, model: str, body: object, how: str = "generate") -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer = call(server.http_port, "POST", f"/v2/models/{model}/{how}", raw)
    return status, json.loads(answer)


def events(server: RunningServer, model: str, body: object) -> tuple[int, str, list[Any]]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)) as wire:
        wire.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(body))
        response = wire.getresponse()
        text = response.read().decode()
    parts = text.removesuffix("\n\n").split("\n\n") if text else []
    return (
        response.status,
        response.headers["content-type"],
        [json.loads(part.removeprefix("data: ")) for part in parts],
    )


def test_keys_are_inputs_and_outputs(here: RunningServer) -> None:
    assert ask(here, "double", {"x": [1, 2, 3, 4], "id": "a", "temperature": 0.5}) == (
        200,
        {"id": "a", "model_name": "double", "model_version": "1", "y": [2, 4, 6, 8]},
    )
    assert ask(here, "text", {"x": "größe"})[1]["y"] == "größe"
    assert ask(here, "text", {"parameters": {"x": ["a", "b"], "seed": 1}})[1]["y"] == ["a", "b"]
    answer = ask(here, "two", {"TEXT": "hi", "GRID": [1, 2, 3, 4]}, "versions/1/generate")[1]
    assert (answer["said"], answer["grid"]) == ("hi", [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("model", "body", "status", "problem"),
    [
        ("nobody", {}, 404, "unknown model"),
        ("double", b"[", 400, "failed to parse"),
        ("double", b"[" * 250_000, 400, "failed to parse"),
        ("double", b"", 400, "failed to parse"),
        ("double", [], 400, "must be a JSON object"),
        ("double", {}, 400, "expected 1 inputs but got 0 inputs"),
        ("double", {"x": [1, 2, 3]}, 400, "can not convert input 'x' to tensor with proper shape"),
        ("double", {"x": [1] * 5}, 400, "can not convert input 'x'"),
        ("double", {"x": [[1, 2, 3, 4]]}, 400, "scalar"),
        ("double", {"x": ["a"] * 4}, 400, "must be numbers"),
        ("double", {"x": [None] * 4}, 400, "must be numbers"),
        ("text", {"x": 5}, 400, "must be strings"),
        ("text", {"x": "a", "parameters": {"x": "b"}}, 400, "'x' already exists in request"),
        (
            "text",
            {"x": "a", "parameters": 5},
            400,
            "JSON object for keyword: 'parameters'",
        ),
        ("text", {"x": "a", "list": [1]}, 400, "has invalid type"),
        ("text", {"x": "a", "triton_y": 1}, 400, "reserved"),
        ("text", {"x": "a", "id": 1}, 400, "id must be a string"),
        ("repeat", {"x": []}, 400, "exactly 1 response"),
        ("repeat", {"x": [1, 2]}, 400, "exactly 1 response"),
    ],
)
def test_what_does_not_fit(
    here: RunningServer, model: str, body: object, status: int, problem: str
) -> None:
    got, answer = ask(here, model, body)
    assert (got, problem in answer["error"]) == (status, True), answer
    if model != "repeat":
        got, answer = ask(here, model, body, "generate_stream")
        assert (got, problem in answer["error"]) == (status, True), answer


def test_one_response_of_a_decoupled_model(here: RunningServer) -> None:
    assert ask(here, "repeat", {"x": 7})[1]["y"] == 7


def test_a_stream_of_events(here: RunningServer) -> None:
    status, kind, got = events(here, "repeat", {"x": [5, 6, 7], "id": "s"})
    assert (status, kind) == (200, "text/event-stream; charset=utf-8")
    assert [event["y"] for event in got] == [5, 6, 7]
    assert got[0] == {"id": "s", "model_name": "repeat", "model_version": "1", "y": 5}
    assert [event["y"] for event in events(here, "double", {"x": [1, 2, 3, 4]})[2]] == [
        [2, 4, 6, 8]
    ]
    assert events(here, "repeat", {"x": []})[2] == []


def test_an_error_on_the_way_is_the_last_event(here: RunningServer) -> None:
    status, _, got = events(here, "faltering", {"x": [1, 2, 3, 4]})
    assert status == 200
    assert [event.get("y") for event in got] == [1, 2, None]
    assert "server's log has the cause" in got[2]["error"]


def test_an_error_at_the_start_is_the_status(here: RunningServer) -> None:
    status, answer = ask(here, "failing", {"x": [1]}, "generate_stream")
    assert (status, "configured" in answer["error"]) == (500, False)


def test_who_leaves_ends_the_work(here: RunningServer) -> None:
    before = metric(here, "slipway_requests_total", model="slow", outcome="cancelled")
    with closing(http.client.HTTPConnection("127.0.0.1", here.http_port, timeout=30)) as wire:
        body = json.dumps({"x": list(range(1000))})
        wire.request("POST", "/v2/models/slow/generate_stream", body)
        response = wire.getresponse()
        started = time.monotonic()
        assert response.readline().startswith(b"data: {")
        assert time.monotonic() - started < 2
        response.close()
    await_true(
        lambda: (
            metric(here, "slipway_requests_total", model="slow", outcome="cancelled") == before + 1
        )
    )
    assert not here.events("unexpected error")
    assert not here.events("text")


def test_strict_is_as_triton(tmp_path: Path) -> None:
    write_models(tmp_path)
    with serving(tmp_path, "--triton-strict") as server:
        status, answer = ask(server, "repeat", {"x": [1, 2]})
        assert (status, "exactly 1 response" in answer["error"]) == (200, True)
        status, answer = ask(server, "double", b"[")
        assert (status, "failed to parse" in answer["error"]) == (500, True)
        body = {"inputs": [{"name": "x", "shape": [-1, 4], "datatype": "FP32", "data": []}]}
        assert ask(server, "double", body, "infer")[0] == 500
        assert ask(server, "double", b" " * ((64 << 20) + 1), "infer")[0] == 400
