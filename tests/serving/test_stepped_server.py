"""Models that answer in steps, behind every front of a real server."""

from __future__ import annotations

import http.client
import json
import queue
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.grpc import service_pb2

from tests.serving.http2_peer import Peer, head
from tests.stepped import write_language_model, write_translator
from tests.support import RunningServer, await_true, call, metric, run_slipway, serving

SLOTS = 4
SLOW = """
parameters { key: "slots" value { string_value: "4" } }
dynamic_batching {
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy { max_queue_size: 50 allow_timeout_override: true }
}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("stepped")
    write_translator(repository, "translator")
    write_language_model(repository, "writer", settings=SLOW)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    with serving(repository) as server:
        yield server


def generate(server: RunningServer, model: str, document: dict[str, Any]) -> Any:
    status, body = call(
        server.http_port, "POST", f"/v2/models/{model}/generate", json.dumps(document).encode()
    )
    answer = json.loads(body)
    assert status == 200, answer
    return answer["text_output"]


def events(server: RunningServer, model: str, document: dict[str, Any]) -> Iterator[Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)) as caller:
        body = json.dumps(document)
        caller.request("POST", f"/v2/models/{model}/generate_stream", body)
        response = caller.getresponse()
        assert response.status == 200
        for line in response:
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


def ask_grpc(client: Any, text: bytes, **settings: Any) -> Any:
    return client.infer("writer", [tensor(grpcclient, text)], **settings)


def tensor(module: Any, *texts: bytes) -> Any:
    value = module.InferInput("text_input", [len(texts), 1], "BYTES")
    value.set_data_from_numpy(np.array([[text] for text in texts], np.object_))
    return value


def test_the_same_text_by_every_way(server: RunningServer) -> None:
    asked = {"text_input": "the dog", "max_new_tokens": 20}
    whole = generate(server, "writer", asked)
    parts = [event["text_output"] for event in events(server, "writer", asked)]
    assert len(parts) > 5
    assert "".join(parts) == whole
    parameters = {"max_new_tokens": 20}
    answers = []
    with httpclient.InferenceServerClient(server.http) as client:
        result = client.infer("writer", [tensor(httpclient, b"the dog")], parameters=parameters)
        answers.append(result.as_numpy("text_output")[0, 0])
    with grpcclient.InferenceServerClient(server.grpc) as client:
        answers.append(
            ask_grpc(client, b"the dog", parameters=parameters).as_numpy("text_output")[0, 0]
        )
        found: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: found.put(error or result))
        client.async_stream_infer(
            "writer",
            [tensor(grpcclient, b"the dog")],
            parameters=parameters,
            enable_empty_final_response=True,
        )
        streamed = []
        while True:
            answer = found.get(timeout=30)
            response = answer.get_response()
            if response.outputs:
                streamed.append(answer.as_numpy("text_output")[0, 0])
            if response.parameters["triton_final_response"].bool_param:
                break
        answers.append(b"".join(streamed))
    # JSON has no half characters, so only its beginning can be compared.
    assert [answer.decode(errors="replace") for answer in answers] == [whole] * 3


def test_many_texts_in_one_request(server: RunningServer) -> None:
    texts = [b"the dog", b"a", b"one two three four", b"x"] * 3
    with httpclient.InferenceServerClient(server.http) as client:
        together = client.infer(
            "writer", [tensor(httpclient, *texts)], parameters={"max_new_tokens": 5}
        ).as_numpy("text_output")
        alone = [
            client.infer(
                "writer", [tensor(httpclient, text)], parameters={"max_new_tokens": 5}
            ).as_numpy("text_output")[0, 0]
            for text in texts[:4]
        ]
    assert together[:, 0].tolist() == alone * 3


def test_a_stream_is_for_one_text(server: RunningServer) -> None:
    body = json.dumps({"text_input": ["a", "b"]}).encode()
    status, answer = call(server.http_port, "POST", "/v2/models/writer/generate_stream", body)
    assert status == 400
    assert "one row, and this request has 2" in json.loads(answer)["error"]


def test_bad_requests_name_what_is_wrong(server: RunningServer) -> None:
    for document, problem in (
        ({"text_input": "a", "max_new_tokens": 0}, "parameter 'max_new_tokens'"),
        ({"text_input": "a", "max_new_tokens": 5000}, "expected at most 127 after this input"),
        ({"text_input": "a", "num_beans": 4}, "parameter 'num_beans' is not known"),
        ({"text_input": "a", "num_beams": 8}, "this request needs 8 slots"),
        ({"text_input": "a " * 200}, "the model reads at least 1 and at most 127"),
        ({"text_input": ""}, "the input has 0 tokens"),
        ({"text": "a"}, "missing required input"),
    ):
        status, body = call(
            server.http_port, "POST", "/v2/models/writer/generate", json.dumps(document).encode()
        )
        print(status, json.loads(body)["error"])
        assert status == 400
        assert problem in json.loads(body)["error"]


def test_who_leaves_is_generated_for_no_more(server: RunningServer) -> None:
    before = metric(server, "slipway_requests_total", model="writer", outcome="cancelled")
    body = json.dumps({"text_input": "the dog", "max_new_tokens": 120}).encode()
    request = b"POST /v2/models/writer/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d"
    for _ in range(SLOTS):
        with closing(socket.create_connection(("127.0.0.1", server.http_port))) as caller:
            caller.sendall(request % len(body) + b"\r\n\r\n" + body)
            assert caller.recv(20).startswith(b"HTTP/1.1 200")
    await_true(lambda: metric(server, "slipway_active_slots", model="writer") == 0)
    gone = metric(server, "slipway_requests_total", model="writer", outcome="cancelled") - before
    # Small models are fast: some may have been answered before their caller left.
    assert 0 < gone <= SLOTS


def test_a_thousand_beyond_capacity_lose_none(server: RunningServer) -> None:
    """Four slots, fifty may wait: all others are refused, and the counters say the same."""
    names = {"answered": 200, "refused": 503}
    before = {
        name: metric(server, "slipway_requests_total", model="writer", outcome=name)
        for name in names
    }
    body = json.dumps({"text_input": "the dog", "max_new_tokens": 30}).encode()
    path = "/v2/models/writer/generate"

    def ask(_: int) -> int:
        return call(server.http_port, "POST", path, body)[0]

    with ThreadPoolExecutor(100) as threads:
        statuses = list(threads.map(ask, range(1000)))
    assert set(statuses) <= {200, 503}
    for name, status in names.items():
        now = metric(server, "slipway_requests_total", model="writer", outcome=name)
        assert now - before[name] == statuses.count(status)
    assert statuses.count(200) > 50


def test_priorities_and_timeouts_hold(server: RunningServer) -> None:
    with (
        grpcclient.InferenceServerClient(server.grpc) as client,
        ThreadPoolExecutor(40) as threads,
    ):
        long = {"max_new_tokens": 120}
        waiting = [threads.submit(ask_grpc, client, b"a", parameters=long) for _ in range(30)]
        await_true(lambda: metric(server, "nv_inference_pending_request_count") > 10)
        first = ask_grpc(client, b"a", priority=1, parameters={"max_new_tokens": 1})
        assert first.as_numpy("text_output").shape == (1, 1)
        still = sum(not future.done() for future in waiting)
        print(f"{still} of 30 were still waiting or running")
        assert still > 0
        for future in waiting:
            future.result()


def test_a_deadline_ends_a_text_that_is_being_written(server: RunningServer) -> None:
    def ended() -> float:
        # The call's clock and the scheduler's race, and the call's takes the text back.
        return sum(
            metric(server, "slipway_requests_total", model="writer", outcome=outcome)
            for outcome in ("expired", "cancelled")
        )

    before = ended()
    message = service_pb2.ModelInferRequest(model_name="writer")
    message.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1])
    message.raw_input_contents.append(struct.pack("<I", 1) + b"a")
    message.parameters["max_new_tokens"].int64_param = 120
    with (
        grpcclient.InferenceServerClient(server.grpc) as client,
        ThreadPoolExecutor(40) as threads,
        # It says its deadline and then waits for the server's word, as other clients do not.
        Peer(server.grpc_port) as caller,
    ):
        long = {"max_new_tokens": 120}
        load = [threads.submit(ask_grpc, client, b"a", parameters=long) for _ in range(40)]
        answer = caller.call(message.SerializeToString(), head(grpc_timeout="20m"))
        assert answer.status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        for future in load:
            future.result()
    await_true(lambda: ended() == before + 1)


def test_steps_are_measured(server: RunningServer) -> None:
    made = metric(server, "slipway_tokens_total", model="translator", kind="made")
    first = metric(server, "slipway_first_event_seconds_count", model="translator")
    between = metric(server, "slipway_between_events_seconds_count", model="translator")
    asked = {"text_input": ">>de<< the dog", "max_new_tokens": 12}
    parts = list(events(server, "translator", asked))
    assert metric(server, "slipway_first_event_seconds_count", model="translator") == first + 1
    now = metric(server, "slipway_between_events_seconds_count", model="translator")
    assert now == between + len(parts) - 1
    grown = metric(server, "slipway_tokens_total", model="translator", kind="made") - made
    assert len(parts) <= grown <= 12
    assert metric(server, "slipway_step_duration_seconds_count", model="translator") >= grown
    assert metric(server, "slipway_step_memory_bytes", model="translator") > 0


def test_sigterm_lets_what_is_being_written_end(repository: Path) -> None:
    with serving(repository) as server:
        asked = {"text_input": "the dog", "max_new_tokens": 100}
        whole = generate(server, "writer", asked)
        with ThreadPoolExecutor(20) as threads:
            answers = [threads.submit(generate, server, "writer", asked) for _ in range(20)]
            await_true(lambda: metric(server, "slipway_active_slots", model="writer") > 0)
            server.process.terminate()
            assert {answer.result() for answer in answers} == {whole}
        assert server.process.wait(20) == 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ('parameters { key: "slots" value { string_value: "many" } }', "parameters slots must be"),
        ("instance_group { count: 2 kind: KIND_CPU }", "instance_group must have one instance"),
        ("dynamic_batching { preferred_batch_size: 8 }", "preferred_batch_size has no effect"),
        ("response_cache { enable: true }", "response_cache"),
    ],
)
def test_an_operators_mistake_stops_the_start(
    repository: Path, tmp_path: Path, settings: str, problem: str
) -> None:
    (tmp_path / "models").mkdir()
    model = tmp_path / "models/writer"
    model.mkdir()
    (model / "1").symlink_to(repository / "writer/1")
    text = (repository / "writer/config.pbtxt").read_text().replace(SLOW, settings)
    (model / "config.pbtxt").write_text(text)
    done = run_slipway("check", str(tmp_path / "models"))
    print(done.stdout + done.stderr)
    assert done.returncode == 1
    assert problem in done.stdout + done.stderr


@pytest.mark.parametrize("file", ["generation.json", "decoder.onnx", "tokenizer.json"])
def test_a_missing_file_is_named(repository: Path, tmp_path: Path, file: str) -> None:
    version = tmp_path / "models/writer/1"
    version.mkdir(parents=True)
    for path in (repository / "writer/1").iterdir():
        if path.name != file:
            (version / path.name).symlink_to(path)
    text = (repository / "writer/config.pbtxt").read_text()
    (version.parent / "config.pbtxt").write_text(text)
    done = run_slipway("check", str(tmp_path / "models"))
    print(done.stdout + done.stderr)
    assert done.returncode == 1
    assert file in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
