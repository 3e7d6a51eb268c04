from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.conftest import Slipway

COMMANDS = ("train", "export", "quantize", "publish")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str, slipway: Slipway) -> None:
    result = slipway(command, "--help")
    assert result.exit_code == 0
    assert f"slipway {command} " in result.stdout.split("Example", 1)[1]


def test_help_answers_without_the_heavy_packages() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from serving.cli import main\n"
        "assert CliRunner().invoke(main, ['train', '--help']).exit_code == 0\n"
        "heavy = {'torch', 'sklearn', 'matplotlib', 'onnx', 'onnxruntime'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "digit"), "there is no recipe 'digit'; did you mean digits?"),
        (("train", "digits", "--set", "epoch=1"), "did you mean epochs?"),
        (("train", "digits", "--data", "nowhere"), "nowhere: no such folder"),
        (("export", "nowhere"), "nowhere holds no training run"),
        (("quantize", "nowhere"), "nowhere holds no training run"),
        (("publish", "nowhere", "--model-repository", "r"), "nowhere holds no training run"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_1(
    arguments: tuple[str, ...],
    sentence: str,
    slipway: Slipway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = slipway(*arguments)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
