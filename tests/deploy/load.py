"""Requests of every kind, and what each of them has to be counted as."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc

from tests.conftest import SHIPPED
from tests.support import RunningServer, call, write_fake, write_model

Counts = Counter[tuple[str, str, str]]
"""Model, front and outcome -> requests."""

NARROW = "dynamic_batching { default_queue_policy { max_queue_size: 2 } }"
RAGGED = """
dynamic_batching {
  preferred_batch_size: 2
  max_queue_delay_microseconds: 5000000
  default_queue_policy { max_queue_size: 20 allow_timeout_override: true }
}
response_cache { enable: true }
"""
TOKENS = 8


def write_repository(repository: Path) -> None:
    write_model(repository, "double", operation="Add")
    write_model(repository, "spare")
    write_fake(repository, "failing", fail_every=1)
    write_fake(repository, "narrow", delay_ms=200, max_batch_size=1, extra=NARROW)
    ragged = write_fake(repository, "ragged", dims="[-1]", extra=RAGGED) / "config.pbtxt"
    ragged.write_text(ragged.read_text().replace("[-1]", "[-1] allow_ragged_batch: true", 1))
    for name in ("digits", "translator"):
        (repository / name).symlink_to(SHIPPED / name)


def send(server: RunningServer, value: float) -> Counts:
    """Some requests of every kind with this value in them; returns once each has its outcome."""
    expected: Counts = Counter()
    for _ in range(7):
        assert _infer(server, "double") == 200
    assert _infer(server, "double", parameters={"priority": "first"}) == 400
    _infer_grpc(server, "double", times=3)
    expected["double", "v2_http", "answered"] += 7
    expected["double", "v2_http", "invalid"] += 1
    expected["double", "v2_grpc", "answered"] += 3

    for _ in range(2):
        assert _infer(server, "failing") == 500
    expected["failing", "v2_http", "failed"] += 2

    # Two of different length share a batch, and one of them is asked again, of the cache.
    with ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(_infer, server, "ragged", [value] * length) for length in (3, 10)]
        assert [each.result() for each in begun] == [200, 200]
    assert _infer(server, "ragged", [value] * 3) == 200
    assert _infer(server, "ragged", parameters={"priority": "first"}) == 400
    expected["ragged", "v2_http", "answered"] += 3
    expected["ragged", "v2_http", "invalid"] += 1
    assert _infer(server, "ragged", [0.0, value], parameters={"timeout": 1000}) == 503
    expected["ragged", "v2_http", "expired"] += 1
    for action in ("unload", "load"):
        path = f"/v2/repository/models/ragged/{action}"
        assert call(server.http_port, "POST", path)[0] == 200

    # One runs, two may wait.
    with ThreadPoolExecutor(8) as pool:
        statuses = Counter(pool.map(lambda _: _infer(server, "narrow"), range(8)))
    assert set(statuses) == {200, 503}
    expected["narrow", "v2_http", "answered"] += statuses[200]
    expected["narrow", "v2_http", "refused"] += statuses[503]

    picture = (SHIPPED / "digits" / "1" / "example.png").read_bytes()
    assert call(server.http_port, "POST", "/models/digits", picture)[0] == 200
    expected["digits", "task", "answered"] += 1

    for way in ("generate", "generate_stream", "generate_stream"):
        text = {
            "text_input": ">>de<< 2 days ago",
            "max_new_tokens": TOKENS,
            "min_new_tokens": TOKENS,
        }
        path = f"/v2/models/translator/{way}"
        status, answer = call(server.http_port, "POST", path, json.dumps(text).encode())
        assert (status, b"error" in answer) == (200, False), answer
    expected["translator", "v2_http", "answered"] += 3

    assert _infer(server, "nobody") == 404
    return expected


def _infer(
    server: RunningServer, model: str, data: Sequence[float] = (0.5,) * 4, **document: Any
) -> int:
    tensor = {"name": "x", "shape": [1, len(data)], "datatype": "FP32", "data": [*data]}
    body = json.dumps({"inputs": [tensor], **document}).encode()
    return call(server.http_port, "POST", f"/v2/models/{model}/infer", body)[0]


def _infer_grpc(server: RunningServer, model: str, *, times: int) -> None:
    tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        for _ in range(times):
            client.infer(model, [tensor])
