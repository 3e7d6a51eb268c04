"""What a server imports before it serves, told by the interpreter itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import call, write_model

FOR_SOME = {"PIL", "rich.console", "sentencepiece", "soundfile", "soxr", "tokenizers", "websockets"}
"""What only some models need, or nobody."""

FOR_OTHERS = {"fastapi", "pydantic"}
"""What calls need that are no predictions, which can wait until there are some."""


class Watched:
    """A server that says what it imports."""

    def __init__(self, repository: Path):
        ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
        command = [sys.executable, "-X", "importtime", "-m", "serving", "serve", *ports]
        self.process = subprocess.Popen(
            [*command, "--model-repository", str(repository)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.imported: set[str] = set()
        """Modules, of those lines of the log that were read; also if they were not found."""

    def until(self, event: str) -> dict[str, Any]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("import time:"):
                self.imported.add(line.rpartition("|")[2].strip())
            elif line.startswith("{") and (found := json.loads(line))["event"] == event:
                return dict(found)
        raise AssertionError(f"the server ended without {event!r}")


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    write_model(tmp_path, "double", operation="Add")
    server = Watched(tmp_path)
    with server.process:
        yield server
        server.process.kill()


def test_a_server_imports_what_its_models_need(watched: Watched) -> None:
    port = watched.until("serving")["http_port"]
    assert {"onnxruntime", "numpy", "uvicorn"} <= watched.imported
    assert not watched.imported & (FOR_SOME | FOR_OTHERS)

    assert call(port, "GET", "/v2/health/ready")[0] == 200
    paths = json.loads(call(port, "GET", "/openapi.json")[1])["paths"]
    assert {"/v2/health/ready", "/v2/models/{name}/infer", "/metrics"} <= paths.keys()
    watched.process.send_signal(signal.SIGTERM)
    watched.until("stopped")
    assert watched.imported >= FOR_OTHERS
    assert not watched.imported & FOR_SOME
