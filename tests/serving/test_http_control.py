"""Over HTTP: what is served and how it has done, and the calls that change that."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from serving.errors import OperatorError, Restricted
from serving.fronts.restricted import Restrictions, parse
from tests.support import (
    RunningServer,
    await_true,
    call,
    config,
    serving,
    write_config,
    write_model,
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("http-control")
    write_model(repository, "double", operation="Add", extra="")
    write_model(repository, "spare", operation="Add")
    write_config(repository, "broken", config())
    options = ("--model-control-mode", "explicit", "--load-model", "double", "--id", "triton")
    with serving(repository, *options) as server:
        yield server


@pytest.fixture
def client(here: RunningServer) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(here.http) as connected:
        yield connected


def post(server: RunningServer, path: str, body: bytes = b"") -> tuple[int, Any]:
    status, answer = call(server.http_port, "POST", path, body)
    return status, json.loads(answer or b"null")


def get(server: RunningServer, path: str) -> tuple[int, Any]:
    status, answer = call(server.http_port, "GET", path)
    return status, json.loads(answer or b"null")


def infer(client: Any, model: str, rows: int = 1) -> float:
    tensor = tritonclient.http.InferInput("x", [rows, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((rows, 4), np.float32))
    return float(client.infer(model, [tensor]).as_numpy("y")[0, 0])


def test_metadata_and_config(client: Any) -> None:
    assert client.get_server_metadata()["name"] == "triton"
    assert client.get_model_metadata("double")["versions"] == ["1"]
    assert client.get_model_config("double", "1")["max_batch_size"] == 64
    with pytest.raises(InferenceServerException, match=r"^\[404\] Request for unknown model"):
        client.get_model_metadata("nobody")


def test_statistics(here: RunningServer, client: Any) -> None:
    (before,) = client.get_inference_statistics("double")["model_stats"]
    for rows in (1, 3):
        infer(client, "double", rows)
    call(here.http_port, "POST", "/v2/models/double/infer", b"no JSON")
    (after,) = client.get_inference_statistics("double", "1")["model_stats"]
    assert (after["name"], after["version"]) == ("double", "1")
    assert after["inference_count"] - before["inference_count"] == 4
    assert after["execution_count"] - before["execution_count"] == 2
    was, is_now = before["inference_stats"], after["inference_stats"]
    for key in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert is_now[key]["count"] - was[key]["count"] == 2
        assert is_now[key]["ns"] > was[key]["ns"]
    assert is_now["fail"]["count"] == was["fail"]["count"] + 1
    assert {batch["batch_size"] for batch in after["batch_stats"]} >= {1, 3}
    assert after["last_inference"] > 1.7e12
    everything = client.get_inference_statistics()["model_stats"]
    assert "double" in {model["name"] for model in everything}


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/v2/models/nobody/stats", "requested model 'nobody' is not available"),
        (
            "/v2/models/double/versions/9/stats",
            "requested model version is not available for model 'double'",
        ),
    ],
)
def test_statistics_of_what_is_not_there(here: RunningServer, path: str, problem: str) -> None:
    assert get(here, path) == (400, {"error": problem})


def test_load_and_unload(here: RunningServer, client: Any) -> None:
    index = {model["name"]: model for model in client.get_model_repository_index()}
    assert index["spare"] == {"name": "spare"}
    client.load_model("spare")
    assert infer(client, "spare") == 2
    ready = post(here, "/v2/repository/index", b'{"ready":true}')[1]
    assert {model["name"] for model in ready} == {"double", "spare"}
    assert post(here, "/v2/repository/any/index")[1] == client.get_model_repository_index()
    client.unload_model("spare", unload_dependents=True)
    assert not client.is_model_ready("spare")
    await_true(
        lambda: (
            {"name": "spare", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
            in client.get_model_repository_index()
        )
    )
    client.unload_model("nobody")


def test_a_model_that_comes_along(here: RunningServer, client: Any, tmp_path: Path) -> None:
    content = (write_model(tmp_path, "sent") / "1" / "model.onnx").read_bytes()
    given = json.dumps({"backend": "onnxruntime", "max_batch_size": "16"})
    client.load_model("sent", config=given, files={"file:1/model.onnx": content})
    assert infer(client, "sent") == 1
    assert client.get_model_config("sent")["max_batch_size"] == 16
    client.unload_model("sent")
    encoded = base64.b64encode(content).decode()
    for parameters in ({"file:1/model.onnx": encoded}, {"config": given, "file:../x": encoded}):
        body = json.dumps({"parameters": parameters}).encode()
        status, answer = post(here, "/v2/repository/models/sent2/load", body)
        assert (status, "failed to load" in answer["error"]) == (500, True)


@pytest.mark.parametrize(
    ("path", "body", "status", "problem"),
    [
        (
            "models/nobody/load",
            b"",
            500,
            "failed to load 'nobody', failed to poll from model",
        ),
        ("models/broken/load", b"", 500, "failed to load 'broken'"),
        ("models/double/load", b"{", 400, "failed to parse"),
        ("models/double/load", b"[]", 400, "must be a JSON object"),
        ("models/double/load", b"[" * 250_000, 400, "failed to parse"),
        ("models/double/load", b'{"parameters":5}', 400, "parameters must be a JSON object"),
        ("models/double/load", b'{"parameters":{"config":5}}', 400, "must be a string"),
        ("models/double/load", b'{"parameters":{"confg":"{}"}}', 400, "unexpected load parameter"),
        ("models/double/load", b'{"parameters":{"file:1/a":"!"}}', 400, "base64"),
        ("models/%2e%2e/load", b"", 400, "not a model's name"),
        ("models/double/unload", b'{"parameters":{"unload_dependents":1}}', 400, "true or false"),
        ("some/models/double/load", b"", 501, "'repository_name' specification is not supported"),
        ("some/models/double/unload", b"", 501, "'repository_name' specification"),
        ("index", b'{"ready":1}', 400, "ready must be true or false"),
        ("index", b"[" * 250_000, 400, "failed to parse"),
    ],
)
def test_repository_calls_that_do_not_fit(
    here: RunningServer, path: str, body: bytes, status: int, problem: str
) -> None:
    got, answer = post(here, f"/v2/repository/{path}", body)
    assert (got, problem in answer["error"]) == (status, True), answer


def test_loading_is_for_explicit_mode(server: RunningServer) -> None:
    status, answer = post(server, "/v2/repository/models/double/load")
    assert (status, "is not allowed if polling is enabled" in answer["error"]) == (503, True)


def test_trace_settings(here: RunningServer, client: Any) -> None:
    defaults = client.get_trace_settings()
    assert defaults["trace_level"] == ["OFF"]
    assert all(isinstance(value, str) for key, value in defaults.items() if key != "trace_level")
    changed = client.update_trace_settings(
        "double", {"trace_level": ["TIMESTAMPS"], "trace_rate": "7", "unknown": "x"}
    )
    assert (changed["trace_level"], changed["trace_rate"]) == (["TIMESTAMPS"], "7")
    assert client.get_trace_settings() == defaults
    client.update_trace_settings("double", {"trace_level": None, "trace_rate": None})
    assert client.get_trace_settings("double") == defaults


@pytest.mark.parametrize(
    ("path", "body", "status", "problem"),
    [
        ("trace/setting", b'{"trace_rate":5}', 400, "trace_rate must be a string"),
        ("trace/setting", b'{"trace_level":"OFF"}', 400, "trace_level must be an array"),
        ("trace/setting", b'{"trace_rate":"x"}', 400, "trace_rate"),
        ("trace/setting", b'{"trace_file":"/etc/passwd"}', 501, "trace"),
        ("models/nobody/trace/setting", b"{}", 400, "Request for unknown model : nobody"),
        ("logging", b'{"log_info":1}', 400, "log_info"),
        ("logging", b'{"log_format":"odd"}', 400, "log_format"),
        # Nobody could ask for it over gRPC afterwards.
        ("logging", b'{"log_verbose_level":4294967296}', 400, "from 0 to 4294967295"),
        ("logging", b'{"log_file":"/etc/passwd"}', 501, "log_file"),
        ("logging", b"{", 400, "failed to parse"),
    ],
)
def test_settings_that_do_not_fit(
    here: RunningServer, path: str, body: bytes, status: int, problem: str
) -> None:
    got, answer = post(here, f"/v2/{path}", body)
    assert (got, problem in answer["error"]) == (status, True), answer


def test_log_settings(client: Any) -> None:
    assert client.get_log_settings()["log_verbose_level"] == 0
    changed = client.update_log_settings({"log_verbose_level": 1, "log_info": None})
    assert (changed["log_verbose_level"], changed["log_info"]) == (1, True)
    client.update_log_settings({"log_verbose_level": 0})


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "answer"),
    [
        ("GET", "cuda", "status", 200, []),
        ("GET", "cuda", "region/a/status", 404, "Unable to find cuda shared memory region: 'a'"),
        ("POST", "cuda", "region/a/register", 400, "has no 'raw_handle' field"),
        ("POST", "cuda", "register", 400, "'region name' is necessary to register cuda"),
        ("POST", "cuda", "unregister", 200, None),
        ("POST", "cuda", "region/a/unregister", 200, None),
        ("GET", "system", "status", 200, []),
        ("GET", "system", "region/a/status", 404, "region: 'a'"),
        ("POST", "system", "region/a/register", 400, "has no 'key' field"),
        ("POST", "system", "register", 400, "'region name' is necessary to register system"),
        ("POST", "system", "region/a/unregister", 501, "disabled"),
    ],
)
def test_shared_memory_that_is_not_there(
    here: RunningServer, method: str, path: str, body: str, status: int, answer: object
) -> None:
    target = f"/v2/{path}sharedmemory/{body}"
    got, text = post(here, target, b"{}") if method == "POST" else get(here, target)
    assert got == status, text
    assert answer in text["error"] if isinstance(answer, str) else text == answer


def test_cuda_memory_cannot_be_registered(here: RunningServer) -> None:
    body = b'{"raw_handle":{"b64":"aGVsbG8="},"device_id":0,"byte_size":64}'
    status, answer = post(here, "/v2/cudasharedmemory/region/a/register", body)
    assert (status, "failed to register CUDA" in answer["error"]) == (400, True)


def test_the_documentation_names_what_paths_take(here: RunningServer) -> None:
    paths = get(here, "/openapi.json")[1]["paths"]
    infer = paths["/v2/models/{name}/infer"]["post"]
    assert {parameter["name"] for parameter in infer["parameters"]} >= {"name"}
    ready = paths["/v2/models/{name}/versions/{version}/ready"]["get"]
    assert [parameter["name"] for parameter in ready["parameters"]] == ["name", "version"]


RESTRICTED = {
    "health": ("GET", "/v2/health/live"),
    "metadata": ("GET", "/v2/models/double"),
    "inference": ("POST", "/v2/models/double/infer"),
    "shared-memory": ("GET", "/v2/systemsharedmemory/status"),
    "model-config": ("GET", "/v2/models/double/config"),
    "model-repository": ("POST", "/v2/repository/index"),
    "statistics": ("GET", "/v2/models/stats"),
    "trace": ("GET", "/v2/trace/setting"),
    "logging": ("GET", "/v2/logging"),
}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("http-locked")
    write_model(repository, "double", operation="Add")
    restriction = f"{','.join(RESTRICTED)}:Admin-Key=secret"
    with serving(repository, "--http-restricted-api", restriction) as server:
        yield server


@pytest.mark.parametrize("group", RESTRICTED)
def test_restricted_calls_need_their_key(locked: RunningServer, group: str) -> None:
    method, path = RESTRICTED[group]
    for headers in ({}, {"Admin-Key": "guess"}, {"Admin-Key": "größe".encode().decode("latin-1")}):
        status, answer = call(locked.http_port, method, path, headers=headers)
        expected = {"error": "This API is restricted, expecting header 'Admin-Key'"}
        assert (status, json.loads(answer)) == (403, expected)
    assert call(locked.http_port, method, path, headers={"admin-key": "secret"})[0] != 403


@pytest.mark.parametrize("path", ["/v2/models/double/generate", "/models/double"])
def test_every_way_to_infer_is_inference(locked: RunningServer, path: str) -> None:
    assert call(locked.http_port, "POST", path, b"{}")[0] == 403


def test_changes_from_other_machines_need_a_key(tmp_path: Path) -> None:
    write_model(tmp_path, "double", operation="Add")
    options = ("--host", "0.0.0.0", "--model-control-mode", "explicit", "--load-model", "*")
    key = ("--http-restricted-api", "logging:k=v")
    with serving(tmp_path, *options, *key) as server:
        for path in (
            "repository/models/double/unload",
            "repository/models/double/load",
            "systemsharedmemory/unregister",
            "cudasharedmemory/unregister",
            "trace/setting",
        ):
            status, answer = post(server, f"/v2/{path}", b"{}")
            assert (status, "--http-restricted-api=" in answer["error"]) == (403, True), path
        assert post(server, "/v2/logging", b"{}")[0] == 403
        assert call(server.http_port, "POST", "/v2/logging", b"{}", {"K": "v"})[0] == 200
        assert get(server, "/v2/trace/setting")[0] == 200
        assert post(server, "/v2/repository/index")[0] == 200


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["health"], "expects <group>,<group>:<key>=<value>"),
        (["health:k"], "expects"),
        (["health:=v"], "expects"),
        (["health:k="], "expects"),
        (["helth:k=v"], "unknown group 'helth'"),
        ([":k=v"], "unknown group ''"),
        (["health:k=v", "trace,health:k=w"], "the group 'health' is restricted twice"),
    ],
)
def test_restrictions_that_cannot_be_read(values: list[str], problem: str) -> None:
    with pytest.raises(OperatorError, match=problem) as refusal:
        parse("--flag", values)
    assert "\n" not in str(refusal.value)


def lookup(**headers: str) -> Callable[[str], str | None]:
    return lambda name: headers.get(name.replace("-", "_"))


def test_a_restriction_may_hold_signs_of_its_own_grammar() -> None:
    restrictions = parse("--flag", ["trace , health:Key=a:b=c"], "prefix-")
    restrictions.check("health", lookup(prefix_key="a:b=c"))
    restrictions.check("logging", lookup(), changes=True)
    with pytest.raises(Restricted, match="expecting header 'prefix-Key'"):
        restrictions.check("trace", lookup())
    with pytest.raises(Restricted, match="--flag=logging:<key>=<value>"):
        Restrictions("--flag", guard_management=True).check("logging", lookup(), changes=True)
