"""Models that come, change and go while requests keep coming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from tests.support import (
    RunningServer,
    await_true,
    call,
    config,
    run_slipway,
    serving,
    write_config,
    write_fake,
)

EXPLICIT = ("--model-control-mode", "explicit")


def adder(addend: float) -> bytes:
    """The bytes of a graph y = x + addend."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "addend"], ["y"])],
        "adder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 4))],
        [helper.make_tensor("addend", TensorProto.FLOAT, [1], [addend])],
    )
    opset = helper.make_opsetid("", 18)
    model: bytes = helper.make_model(
        graph, opset_imports=[opset], ir_version=10
    ).SerializeToString()
    return model


def write_version(repository: Path, name: str, version: int, content: bytes | None = None) -> None:
    """A version that adds its own number; its directory appears at once, as publishing does it."""
    hidden = repository / name / f".{version}"
    hidden.mkdir(parents=True)
    (hidden / "model.onnx").write_bytes(adder(version) if content is None else content)
    hidden.rename(repository / name / str(version))


def write_adder(repository: Path, name: str = "adder", *versions: int, **settings: Any) -> None:
    write_config(repository, name, config(**settings))
    for version in versions or (1,):
        write_version(repository, name, version)


def post(server: RunningServer, path: str, document: object = None) -> tuple[int, str]:
    body = b"" if document is None else json.dumps(document).encode()
    status, text = call(server.http_port, "POST", path, body)
    return status, text.decode()


def index(server: RunningServer) -> dict[tuple[str, str], dict[str, str]]:
    _, text = post(server, "/v2/repository/index")
    return {(row["name"], row.get("version", "")): row for row in json.loads(text)}


def ask(client: Any, name: str = "adder", version: str = "") -> tuple[float, str]:
    """What is added to zero, and the version that says it did that."""
    module = tritonclient.http if "http" in type(client).__module__ else tritonclient.grpc
    tensor = module.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
    result = client.infer(name, [tensor], model_version=version)
    response = result.get_response()
    answered = response["model_version"] if isinstance(response, dict) else response.model_version
    return float(result.as_numpy("y")[0, 0]), answered


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def connect(server: RunningServer, protocol: str) -> Any:
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    return module.InferenceServerClient(getattr(server, protocol))


@pytest.fixture
def explicit(tmp_path: Path) -> Iterator[tuple[Path, RunningServer]]:
    with controlled(tmp_path) as server:
        yield tmp_path, server


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RunningServer]]:
    """The same, for all tests of what must change nothing."""
    path = tmp_path_factory.mktemp("unchanged")
    with controlled(path) as server:
        yield path, server


@contextmanager
def controlled(repository: Path) -> Iterator[RunningServer]:
    write_adder(repository)
    write_adder(repository, "other")
    with serving(repository, *EXPLICIT, "--load-model", "adder") as server:
        yield server


def test_explicit_control(explicit: tuple[Path, RunningServer], protocol: str) -> None:
    _, server = explicit
    with connect(server, protocol) as client:
        assert client.is_server_ready()
        assert client.is_model_ready("adder")
        assert not client.is_model_ready("other")
        with pytest.raises(InferenceServerException, match="unknown model: 'other' is not found"):
            ask(client, "other")
        client.load_model("other")
        assert ask(client, "other") == (1, "1")
        client.unload_model("other")
        with pytest.raises(InferenceServerException, match="'other' has no available versions"):
            ask(client, "other")
        await_true(lambda: index(server)["other", "1"].get("reason") == "unloaded")
        assert client.is_server_ready()
        client.unload_model("nobody")
        with pytest.raises(InferenceServerException, match="failed to poll from model repository"):
            client.load_model("nobody")
        assert client.is_server_ready()
        assert not any(name == "nobody" for name, _ in index(server))


def test_a_model_that_was_never_loaded_has_a_name_only(
    explicit: tuple[Path, RunningServer],
) -> None:
    _, server = explicit
    assert index(server)["other", ""] == {"name": "other"}
    assert index(server)["adder", "1"] == {"name": "adder", "version": "1", "state": "READY"}
    _, ready = post(server, "/v2/repository/index", {"ready": True})
    assert [row["name"] for row in json.loads(ready)] == ["adder"]


