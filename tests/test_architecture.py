"""What must hold of the code as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from click.testing import CliRunner

import serving
from serving.cli import main
from serving.settings import Settings
from tests.conftest import SHIPPED
from tests.support import RunningServer, call

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_import_contracts() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from serving.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnxruntime', 'sklearn', 'matplotlib', 'fastapi', 'grpc'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_changelog_has_this_version() -> None:
    assert f"## {serving.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_shipped_repository_is_small() -> None:
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert size < 20e6


def test_dockerfile_copies_what_exists_and_what_the_context_has() -> None:
    allowed = (ROOT / ".dockerignore").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}\n" in allowed, source


def test_dockerfile_agrees_with_the_project() -> None:
    (python,) = re.findall(r"ARG PYTHON_VERSION=(.+)", DOCKERFILE)
    assert PROJECT["requires-python"] == f">={python}"
    variants = re.findall(r"VARIANT=(\w+)", DOCKERFILE)
    assert set(variants) == {"cpu", "gpu"} <= set(PROJECT["optional-dependencies"])
    ports = {Settings.http_port, Settings.grpc_port, Settings.metrics_port}
    (exposed,) = re.findall(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)
    assert set(map(int, exposed.split())) == ports
    assert re.search(r"^USER [1-9]\d*$", DOCKERFILE, re.MULTILINE)


def test_dockerfile_commands_are_ours() -> None:
    commands = re.findall(r"^(?:    )?CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    health, serve = (re.findall(r'"([^"]+)"', command) for command in commands)
    assert health[0] == "slipway"
    for arguments in (health[1:], serve):
        assert CliRunner().invoke(main, [*arguments, "--help"]).exit_code == 0


def test_health_command(server: RunningServer) -> None:
    ready = CliRunner().invoke(main, ["health", "--url", f"http://{server.http}"])
    assert (ready.exit_code, ready.output) == (0, "ready\n")
    refused = CliRunner().invoke(main, ["health", "--url", "http://127.0.0.1:9"])
    assert refused.exit_code == 1
    assert "is the server up?" in refused.output


def test_list_and_infer_commands(server: RunningServer) -> None:
    url = f"http://{server.http}"
    listed = CliRunner().invoke(main, ["list", "--url", url])
    assert re.search(r"^digits +\d+  READY$", listed.output, re.MULTILINE)
    example = str(SHIPPED / "digits" / "1" / "example.png")
    answered = CliRunner().invoke(main, ["infer", "digits", example, "--url", url])
    assert answered.exit_code == 0
    assert '"label"' in answered.output
    refused = CliRunner().invoke(main, ["infer", "nobody", example, "--url", url])
    assert refused.exit_code == 1
    assert "404: Request for unknown model: 'nobody' is not found" in refused.output


def test_docs_page_lists_every_way_in(server: RunningServer) -> None:
    status, schema = call(server.http_port, "GET", "/openapi.json")
    assert status == 200
    for path in (b"/v2/models/{name}/infer", b"/models/{name}", b"/v2/health/ready", b"/metrics"):
        assert b'"' + path + b'"' in schema
    assert call(server.http_port, "GET", "/docs")[0] == 200
