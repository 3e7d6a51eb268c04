"""Serve the shipped models, send each one real input in every way, print a table, stop.

Each version directory holds an `example` file, a real input that the model never learned from,
and `example.json`, which says what answer is right, and with which parameters it is asked for. A
picture is right if the model `digits` reads in it what it is to show.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import tritonclient.grpc
import tritonclient.http

from serving.pbtxt import read_config
from serving.repository import ModelVersion, Repositories, versions
from serving.tasks import File, LongTask, Question, Task, load_task
from serving.types import DATATYPES

ROOT = Path(__file__).parent.parent
REPEATS = 20
READER = "digits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repo")
    repository = parser.parse_args().model_repository
    rows = []
    with served(repository) as (http_port, grpc_port):
        for name in Repositories([repository]).names():
            for model in versions(repository / name, read_config(repository / name)):
                rows += list(ask(model, http_port, grpc_port))
    show(rows)
    if not all(right for *_, right in rows):
        raise SystemExit("an answer is wrong")


@contextmanager
def served(repository: Path) -> Iterator[tuple[int, int]]:
    """`slipway serve` on free ports."""
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "serving", "serve", "--model-repository", str(repository)]
    process = subprocess.Popen([*command, *ports], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            event: dict[str, Any] = (
                json.loads(line) if line.startswith("{") else {"event": line.strip()}
            )
            print(*(f"{key}={value}" for key, value in event.items() if key != "timestamp"))
            if event["event"] == "serving":
                yield event["http_port"], event["grpc_port"]
                break
        else:
            raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.communicate(timeout=30)


def ask(model: ModelVersion, http_port: int, grpc_port: int) -> Iterator[tuple[Any, ...]]:
    """Send a model its example by each way in; yields one row of the table for each."""
    name = model.config.name
    (example,) = model.directory.glob("example.[!j]*")
    body = example.read_bytes()
    document = json.loads((model.directory / "example.json").read_text())
    expected, parameters = document["answer"], document.get("parameters", {})
    assert model.config.task is not None
    task = load_task(model.config.task, model.directory)
    question = task.preprocess(body, task.Parameters(**parameters))

    http_connection = http.client.HTTPConnection("127.0.0.1", http_port)
    http_client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{http_port}")
    grpc_client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}")
    ways: dict[str, Callable[[], Any]] = {
        f"POST /models/{name}": lambda: post(http_connection, name, body, parameters),
        "v2 over HTTP": lambda: infer(tritonclient.http, http_client, name, question, task),
        "v2 over gRPC": lambda: infer(tritonclient.grpc, grpc_client, name, question, task),
    }
    for way, call in ways.items():
        first, answer = timed(call)
        median = statistics.median(timed(call)[0] for _ in range(REPEATS))
        if isinstance(answer, File):
            answer = post(http_connection, READER, answer.content, {})
        said, shown = told(answer)
        yield name, way, shown, expected, first, median, said == expected
    http_connection.close()
    http_client.close()
    grpc_client.close()


def told(answer: Any) -> tuple[str, str]:
    """What a model answered first or only, and how the table has it."""
    first: dict[str, Any] = answer[0] if isinstance(answer, list) else answer
    if "label" in first:
        return first["label"], f"{first['label']} ({first['score']:.3f})"
    text, *_ = first.values()
    return text, text


def post(
    connection: http.client.HTTPConnection, name: str, body: bytes, parameters: dict[str, Any]
) -> Any:
    headers = {}
    if parameters:
        body = json.dumps({"inputs": body.decode(), "parameters": parameters}).encode()
        headers["Content-Type"] = "application/json"
    connection.request("POST", f"/models/{name}", body, headers)
    response = connection.getresponse()
    content, media_type = response.read(), response.getheader("Content-Type", "")
    if response.status != 200:
        raise SystemExit(f"{name}: {response.status} {content.decode()}")
    return json.loads(content) if media_type == "application/json" else File(content, media_type)


def infer(module: Any, client: Any, name: str, question: Question, task: Task) -> Any:
    """Ask in protocol v2: one request, or a sequence of them to a model that hears live."""
    pieces = (question.tensors, *question.further)
    sequence_id = uuid4().hex
    parts = []
    for number, tensors in enumerate(pieces, 1):
        inputs = []
        for tensor_name, value in tensors.items():
            tensor = module.InferInput(tensor_name, list(value.shape), DATATYPES[value.dtype])
            tensor.set_data_from_numpy(value)
            inputs.append(tensor)
        sequence: dict[str, Any] = {}
        if question.in_sequence:
            sequence["sequence_id"] = sequence_id
            sequence["sequence_start"] = number == 1
            sequence["sequence_end"] = number == len(pieces)
        result = client.infer(name, inputs, parameters=dict(question.parameters), **sequence)
        parts.append({spec.name: result.as_numpy(spec.name) for spec in task.outputs})
    if isinstance(task, LongTask):
        return task.conclude(parts, question)
    [outputs] = parts
    return task.postprocess(outputs, question)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    answer = call()
    return (time.perf_counter() - started) * 1e3, answer


def show(rows: list[tuple[Any, ...]]) -> None:
    header = ("model", "way", "answer", "right answer", "first ms", f"median of {REPEATS}, ms", "")
    lines = [header] + [
        (*row[:4], f"{row[4]:.2f}", f"{row[5]:.2f}", "ok" if row[6] else "WRONG") for row in rows
    ]
    widths = [max(len(str(line[column])) for line in lines) for column in range(len(header))]
    print()
    for line in lines:
        cells = (str(cell).ljust(width) for cell, width in zip(line, widths, strict=True))
        print(re.sub(r"\s+$", "", "  ".join(cells)))


if __name__ == "__main__":
    main()