@pytest.mark.parametrize("name", ["..", "%20", "..%2Fadder", "a%00b", "%2Fetc"])
def test_names_that_are_none(unchanged: tuple[Path, RunningServer], name: str) -> None:
    path, server = unchanged
    status, text = post(server, f"/v2/repository/models/{name}/load")
    assert status in (400, 404)
    assert str(path) not in text


def test_a_config_given_inline(explicit: tuple[Path, RunningServer], protocol: str) -> None:
    _, server = explicit
    text = {"backend": "onnxruntime", "max_batch_size": "16"}
    with connect(server, protocol) as client:
        client.load_model("adder", config=json.dumps(text))
        got = client.get_model_config("adder")
        got = got if isinstance(got, dict) else got.config
        size = got["max_batch_size"] if isinstance(got, dict) else got.max_batch_size
        assert size == 16
        assert ask(client) == (1, "1")
        client.load_model("adder")
        got = client.get_model_config("adder")
        got = got if isinstance(got, dict) else got.config
        assert (got["max_batch_size"] if isinstance(got, dict) else got.max_batch_size) == 64


def test_files_given_inline(explicit: tuple[Path, RunningServer], protocol: str) -> None:
    _, server = explicit
    with connect(server, protocol) as client:
        client.load_model(
            "sent", config=json.dumps({"max_batch_size": 8}), files={"file:7/model.onnx": adder(70)}
        )
        assert ask(client, "sent") == (70, "7")
        client.load_model(
            "adder",
            config=json.dumps({"max_batch_size": 8, "backend": "onnxruntime"}),
            files={"file:3/model.onnx": adder(30)},
        )
        assert ask(client) == (30, "3")
        client.load_model("adder")
        assert ask(client) == (1, "1")


BAD_OVERRIDES: dict[str, tuple[dict[str, str], str]] = {
    "no config": ({"file:1/model.onnx": "aaaa"}, "only together with a config"),
    "not base64": ({"config": "{}", "file:1/model.onnx": "%"}, "base64"),
    "config is not JSON": ({"config": "{"}, "config"),
    "unknown field": ({"config": '{"batch_size": 3}'}, "batch_size"),
    "a field of no effect": ({"config": '{"runtime": "x"}'}, "runtime"),
    "escaping": ({"config": "{}", "file:../../x": "aaaa"}, "inside the model"),
    "absolute": ({"config": "{}", "file:/etc/x": "aaaa"}, "inside the model"),
    "long": ({"config": "{}", "file:1/" + "x" * 300: "aaaa"}, "inside the model"),
    "a file inside a file": (
        {"config": "{}", "file:1/model.onnx": "aaaa", "file:1/model.onnx/x": "aaaa"},
        "cannot be read",
    ),
    "corrupt graph": (
        {"config": '{"backend": "onnxruntime"}', "file:1/model.onnx": "aaaa"},
        "cannot load",
    ),
}


@pytest.mark.parametrize("case", BAD_OVERRIDES)
def test_bad_overrides_leave_what_is_served(
    unchanged: tuple[Path, RunningServer], case: str
) -> None:
    path, server = unchanged
    parameters, told = BAD_OVERRIDES[case]
    status, text = post(server, "/v2/repository/models/adder/load", {"parameters": parameters})
    assert status >= 400
    assert told in text
    assert str(path) not in text
    assert "/tmp" not in text
    with connect(server, "http") as client:
        assert ask(client) == (1, "1")
        assert client.is_server_ready()


def test_a_broken_new_version_leaves_the_old_one_serving(
    explicit: tuple[Path, RunningServer],
) -> None:
    path, server = explicit
    write_version(path, "adder", 2, b"no graph")
    status, text = post(server, "/v2/repository/models/adder/load")
    assert status == 400
    assert "load failed for model 'adder': version 2 is at UNAVAILABLE state" in text
    with connect(server, "http") as client:
        assert ask(client) == (1, "1")
        assert client.is_server_ready()
    state = index(server)["adder", "2"]
    assert state["state"] == "UNAVAILABLE"
    assert "cannot load" in state["reason"]
    assert index(server)["adder", "1"]["state"] == "READY"


