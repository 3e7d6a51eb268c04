"""What is compared, and how its servers are started, held still and stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from load import Outcome, Plan, Result
from wire import Wire

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
"""Of all servers alike, unless it is set. OpenMP's threads spin while they wait, which on a machine
with anything else to do, such as an HTTP server, slows torch and CTranslate2 down many times."""
START_S = 120.0
"""That a server may take until it is ready."""


@dataclass(frozen=True)
class Contender:
    label: str
    server: str
    """Which of the `commands`: two ways to ask one server share it."""
    wire: Wire = "task"


CONTENDERS: Mapping[str, Contender] = {
    "slipway": Contender("Slipway, POST /models", "slipway"),
    "slipway-v2": Contender("Slipway, protocol v2, binary", "slipway", "v2"),
    "transformers": Contender("transformers.generate, LitServe", "transformers"),
    "ctranslate2": Contender("CTranslate2, LitServe", "ctranslate2"),
    "ctranslate2-queue": Contender("CTranslate2, batching queue", "ctranslate2-queue"),
    "ctranslate2-async": Contender("CTranslate2, inter_threads=2", "ctranslate2-async"),
}


@dataclass(frozen=True)
class Materials:
    """From what the servers are started."""

    checkpoint: Path
    repository: Path
    model: str
    converted: Path
    """The checkpoint as CTranslate2 wants it."""
    python: Path
    """Of the environment that has what Slipway is compared with."""
    max_new_tokens: int

    def command(self, server: str, port: int) -> list[str]:
        if server == "slipway":
            return slipway(self.repository, self.model, port)
        common = ["--checkpoint", str(self.checkpoint), "--model", self.model]
        common += ["--port", str(port), "--max-new-tokens", str(self.max_new_tokens)]
        if server == "transformers":
            return [str(self.python), str(HERE / "servers/transformers_server.py"), *common]
        common += ["--converted", str(self.converted)]
        common += {
            "ctranslate2": ["--behind", "litserve"],
            "ctranslate2-queue": ["--behind", "queue"],
            "ctranslate2-async": ["--behind", "queue", "--workers", "2"],
        }[server]
        return [str(self.python), str(HERE / "servers/ctranslate2_server.py"), *common]


def slipway(repository: Path, model: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "serving", "serve", "--model-repository", str(repository)),
        *("--model-control-mode", "explicit", "--load-model", model),
        *("--http-port", str(port), "--grpc-port", "0", "--metrics-port", "0"),
    ]


class Server:
    """A server process with those it starts itself. Held still while others are measured."""

    def __init__(self, command: Sequence[str], port: int, log: Path):
        self.port = port
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=ENVIRONMENT | os.environ,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self, path: str) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(urllib.error.URLError, ConnectionError):
                self.get(path)
                return
            time.sleep(0.1)
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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def run_load(plan: Plan) -> Result:
    """In a process of its own."""
    finished = subprocess.run(
        [sys.executable, str(HERE / "load.py")],
        input=json.dumps(asdict(plan)).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    document = json.loads(finished.stdout)
    outcomes = [Outcome(**outcome) for outcome in document.pop("outcomes")]
    return Result(**document, outcomes=outcomes)


def environment(directory: Path) -> Path:
    """The Python of a virtual environment that adds `requirements.txt` to what is here."""
    python = directory / "bin/python"
    requirements = HERE / "requirements.txt"
    done = directory / "installed.txt"
    if done.exists() and done.read_bytes() == requirements.read_bytes():
        return python
    print(f"Installing what Slipway is compared with into {directory} ...", flush=True)
    venv.create(directory, clear=True, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (directory / "lib" / version / "site-packages/outer.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n"
    )
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "-r", str(requirements)], check=True)
    done.write_bytes(requirements.read_bytes())
    return python


def convert(python: Path, checkpoint: Path, destination: Path) -> None:
    finished = subprocess.run(
        [str(python), str(HERE / "servers/convert.py"), str(checkpoint), str(destination)],
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise SystemExit(f"CTranslate2 cannot convert {checkpoint}:\n{finished.stderr[-2000:]}")
