"""The command `slipway train`, run for real on a tiny recipe."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.training.conftest import Slipway
from training.recipes.digits import digits
from training.runs import RunDirectory
from training.tasks.image_classification.digits import Digits
from training.tasks.image_classification.network import load_model
from training.tasks.image_classification.report import ImageReport
from training.trainer import learning_rate

SLIPWAY = [sys.executable, "-c", "from serving.cli import main; main(prog_name='slipway')"]


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    recipe = digits()
    rates = [learning_rate(recipe, epoch / 10) for epoch in range(601)]
    assert max(rates) == rates[30] == recipe.optimizer.learning_rate
    assert rates[:31] == sorted(rates[:31])
    assert rates[0] > 0
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[-1] == pytest.approx(0.01 * recipe.optimizer.learning_rate)


def test_a_run_leaves_everything_that_is_promised(tiny_run: RunDirectory) -> None:
    assert {path.name for path in tiny_run.path.iterdir()} == {
        *("recipe.json", "origin.json", "state", "metrics.csv", "curves.png", "checkpoint"),
        *("labels.txt", "preprocessing.json", "report.json", "export"),
    }
    assert {path.name for path in tiny_run.checkpoint.iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    with Image.open(tiny_run.curves) as picture:
        assert picture.size == (800, 320)
    recipe, _ = tiny_run.load()
    with tiny_run.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, recipe.epochs + 1))
    assert float(rows[-1]["train_loss"]) < 0.5 * float(rows[0]["train_loss"])
    report = ImageReport.load(tiny_run.report)
    assert report.held_out.accuracy > 0.9
    assert report.baseline is not None
    assert report.baseline.held_out_accuracy > 0.95
    assert sum(score.pictures for score in report.held_out.per_class) == report.examples.held_out
    assert not list(tiny_run.path.rglob("*.p*kl"))


def test_killed_in_the_middle_and_resumed_is_the_uninterrupted_run(
    tiny_run: RunDirectory, tiny_command: tuple[str, ...], tmp_path: Path, slipway: Slipway
) -> None:
    run = RunDirectory(tmp_path / "killed")
    command = [*SLIPWAY, *tiny_command, "--run-dir", str(run.path)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        while not list(run.states.glob("epoch-0000[3-9]")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not run.report.exists()

    result = slipway(*tiny_command, "--run-dir", run.path, "--resume")
    assert result.exit_code == 0, result.output
    for name in ("metrics.csv", "checkpoint/model.safetensors", "checkpoint/config.json"):
        assert (run.path / name).read_bytes() == (tiny_run.path / name).read_bytes(), name
    assert run.report.read_text() == tiny_run.report.read_text()


def test_resuming_a_finished_run_changes_nothing(
    own_run: RunDirectory, tiny_command: tuple[str, ...], slipway: Slipway
) -> None:
    before = (own_run.checkpoint / "model.safetensors").read_bytes()
    own_run.metrics.unlink()  # as if killed between the last state and the last line
    result = slipway(*tiny_command, "--run-dir", own_run.path, "--resume")
    assert result.exit_code == 0, result.output
    assert own_run.metrics.exists()
    assert (own_run.checkpoint / "model.safetensors").read_bytes() == before


def test_a_run_directory_in_use_is_refused(
    tiny_run: RunDirectory, tiny_command: tuple[str, ...], slipway: Slipway
) -> None:
    result = slipway(*tiny_command, "--run-dir", tiny_run.path)
    assert result.exit_code == 1
    assert "is not empty: continue its run with --resume" in result.stderr


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, slipway: Slipway) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    result = slipway("train", "digits", "--tiny", "--run-dir", tmp_path, "--resume")
    assert result.exit_code == 1
    assert "is not empty and holds no run to resume" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_resuming_with_another_recipe_is_refused_naming_the_setting(
    tiny_run: RunDirectory, tiny_command: tuple[str, ...], slipway: Slipway
) -> None:
    result = slipway(*tiny_command, "--run-dir", tiny_run.path, "--resume", "--set", "epochs=16")
    assert result.exit_code == 1
    assert "epochs=15 and this command asks for epochs=16" in result.stderr


def test_two_devices_share_the_work_and_learn(tmp_path: Path) -> None:
    # On a machine with one GPU, these are two processes on the CPU all the same.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = RunDirectory(tmp_path / "two")
    options = ["--tiny", "--devices", "2", "--set", "epochs=8", "--run-dir", str(run.path)]
    command = [*SLIPWAY, "train", "digits", *options]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stderr
    assert ImageReport.load(run.report).held_out.accuracy > 0.8
    with run.metrics.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path: Path, slipway: Slipway) -> None:
    result = slipway(
        *("train", "digits", "--tiny", "--devices", "3", "--run-dir", tmp_path / "three")
    )
    assert result.exit_code == 1
    assert "batch_size 64 cannot be shared equally by 3 devices" in result.stderr


def test_a_loss_that_is_not_a_number_ends_the_run_with_a_sentence(
    tmp_path: Path, slipway: Slipway
) -> None:
    result = slipway(
        *("train", "digits", "--tiny", "--run-dir", tmp_path / "diverged"),
        *("--set", "optimizer.learning_rate=1e30"),
    )
    assert result.exit_code == 1
    assert "the loss is not a number in epoch 1; lower optimizer.learning_rate" in result.stderr


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in colour and of any size, made from ones and zeros."""
    root = tmp_path_factory.mktemp("pictures") / "shapes"
    source = Digits(digits().data.preprocessing)
    for label in (0, 1):
        folder = root / ("stroke" if label else "ring")
        folder.mkdir(parents=True)
        for index in (source.targets == label).nonzero()[0][:40]:
            grey = Image.fromarray(source.read(index[None])[0, 0])
            grey.resize((60, 40 + int(index) % 30)).convert("RGB").save(folder / f"{index}.jpg")
    return root


def test_own_pictures_from_folder_to_published_version(
    pictures: Path, tmp_path: Path, slipway: Slipway
) -> None:
    run = RunDirectory(tmp_path / "shapes")
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    for command in (
        (
            *("train", "digits", "--tiny", "--data", data, "--run-dir", run.path),
            *("--set", "data.width=24", "--set", "data.height=16", "--set", "batch_size=16"),
            *("--set", "name=shapes"),
        ),
        ("export", run.path),
        ("publish", run.path, "--model-repository", tmp_path / "repository"),
    ):
        result = slipway(*command)
        assert result.exit_code == 0, result.output
    assert load_model(run.checkpoint).config.height == 16
    assert ImageReport.load(run.report).held_out.accuracy == 1.0
    version = tmp_path / "repository" / "shapes" / "1"
    assert (version / "labels.txt").read_text() == "ring\nstroke\n"
    assert json.loads((version / "preprocessing.json").read_text())["mode"] == "RGB"
    assert str(tmp_path) not in (version / "manifest.json").read_text()

    # The same pictures elsewhere are found with --data; others are refused.
    moved = data.rename(tmp_path / "moved")
    result = slipway("export", run.path)
    assert (result.exit_code, "no such folder" in result.stderr) == (1, True)
    assert slipway("export", run.path, "--data", moved).exit_code == 0
    next((moved / "ring").iterdir()).unlink()
    result = slipway("export", run.path, "--data", moved)
    assert result.exit_code == 1
    assert "are not those that" in result.stderr