def test_version_policies(tmp_path: Path) -> None:
    policies = {
        "": ["4"],
        "version_policy { latest { num_versions: 2 } }": ["2", "4"],
        "version_policy { all { } }": ["1", "2", "4"],
        "version_policy { specific { versions: [1, 2] } }": ["1", "2"],
    }
    names = {policy: f"adder-{number}" for number, policy in enumerate(policies)}
    for policy, name in names.items():
        write_adder(tmp_path, name, 1, 2, 4, extra=policy)
        for ignored in ("03", "v5", "-6"):
            (tmp_path / name / ignored).mkdir()
    with serving(tmp_path) as server, connect(server, "grpc") as client:
        for policy, served in policies.items():
            name = names[policy]
            assert list(client.get_model_metadata(name).versions) == served
            assert ask(client, name)[1] == served[-1]
            for version in served:
                assert ask(client, name, version) == (float(version), version)


def test_several_repositories(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_adder(first, "one")
    write_adder(second, "two")
    with serving(first, "--model-repository", str(second)) as server:
        assert {name for name, _ in index(server)} == {"one", "two"}
    write_adder(second, "one")
    result = run_slipway(
        "serve", "--model-repository", str(first), "--model-repository", str(second)
    )
    assert result.returncode == 1
    assert "model 'one' is in several model repositories" in result.stderr


def test_without_explicit_control_callers_change_nothing(tmp_path: Path) -> None:
    write_adder(tmp_path)
    with serving(tmp_path) as server:
        for action in ("load", "unload"):
            status, text = post(server, f"/v2/repository/models/adder/{action}")
            assert (status, "not allowed" in text) == (503, True)


def test_polling(tmp_path: Path) -> None:
    write_adder(tmp_path)
    options = ("--model-control-mode", "poll", "--repository-poll-secs", "0.05")
    with serving(tmp_path, *options) as server, connect(server, "http") as client:
        write_version(tmp_path, "adder", 2)
        await_true(lambda: ask(client) == (2, "2"))
        write_adder(tmp_path, "late")
        await_true(lambda: client.is_model_ready("late"))
        write_version(tmp_path, "adder", 3, b"no graph")
        await_true(lambda: ("adder", "3") in index(server))
        assert ask(client) == (2, "2")
        (tmp_path / "late").rename(tmp_path / ".gone")
        await_true(lambda: not client.is_model_ready("late"))
        assert client.is_server_ready()


def test_a_config_is_made_from_the_graph(tmp_path: Path) -> None:
    (tmp_path / "bare" / "1").mkdir(parents=True)
    (tmp_path / "bare" / "1" / "model.onnx").write_bytes(adder(5))
    with serving(tmp_path) as server, connect(server, "http") as client:
        assert ask(client, "bare") == (5, "1")
        got = client.get_model_config("bare")
        assert (got["backend"], got["max_batch_size"]) == ("onnxruntime", 4)
        assert got["input"][0]["dims"] == [4]


def test_warmup(tmp_path: Path) -> None:
    warmup = """
    model_warmup [{ name: "zeros" batch_size: 3 count: 2
      inputs { key: "x" value { data_type: TYPE_FP32 dims: [4] zero_data: true } } }]
    """
    write_adder(tmp_path, extra=warmup)
    with serving(tmp_path) as server, connect(server, "http") as client:
        statistics = client.get_inference_statistics("adder")["model_stats"][0]
        assert (statistics["inference_count"], statistics["execution_count"]) == (0, 0)
    failing = warmup + 'parameters { key: "fail_every" value { string_value: "%d" } }'
    write_config(tmp_path, "adder", config(backend="fake", extra=failing % 3))
    assert run_slipway("check", str(tmp_path)).returncode == 0
    write_config(tmp_path, "adder", config(backend="fake", extra=failing % 2))
    result = run_slipway("check", str(tmp_path))
    assert result.returncode == 1
    assert "warm-up 'zeros' failed" in result.stdout


def test_reload_under_load(explicit: tuple[Path, RunningServer]) -> None:
    """No error, and no answer from another version than the one that signs it.

    RELOAD_SECONDS in the environment makes it longer.
    """
    path, server = explicit
    last = 1 + max(6, round(float(os.environ.get("RELOAD_SECONDS", "0")) / 0.2))
    stop = threading.Event()
    newest = [1]

    def keep_asking(protocol: str) -> Counter[str]:
        seen: Counter[str] = Counter()
        with connect(server, protocol) as client:
            while not stop.is_set():
                at_least = newest[0]
                value, version = ask(client)
                assert value == float(version)
                assert int(version) >= at_least
                seen[version] += 1
        return seen

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking, protocol) for protocol in ["http", "grpc"] * 2]
        with connect(server, "grpc") as control:
            for version in range(2, last + 1):
                write_version(path, "adder", version)
                control.load_model("adder")
                newest[0] = version
                time.sleep(0.2)
        stop.set()
        seen = sum((answers.result() for answers in asking), Counter())
    assert set(seen) == {str(version) for version in range(1, last + 1)}
    print(f"{sum(seen.values())} answers under {last - 1} reloads, each of its own version")


