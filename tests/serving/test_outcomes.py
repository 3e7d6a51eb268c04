"""Every request has one outcome, its caller hears of it in time, and the counters agree."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.support import (
    RunningServer,
    await_true,
    call,
    metric,
    serving,
    write_fake,
)

pytestmark = pytest.mark.alone

WAITS = """dynamic_batching {
  preferred_batch_size: 2
  max_queue_delay_microseconds: 3000000
  default_queue_policy { allow_timeout_override: true }
}"""


def body(**parameters: object) -> bytes:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0] * 4}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


def ask(server: RunningServer, model: str, **parameters: object) -> tuple[int, bytes]:
    path = f"/v2/models/{model}/infer"
    return call(server.http_port, "POST", path, body(**parameters))


def outcomes(server: RunningServer, model: str) -> dict[str, int]:
    names = ("answered", "invalid", "refused", "expired", "cancelled", "failed")
    return {
        name: int(metric(server, "slipway_requests_total", model=model, outcome=name))
        for name in names
    }


def test_a_timeout_is_heard_of_in_time(tmp_path: Path) -> None:
    """Of 200 ms, behind a queue that would take 3 s; and a gRPC deadline of the same."""
    write_fake(tmp_path, "patient", extra=WAITS)
    with serving(tmp_path) as server:

        def left() -> int:
            return outcomes(server, "patient")["cancelled"]

        begun = time.monotonic()
        status, text = ask(server, "patient", timeout=200_000)
        took = time.monotonic() - begun
        assert (status, b"Request timeout expired" in text) == (503, True)
        print(f"a timeout of 200 ms behind a queue of 3 s was answered after {took * 1e3:.0f} ms")
        assert 0.2 <= took < 0.3

        tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
        with (
            tritonclient.grpc.InferenceServerClient(server.grpc) as client,
            # Who hears it first, the caller's clock or the server's, is a matter of luck.
            pytest.raises(InferenceServerException, match=r"Deadline Exceeded|timeout expired"),
        ):
            client.infer("patient", [tensor], client_timeout=0.2)
        # So is whether the server hears that the caller has left before its own clock runs out.
        await_true(lambda: outcomes(server, "patient")["expired"] + left() == 2)
        assert metric(server, "nv_inference_pending_request_count", model="patient") == 0
        assert metric(server, "nv_inference_exec_count", model="patient") == 0


def test_a_timeout_behind_a_busy_instance_is_heard_of_in_time(tmp_path: Path) -> None:
    extra = "dynamic_batching { default_queue_policy { allow_timeout_override: true } }"
    write_fake(tmp_path, "busy", delay_ms=1500, max_batch_size=1, extra=extra)
    with serving(tmp_path) as server, ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(ask, server, "busy") for _ in range(2)]
        await_true(lambda: metric(server, "nv_inference_pending_request_count") == 1)
        begun = time.monotonic()
        assert ask(server, "busy", timeout=200_000)[0] == 503
        assert 0.2 <= time.monotonic() - begun < 0.3
        assert [answer.result()[0] for answer in ahead] == [200, 200]


async def leave(server: RunningServer, model: str, after_s: float) -> bytes:
    """Send a whole request, close the connection, and return what had been answered by then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
    content = body()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}"
    writer.write(head.encode() + b"\r\n\r\n" + content)
    await writer.drain()
    answer = b""
    with contextlib.suppress(TimeoutError):
        answer = await asyncio.wait_for(reader.read(100_000), after_s)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_of_a_hundred_who_leave_at_most_one_batch_is_computed(tmp_path: Path) -> None:
    write_fake(tmp_path, "slow", delay_ms=400, max_batch_size=4)
    with serving(tmp_path) as server:
        await asyncio.gather(*(leave(server, "slow", after_s=0.2) for _ in range(100)))
        await asyncio.to_thread(await_true, lambda: sum(outcomes(server, "slow").values()) == 100)
        await asyncio.sleep(1)
        rows = metric(server, "nv_inference_count", model="slow")
        print(f"of 100 requests whose callers left, {rows:.0f} rows were computed")
        assert rows <= 4
        assert outcomes(server, "slow")["cancelled"] >= 96


