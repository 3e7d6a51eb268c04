"""The load of wire_speed.py: wrk over HTTP, h2load over gRPC, each in C and on one thread."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from load import Watched
from processes import HERE
from wire_requests import Request, Wire

PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client"}
"""Of Debian and Ubuntu, by the program."""
HTTP_OK = 200
_SCRIPT = HERE / "wire_load.lua"


@dataclass(frozen=True)
class Loaded:
    requests_per_s: float
    """Of those that succeeded."""
    p50_s: float
    p99_s: float
    failed: int
    server_cores: float
    load_cores: float


def tool(wire: Wire) -> str:
    return "h2load" if wire == "v2-grpc" else "wrk"


def require(wires: Sequence[Wire]) -> None:
    """Raises `SystemExit` for a program that is not there."""
    for program in dict.fromkeys(map(tool, wires)):
        if shutil.which(program) is None:
            package = PACKAGES[program]
            raise SystemExit(
                f"{program}, which makes the load, is not on the PATH: `apt-get install {package}`"
                f" brings it on Debian and Ubuntu"
            )


def load(
    wire: Wire,
    port: int,
    pid: int,
    requests: Sequence[Request],
    answer_bytes: int,
    connections: int,
    seconds: float,
    scratch: Path,
) -> Loaded:
    """A closed loop: each connection asks again when it has its answer. `pid` is the server's.

    Over gRPC only the first of `requests` is sent, and `answer_bytes` is the length of its answer.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(requests):
        (scratch / str(number)).write_bytes(each.body)
    url = f"http://127.0.0.1:{port}{requests[0].path}"
    headers = [f"{name}: {value}" for name, value in requests[0].headers.items()]
    log = scratch / "log.tsv"
    if wire == "v2-grpc":
        # h2load appends.
        log.unlink(missing_ok=True)
        command = ["h2load", "-t1", f"-c{connections}", "-m1", f"-D{round(1000 * seconds)}ms"]
        command += [f"--log-file={log}", "-d", str(scratch / "0")]
        command += [part for header in headers for part in ("-H", header)]
        command += [url]
    else:
        # wrk counts in whole seconds, but tells what it has when it is interrupted.
        command = ["wrk", "-t1", f"-c{connections}", "-d1h", "--timeout=60s", "-s", str(_SCRIPT)]
        command += [url, "--", str(scratch), str(len(requests)), *headers]
    server = Watched(pid)
    started, server_cpu_s, load_cpu_s = time.monotonic(), server.cpu_s(), _children_cpu_s()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        if wire != "v2-grpc":
            time.sleep(seconds)
            program.send_signal(signal.SIGINT)
        output, _ = program.communicate()
    elapsed = time.monotonic() - started
    server_cpu_s, load_cpu_s = server.cpu_s() - server_cpu_s, _children_cpu_s() - load_cpu_s
    if program.returncode:
        raise SystemExit(f"{command[0]} failed: {output[-1000:]}")
    counted = _h2load(output, log, answer_bytes) if wire == "v2-grpc" else _wrk(output)
    return Loaded(*counted, server_cpu_s / elapsed, load_cpu_s / elapsed)


def _wrk(output: str) -> tuple[float, float, float, int]:
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    succeeded = found["answered"] - found["refused"]
    failed = found["refused"] + found["lost"]
    return succeeded / found["seconds"], found["p50_us"] / 1e6, found["p99_us"] / 1e6, failed


def _h2load(output: str, log: Path, answer_bytes: int) -> tuple[float, float, float, int]:
    """h2load does not know of gRPC's status: an error is an answer of status 200 without data."""
    rows = np.loadtxt(log, np.int64, ndmin=2)
    if not rows.size:
        raise SystemExit(f"h2load got no answer: {output[-1000:]}")
    started_us, status, took_us = rows.T
    took_s = took_us[status == HTTP_OK] / 1e6
    data = re.search(r"\((\d+)\) data$", output, re.MULTILINE)
    assert data is not None, output
    with_data = int(data[1]) // answer_bytes
    succeeded = min(len(took_s), with_data)
    seconds = float((started_us + took_us).max() - started_us.min()) / 1e6
    p50, p99 = np.percentile(took_s, (50, 99))
    return succeeded / seconds, float(p50), float(p99), len(rows) - succeeded


def _children_cpu_s() -> float:
    """Of all that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
