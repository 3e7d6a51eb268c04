"""The README's examples, run as they stand against a server (only the ports are changed)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import RunningServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("client", ["http", "grpc"])
def test_python_examples(server: RunningServer, client: str) -> None:
    for block in blocks("python"):
        code = block
        port = server.http_port
        if client == "grpc":
            code = block.replace("import tritonclient.http", "import tritonclient.grpc")
            port = server.grpc_port
        code = code.replace("localhost:8000", f"127.0.0.1:{port}", 1)
        output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
        assert re.fullmatch(r"\[\d \d \d \d\]\n", output)


def test_curl_examples(server: RunningServer) -> None:
    for block in blocks("bash"):
        command = block.replace("localhost:8000", f"127.0.0.1:{server.http_port}")
        output = subprocess.check_output(command, shell=True, cwd=ROOT, text=True)
        assert re.match(r'\[\{"label":"\d","score":0\.\d+\},', output)


def test_every_file_that_it_names_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"^(\w+/) ", README, re.MULTILINE):
        assert (ROOT / name).is_dir(), name


def test_it_has_examples() -> None:
    assert blocks("python")
    assert blocks("bash")
