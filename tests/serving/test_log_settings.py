from __future__ import annotations

import json
import os
import subprocess
import sys
import timeit
from pathlib import Path
from typing import Any

import tritonclient.http

from serving.observability.request_log import log_request
from serving.observability.totals import Outcome
from serving.types import InferRequest, Stamps
from tests.support import run_slipway, serving, write_model

SCRIPT = """
import sys, numpy as np
from serving.observability.logging import LogSettings
from serving.observability.request_log import log_request
from serving.observability.totals import Outcome
from serving.types import InferRequest, Stamps

settings = LogSettings(log_file=sys.argv[1])
stamps = Stamps(received=1, queued=2, batched=3.5, started=3.75, computed=4, answered=5)
request = InferRequest("m", {"x": np.full(4, 7777777777777777)}, id="i" * 999, stamps=stamps)
log_request(request, "3", Outcome.ANSWERED)
settings.update({"log_verbose_level": 1, "log_info": False})
log_request(request, "3", Outcome.ANSWERED)
request.stamps = Stamps(received=1, queued=2)
log_request(request, "3", Outcome.EXPIRED)
settings.update({"log_verbose_level": 0})
log_request(request, "3", Outcome.ANSWERED)
"""


def test_a_verbose_log_tells_of_every_request(tmp_path: Path) -> None:
    path = tmp_path / "log"
    # In a process of its own, because loggers keep what they were configured with.
    subprocess.run([sys.executable, "-c", SCRIPT, str(path)], check=True, timeout=60)
    lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    answered, expired = lines
    del answered["timestamp"]
    assert answered == {
        "event": "request",
        "level": "debug",
        "model": "m",
        "version": "3",
        "id": "i" * 128,
        "front": "internal",
        "outcome": "answered",
        "parse_ms": 1000,
        "queue_ms": 1500,
        "compute_input_ms": 250,
        "compute_infer_ms": 250,
        "compute_output_ms": 1000,
        "request_ms": 4000,
    }
    assert expired["outcome"] == "expired"
    assert expired["request_ms"] > 0
    assert "queue_ms" not in expired
    assert "7777777777777777" not in path.read_text()


def test_a_traceback_on_a_terminal_shows_no_values() -> None:
    script = """
import structlog
from serving.observability.logging import LogSettings
LogSettings()
def compute(secret):
    raise ValueError("no reason")
try:
    compute("payload" * 3)
except ValueError as error:
    structlog.get_logger("serving.x").error("failed", exc_info=error)
"""
    ours, theirs = os.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True, timeout=60)
        os.close(theirs)
        text = terminal.read(65536).decode()
    assert "no reason" in text
    assert "payload" not in text.replace('"payload" * 3', "")


def test_a_log_that_is_not_verbose_costs_nothing() -> None:
    request = InferRequest("m", {}, stamps=Stamps())
    took = min(
        timeit.repeat(lambda: log_request(request, "1", Outcome.ANSWERED), number=1000, repeat=5)
    )
    assert took / 1000 < 20e-6


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