async def test_the_counters_are_what_the_callers_saw(tmp_path: Path) -> None:
    """1,000 requests of every kind at once, over HTTP and gRPC; the sums are exact."""
    policy = """dynamic_batching {
      max_queue_delay_microseconds: 1000
      default_queue_policy { max_queue_size: 40 allow_timeout_override: true }
    }"""
    write_fake(tmp_path, "mixed", delay_ms=10, fail_every=3, max_batch_size=4, extra=policy)
    seen: Counter[str] = Counter()
    dice = random.Random(1)
    with serving(tmp_path) as server:
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(base_url=f"http://{server.http}", limits=limits, timeout=60) as http,
            tritonclient.grpc.aio.InferenceServerClient(server.grpc) as rpc,
        ):

            async def over_http(kind: str) -> None:
                if kind == "leaving":
                    answer = await leave(server, "mixed", after_s=dice.random() / 50)
                    if not answer:
                        seen["left"] += 1
                        return
                    status, text = int(answer.split()[1]), answer.decode()
                else:
                    content = b"{" if kind == "invalid" else body(**timeout_of(kind))
                    response = await http.post("/v2/models/mixed/infer", content=content)
                    status, text = response.status_code, response.text
                seen[_HTTP[status](text)] += 1

            async def over_grpc(kind: str) -> None:
                tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
                tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
                unknown = [tritonclient.grpc.InferRequestedOutput("nothing")]
                wanted = unknown if kind == "invalid" else None
                try:
                    await rpc.infer("mixed", [tensor], outputs=wanted, **timeout_of(kind))
                    seen["answered"] += 1
                except InferenceServerException as error:
                    seen[_GRPC[str(error.status())](str(error))] += 1

            async def one(number: int) -> None:
                await asyncio.sleep(dice.random() * 3)
                kind = dice.choice(("plain", "plain", "plain", "invalid", "hurried", "leaving"))
                await (over_http(kind) if number % 2 or kind == "leaving" else over_grpc(kind))

            await asyncio.gather(*(one(number) for number in range(1000)))
        await asyncio.to_thread(await_true, lambda: sum(outcomes(server, "mixed").values()) == 1000)
        counted = outcomes(server, "mixed")
        print(f"callers saw {dict(seen)}; the server counted {counted}")
        assert sum(seen.values()) == 1000
        for outcome in ("invalid", "refused", "expired", "failed"):
            # Who left may have left after the server had decided.
            assert seen[outcome] <= counted[outcome] <= seen[outcome] + seen["left"], outcome
            assert seen[outcome] > 0, outcome
        assert counted["cancelled"] <= seen["left"]
        assert counted["cancelled"] > 0
        late = seen["left"] - counted["cancelled"]
        known = ("answered", "invalid", "refused", "expired", "failed")
        assert sum(counted[outcome] - seen[outcome] for outcome in known) == late

        reasons = {
            reason: metric(server, "nv_inference_request_failure", model="mixed", reason=reason)
            for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
        }
        assert reasons == {
            "REJECTED": counted["refused"] + counted["expired"],
            "CANCELED": counted["cancelled"],
            "BACKEND": counted["failed"],
            "OTHER": counted["invalid"],
        }
        _, text = call(server.http_port, "GET", "/v2/models/mixed/stats")
        [statistics] = json.loads(text)["model_stats"]
        assert statistics["inference_stats"]["success"]["count"] == counted["answered"]
        assert statistics["inference_stats"]["fail"]["count"] == 1000 - counted["answered"]


def timeout_of(kind: str) -> dict[str, int]:
    return {"timeout": 3000} if kind == "hurried" else {}


def _unserved(text: str) -> str:
    return "expired" if "timeout expired" in text else "refused"


# What a status and its text say of a request's outcome.
_HTTP = {
    200: lambda text: "answered",
    400: lambda text: "invalid",
    500: lambda text: "failed",
    503: _unserved,
}
_GRPC = {
    str(grpc.StatusCode.INVALID_ARGUMENT): _HTTP[400],
    str(grpc.StatusCode.INTERNAL): _HTTP[500],
    str(grpc.StatusCode.UNAVAILABLE): _unserved,
}