def test_what_was_accepted_before_an_unload_is_answered(tmp_path: Path) -> None:
    write_fake(tmp_path, "slow", delay_ms=400, max_batch_size=1, extra="")
    with (
        serving(tmp_path, *EXPLICIT, "--load-model", "*") as server,
        ThreadPoolExecutor(4) as pool,
    ):
        clients = [connect(server, "http") for _ in range(4)]
        answers = [pool.submit(ask, client, "slow") for client in clients]
        time.sleep(0.2)
        post(server, "/v2/repository/models/slow/unload")
        assert index(server)["slow", "1"]["state"] == "UNLOADING"
        assert [answer.result() for answer in answers] == [(0, "1")] * 4
        await_true(lambda: index(server)["slow", "1"]["state"] == "UNAVAILABLE")
        for client in clients:
            client.close()


def write_whole(repository: Path, name: str, member: str, extra: str = "") -> None:
    """An ensemble of one step."""
    write_config(
        repository,
        name,
        f"""
        platform: "ensemble"
        max_batch_size: 8
        input [ {{ name: "x" data_type: TYPE_FP32 dims: [4] }} ]
        output [ {{ name: "y" data_type: TYPE_FP32 dims: [4] }} ]
        ensemble_scheduling {{ step [ {{
          model_name: "{member}" model_version: -1
          input_map {{ key: "x" value: "x" }} output_map {{ key: "y" value: "y" }}
        }} ] }}
        {extra}
        """,
    )
    (repository / name / "1").mkdir(exist_ok=True)


def test_an_ensemble_stands_and_falls_with_its_members(tmp_path: Path) -> None:
    write_whole(tmp_path, "whole", "adder")
    write_adder(tmp_path)
    with serving(tmp_path, *EXPLICIT) as server, connect(server, "http") as client:
        client.load_model("whole")
        assert ask(client, "whole") == (1, "1")
        client.unload_model("adder")
        with pytest.raises(InferenceServerException, match="'whole' has no available versions"):
            ask(client, "whole")
        assert "the model is not loaded" in index(server)["whole", "1"]["reason"]
        client.load_model("adder")
        await_true(lambda: client.is_model_ready("whole"))
        write_adder(tmp_path, "adder", 9, dims="[5]")
        with pytest.raises(InferenceServerException):
            client.load_model("adder")
        assert ask(client, "whole") == (1, "1")


def test_the_end_of_a_server_is_no_error_of_an_ensemble(tmp_path: Path) -> None:
    write_whole(tmp_path, "whole", "adder")
    write_adder(tmp_path)
    with serving(tmp_path) as server:
        assert index(server)["whole", "1"]["state"] == "READY"
    assert server.events("stopped")
    assert not [event for event in server.log if event.get("level") == "error"]


def test_an_ensemble_that_waits_for_a_member_is_loaded_when_that_comes(tmp_path: Path) -> None:
    write_whole(tmp_path, "whole", "adder")
    options = ("--model-control-mode", "poll", "--repository-poll-secs", "0.05")
    with (
        serving(tmp_path, *options, "--exit-on-error", "false") as server,
        connect(server, "http") as client,
    ):
        assert not client.is_server_ready()
        write_adder(tmp_path)
        await_true(lambda: client.is_server_ready())
        assert ask(client, "whole") == (1, "1")


def test_an_ensemble_does_not_answer_with_what_a_member_said_before(tmp_path: Path) -> None:
    write_adder(tmp_path)
    write_whole(tmp_path, "whole", "adder", "response_cache { enable: true }")
    with (
        serving(tmp_path, *EXPLICIT, "--load-model", "*") as server,
        connect(server, "http") as client,
    ):
        assert [ask(client, "whole")[0] for _ in range(2)] == [1, 1]
        write_version(tmp_path, "adder", 2)
        client.load_model("adder")
        assert ask(client, "whole")[0] == 2


