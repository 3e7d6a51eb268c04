"""One tiny trained run, exported and quantised, shared by every test that reads one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from serving.cli import main
from training.runs import RunDirectory

Slipway = Callable[..., Result]


def _slipway(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def slipway() -> Slipway:
    """Run the command in this process; the result has exit_code, stdout and stderr."""
    return _slipway


TINY = (
    *("train", "digits", "--tiny"),
    # So small a model is near the edge for many pictures, and rounding tips some of them.
    *("--set", "acceptance.int8_loss=0.05"),
)


@pytest.fixture(scope="session")
def tiny_command() -> tuple[str, ...]:
    """What makes the shared run, but for its directory."""
    return TINY


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Read only; a test that changes something takes `own_run`."""
    run = RunDirectory(tmp_path_factory.mktemp("shared") / "digits")
    for command in (
        (*TINY, "--run-dir", run.path),
        ("export", run.path),
        ("quantize", run.path),
    ):
        result = _slipway(*command)
        assert result.exit_code == 0, result.output
    return run


@pytest.fixture
def own_run(tiny_run: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of the shared run, to spoil."""
    return RunDirectory(shutil.copytree(tiny_run.path, tmp_path / "run"))
