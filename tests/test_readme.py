"""The README's examples, run as they stand against a server (only the ports are changed)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support import RunningServer, serving

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


def test_curl_examples(tmp_path: Path) -> None:
    picture = tmp_path / "seven.png"
    with serving(ROOT / "model_repo") as server:
        outputs = [
            subprocess.check_output(
                block.replace("localhost:8000", f"127.0.0.1:{server.http_port}").replace(
                    "> seven.png", f"> {picture}"
                ),
                shell=True,
                cwd=ROOT,
                text=True,
            )
            for block in blocks("bash")
        ]
    assert len(outputs) == 3
    assert re.match(r'\[\{"label":"\d","score":0\.\d+\},', outputs[0])
    translation = '[{"translation_text":"vor 2 Tagen"}]'
    assert outputs[1].startswith(translation)
    events = outputs[1].removeprefix(translation).split("\n\n")
    parts = [json.loads(event.removeprefix("data: "))["text_output"] for event in events if event]
    assert "".join(parts) == "La réunion est le 5 mars 2024."
    assert len(parts) > 1
    with Image.open(picture) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (16, 16))


def test_every_file_that_it_names_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"^(\w+/) ", README, re.MULTILINE):
        assert (ROOT / name).is_dir(), name


def test_it_has_examples() -> None:
    assert blocks("python")
    assert blocks("bash")