def test_models_cannot_go_round_in_circles(tmp_path: Path) -> None:
    write_adder(tmp_path)
    write_whole(tmp_path, "whole", "adder")
    with (
        serving(tmp_path, *EXPLICIT, "--load-model", "*") as server,
        connect(server, "http") as client,
    ):
        write_whole(tmp_path, "adder", "whole")
        with pytest.raises(InferenceServerException, match="failed"):
            client.load_model("adder")
        assert ask(client, "whole") == (1, "1")


def test_a_version_that_was_broken_in_place_says_so(explicit: tuple[Path, RunningServer]) -> None:
    path, server = explicit
    (path / "adder" / "1" / "model.onnx").write_bytes(b"no graph")
    assert post(server, "/v2/repository/models/adder/load")[0] == 400
    state = index(server)["adder", "1"]
    assert state["state"] == "READY"
    assert "cannot load" in state["reason"]
    assert str(path) not in state["reason"]


def test_names_that_come_and_go_leave_nothing_behind(explicit: tuple[Path, RunningServer]) -> None:
    _, server = explicit
    with connect(server, "http") as client:
        for number in range(20):
            name = f"passing-{number}"
            config = json.dumps({"max_batch_size": 8})
            client.load_model(name, config=config, files={"file:1/model.onnx": adder(number)})
            assert ask(client, name)[0] == number
            client.unload_model(name)
            with pytest.raises(InferenceServerException):
                client.load_model(f"nowhere-{number}")
        long = "x" * 300
        with pytest.raises(InferenceServerException, match="failed to poll"):
            client.load_model(long)
    await_true(lambda: {name for name, _ in index(server)} == {"adder", "other"})
    _, text = call(server.metrics_port, "GET", "/metrics")
    assert b"passing" not in text
    assert b"nowhere" not in text


def test_a_sequence_ends_where_it_began(tmp_path: Path) -> None:
    sequences = "sequence_batching { max_sequence_idle_microseconds: 5000000 oldest { } }"
    write_adder(tmp_path, extra=sequences)
    with (
        serving(tmp_path, *EXPLICIT, "--load-model", "*") as server,
        connect(server, "grpc") as client,
    ):

        def step(**flags: bool) -> float:
            tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
            result = client.infer("adder", [tensor], sequence_id=7, **flags)
            return float(result.as_numpy("y")[0, 0])

        assert step(sequence_start=True) == 1
        write_version(tmp_path, "adder", 2)
        client.load_model("adder")
        assert index(server)["adder", "1"]["state"] == "UNLOADING"
        assert step() == 1
        assert step(sequence_end=True) == 1
        assert step(sequence_start=True, sequence_end=True) == 2
        await_true(lambda: index(server)["adder", "1"]["state"] == "UNAVAILABLE")


def test_what_is_no_text_is_no_model(tmp_path: Path) -> None:
    write_adder(tmp_path)
    (Path(os.fsdecode(bytes(tmp_path) + b"/\xff\xfe"))).mkdir()
    with serving(tmp_path) as server:
        assert {name for name, _ in index(server)} == {"adder"}


def test_links_that_go_round_in_circles(tmp_path: Path) -> None:
    write_adder(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "adder" / "1" / name).symlink_to("..")
    assert run_slipway("check", str(tmp_path), timeout_s=20).returncode == 0


def test_sigterm_while_it_loads(tmp_path: Path) -> None:
    warmup = """
    model_warmup [{ name: "long" batch_size: 1 count: 1000
      inputs { key: "x" value { data_type: TYPE_FP32 dims: [4] zero_data: true } } }]
    """
    write_fake(tmp_path, "slow", delay_ms=1000, extra=warmup)
    with serving(tmp_path, *EXPLICIT, "--exit-timeout-secs", "2") as server:
        asking = threading.Thread(
            target=lambda: post(server, "/v2/repository/models/slow/load"), daemon=True
        )
        asking.start()
        await_true(lambda: index(server).get(("slow", "1"), {}).get("state") == "LOADING")
        server.process.terminate()
        server.process.wait(8)

    command = [sys.executable, "-m", "serving", "serve", "--model-repository", str(tmp_path)]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen([*command, *ports], stderr=subprocess.DEVNULL) as process:
        time.sleep(3)
        process.terminate()
        process.wait(5)
