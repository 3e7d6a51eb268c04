"""The state that a run continues from.

Tensors are safetensors, everything else is JSON. Each state is a directory that appears by one
rename, so a process killed at any moment leaves the last whole state behind.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from training import durable
from training.runs import RunDirectory

Weights = dict[str, Tensor]

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
_CHOSEN_FILE = "chosen.safetensors"
_OPTIMIZER_FILE = "optimizer.safetensors"
_HISTORY_FILE = "history.json"


@dataclass(frozen=True)
class EpochRecord:
    """One line of metrics.csv: the loss and whatever else the task measures."""

    epoch: int
    learning_rate: float
    train: dict[str, float]
    """As trained on: with augmentation and label smoothing, which validation goes without."""
    validation: dict[str, float]

    def row(self) -> dict[str, float]:
        return {
            "epoch": self.epoch,
            "learning_rate": self.learning_rate,
            **{f"train_{name}": value for name, value in self.train.items()},
            **{f"validation_{name}": value for name, value in self.validation.items()},
        }


@dataclass(frozen=True)
class State:
    """A run at the end of an epoch.

    Random numbers and the place in the data are not in it: both follow from the recipe's seed and
    the epoch.
    """

    history: tuple[EpochRecord, ...]
    model: Weights
    chosen: Weights
    """Of the epoch that the workload chooses."""
    optimizer: Weights


def last_of_the_best(history: Sequence[EpochRecord], examples: int) -> EpochRecord:
    """The last epoch that validation accuracy, on so many examples, cannot tell from the best one.

    That is, whose accuracy is within two of its standard errors of the highest. The first epoch
    to reach the top did so by luck more often than not, at a learning rate that still shakes the
    weights: in cross-validation without the held-out part, its model made twice as many mistakes
    as the last one's. An epoch that is truly worse, because the network overfits, is not chosen.
    """
    best = max(record.validation["accuracy"] for record in history)
    for record in reversed(history):
        accuracy = record.validation["accuracy"]
        if accuracy + 2.0 * math.sqrt(accuracy * (1.0 - accuracy) / examples) >= best:
            return record
    raise AssertionError("the best epoch is as good as itself. This is a bug.")


def save_state(run: RunDirectory, state: State) -> None:
    """Write a state, then remove the one before it."""
    run.states.mkdir(exist_ok=True)
    durable.remove_leftovers(run.states)
    before = _saved(run.states)
    with durable.staged_directory(run.states) as staged:
        safetensors.torch.save_file(state.model, staged / WEIGHTS_FILE)
        safetensors.torch.save_file(state.chosen, staged / _CHOSEN_FILE)
        safetensors.torch.save_file(state.optimizer, staged / _OPTIMIZER_FILE)
        history = json.dumps([asdict(record) for record in state.history])
        (staged / _HISTORY_FILE).write_text(history)
        durable.move_into_place(staged, run.states / f"epoch-{len(state.history):05}")
    for directory in before:
        shutil.rmtree(directory)


def load_state(run: RunDirectory) -> State | None:
    """The last whole state, or None if the run has none yet."""
    saved = _saved(run.states)
    if not saved:
        return None
    directory = saved[-1]
    history = json.loads((directory / _HISTORY_FILE).read_text())
    return State(
        history=tuple(EpochRecord(**record) for record in history),
        model=safetensors.torch.load_file(directory / WEIGHTS_FILE),
        chosen=safetensors.torch.load_file(directory / _CHOSEN_FILE),
        optimizer=safetensors.torch.load_file(directory / _OPTIMIZER_FILE),
    )


def save_metrics(run: RunDirectory, history: Sequence[EpochRecord]) -> None:
    """Write metrics.csv anew; a run killed after its last state still gets every line."""
    text = io.StringIO()
    rows = [record.row() for record in history]
    writer = csv.DictWriter(text, rows[0].keys() if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    durable.write(run.metrics, text.getvalue())


def copy_weights(weights: Weights) -> Weights:
    """A snapshot in main memory, which later steps do not change."""
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> Weights:
    """The tensors that an optimiser keeps per parameter, as "parameter number.name".

    Its settings are left out: the recipe and the schedule give them at every step.
    """
    return copy_weights(
        {
            f"{parameter}.{name}": value
            for parameter, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Weights) -> None:
    """The inverse of `flatten_optimizer`."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _saved(states: Path) -> list[Path]:
    return sorted(states.glob("epoch-*"))
