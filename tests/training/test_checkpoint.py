"""Whatever the moment a process is killed, the last whole state is there."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from training import durable
from training.checkpoint import (
    EpochRecord,
    State,
    flatten_optimizer,
    last_of_the_best,
    load_state,
    restore_optimizer,
    save_metrics,
    save_state,
)
from training.runs import RunDirectory

# Saves states without end; every number in the state of epoch n is n.
SAVE_FOREVER = """
import itertools, sys, torch
from pathlib import Path
from training.checkpoint import EpochRecord, State, save_state
from training.runs import RunDirectory

run = RunDirectory(Path(sys.argv[1]))
for epoch in itertools.count(1):
    weights = {f"weight {i}": torch.full((250_000,), float(epoch)) for i in range(8)}
    history = tuple(EpochRecord(e, 0.1, {"loss": e}, {"loss": e}) for e in range(1, epoch + 1))
    save_state(run, State(history, weights, weights, weights))
    print(epoch, flush=True)
"""


def state(epoch: int) -> State:
    weights = {"weight": torch.full((3, 2), float(epoch))}
    history = tuple(
        EpochRecord(e, 0.1, {"loss": 1 / e}, {"loss": 1 / e}) for e in range(1, epoch + 1)
    )
    return State(history, weights, weights, {"0.exp_avg": torch.ones(2)})


def test_a_state_comes_back_and_replaces_the_one_before(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert load_state(run) is None
    for epoch in (1, 2):
        save_state(run, state(epoch))
    loaded = load_state(run)
    assert loaded is not None
    assert loaded.history == state(2).history
    for name in ("model", "chosen", "optimizer"):
        torch.testing.assert_close(getattr(loaded, name), getattr(state(2), name))
    assert [path.name for path in run.states.iterdir()] == ["epoch-00002"]


@pytest.mark.parametrize(
    ("accuracies", "pictures", "chosen"),
    [
        ([0.5, 0.9, 0.99], 179, 3),
        ([0.5, 1.0, 0.99], 179, 3),  # two pictures of 179 are chance
        ([0.5, 1.0, 0.99], 17_900, 2),  # and two hundred are not
        ([0.5, 0.99, 0.7], 179, 2),
        ([0.5, 1.0, 1.0], 179, 3),
        ([0.0, 0.0], 5, 2),
        ([1.0], 5, 1),
    ],
)
def test_the_last_of_the_best_is_the_last_that_is_as_good_as_any(
    accuracies: list[float], pictures: int, chosen: int
) -> None:
    history = [
        EpochRecord(epoch, 0.1, {"loss": 1.0}, {"accuracy": accuracy})
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]
    assert last_of_the_best(history, pictures).epoch == chosen


@pytest.mark.parametrize("delay_s", [0.0, 0.003, 0.007, 0.012, 0.02, 0.03])
def test_killed_while_saving(tmp_path: Path, delay_s: float) -> None:
    """The process does nothing but save, so it is killed somewhere in the middle of it."""
    run = RunDirectory(tmp_path)
    command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(2):
            process.stdout.readline()
        time.sleep(delay_s)
        process.kill()
        reported = [2, *map(int, process.stdout.read().split())]
    assert process.returncode == -signal.SIGKILL

    loaded = load_state(run)
    assert loaded is not None
    epoch = len(loaded.history)
    assert epoch in (reported[-1], reported[-1] + 1)
    for weights in (loaded.model, loaded.chosen, loaded.optimizer):
        assert len(weights) == 8
        assert all(bool((tensor == epoch).all()) for tensor in weights.values())

    # The next save also clears away what was left half written.
    save_state(run, state(epoch + 1))
    assert [path.name for path in run.states.iterdir()] == [f"epoch-{epoch + 1:05}"]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_an_optimiser_continues_as_if_it_had_not_stopped(kind: str) -> None:
    def steps(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (weight**2).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def make(weight: torch.nn.Parameter) -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        return torch.optim.AdamW([weight], lr=0.1)

    whole = torch.nn.Parameter(torch.arange(4.0))
    steps(whole, make(whole), 7)

    first = torch.nn.Parameter(torch.arange(4.0))
    optimizer = make(first)
    steps(first, optimizer, 3)
    second = torch.nn.Parameter(first.detach().clone())
    resumed = make(second)
    restore_optimizer(resumed, flatten_optimizer(optimizer))
    steps(second, resumed, 4)
    assert torch.equal(whole, second)


def test_metrics_keep_every_digit(tmp_path: Path) -> None:
    history = state(3).history
    save_metrics(RunDirectory(tmp_path), history)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == [1.0, 1 / 2, 1 / 3]


def test_of_two_directories_for_one_name_the_first_stays(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with durable.staged_directory(tmp_path) as staged:
            (staged / "file").write_text(content)
            if content == "first":
                durable.move_into_place(staged, tmp_path / "name")
            else:
                with pytest.raises(FileExistsError):
                    durable.move_into_place(staged, tmp_path / "name")
    assert (tmp_path / "name" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_of_two_writers_of_a_new_file_the_first_succeeds(tmp_path: Path) -> None:
    assert durable.write_new(tmp_path / "file", "first")
    assert not durable.write_new(tmp_path / "file", "second")
    assert (tmp_path / "file").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1
