"""Servers as processes: how they are started, held still and stopped. And the load upon them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from load import Outcome, Plan, Result
from tqdm import tqdm

T = TypeVar("T")

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
"""Of all servers alike, unless it is set. OpenMP's threads spin while they wait, which on a machine
with anything else to do, such as an HTTP server, slows torch and CTranslate2 down many times."""
START_S = 120.0
"""That a server may take until it is ready."""


def slipway(repository: Path, model: str, port: int, grpc_port: int = 0) -> list[str]:
    return [
        *(sys.executable, "-m", "serving", "serve", "--model-repository", str(repository)),
        *("--model-control-mode", "explicit", "--load-model", model),
        *("--http-port", str(port), "--grpc-port", str(grpc_port), "--metrics-port", "0"),
    ]


class Uninstallable(SystemExit):
    """Something to compare with cannot be had here; the message says why."""


class Server:
    """A server process with those it starts itself. Held still while others are measured."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        log: Path,
        directory: Path = ROOT,
        variables: Mapping[str, str] = MappingProxyType({}),
    ):
        self.port = port
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env={**ENVIRONMENT, **os.environ, **variables},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self, path: str) -> None:
        self.wait_until(lambda: self.get(path), 0.1)

    def wait_until(self, ready: Callable[[], object], pause_s: float) -> None:
        """Until `ready` raises no `OSError`."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError):
                ready()
                return
            time.sleep(pause_s)
        last = self._log.read_text(errors="replace")[-2000:]
        raise SystemExit(f"{self._log.stem} did not become ready. The end of its log:\n{last}")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as reply:
            text: bytes = reply.read()
        return text.decode()

    def hold(self) -> None:
        os.killpg(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        self.go_on()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        # LitServe's workers may outlive it.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def start(name: str, command: Sequence[str], port: int, logs: Path) -> Server:
    server = Server(command, port, logs / f"{name}.log")
    try:
        server.wait_until_ready("/v2/health/ready" if name.startswith("slipway") else "/health")
    except BaseException:
        server.stop()
        raise
    return server


def start_held(
    names: Iterable[str], command: Callable[[str, int], list[str]], logs: Path, stack: ExitStack
) -> dict[str, Server]:
    """Start servers by the `command` of each and its port, one by one, and hold them still."""
    servers: dict[str, Server] = {}
    for name in tqdm(list(names), "starting servers", leave=False):
        port = free_port()
        servers[name] = start(name, command(name, port), port, logs)
        stack.callback(servers[name].stop)
        servers[name].hold()
    return servers


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def run_load(plan: Plan) -> Result:
    document = run_script("load.py", asdict(plan))
    outcomes = [Outcome(**outcome) for outcome in document.pop("outcomes")]
    return Result(**document, outcomes=outcomes)


def run_load_on(server: Server, plan: Plan) -> Result:
    """Let a server that is held still go on for as long as it is measured."""
    server.go_on()
    try:
        return run_load(plan)
    finally:
        server.hold()


def run_script(name: str, plan: dict[str, Any]) -> dict[str, Any]:
    """A load generator, in a process of its own: its plan in and its result out, both as JSON."""
    finished = subprocess.run(
        [sys.executable, str(HERE / name)],
        input=json.dumps(plan).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def alone(function: Callable[..., T], *arguments: object) -> T:
    """In a process of its own, which leaves nothing behind."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh) as process:
        return process.submit(function, *arguments).result()


def environment(
    directory: Path, requirements: Path = HERE / "requirements.txt", *, apart: bool = False
) -> Path:
    """The Python of a virtual environment that adds `requirements` to what is here.

    Or of one that has nothing else, if it is to be `apart`. Raises `Uninstallable`.
    """
    python = directory / "bin/python"
    done = directory / "installed.txt"
    if done.exists() and done.read_bytes() == requirements.read_bytes():
        return python
    print(f"Installing what Slipway is compared with into {directory} ...", flush=True)
    venv.create(directory, clear=True, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not apart:
        (directory / "lib" / version / "site-packages/outer.pth").write_text(
            "\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n"
        )
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    if subprocess.run([*pip, "-r", str(requirements)], check=False).returncode:
        raise Uninstallable(f"pip cannot install {requirements.name} into {directory}")
    done.write_bytes(requirements.read_bytes())
    return python
