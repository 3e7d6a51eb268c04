"""What the loop needs to know of one kind of model: its data, network, loss and score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from training.checkpoint import EpochRecord, Weights
from training.recipe import Recipe
from training.record import Record
from training.runs import RunDirectory
from training.split import Indices, Split

Totals = dict[str, Tensor]
"""Measure -> (sum, count), a tensor of two; the measure itself is the quotient.

Totals of different examples, steps and processes add up.
"""


class Examples(Record):
    """How many there are of each part."""

    train: int
    validation: int
    held_out: int


class Report(Record):
    """What is known about a finished model: written once, at the end of a run.

    Each task adds its figures in a subclass.
    """

    examples: Examples
    epoch: int
    """The one whose weights were kept."""

    def summary(self) -> list[str]:
        """Lines for the console."""
        raise NotImplementedError


@runtime_checkable
class Shows(Protocol):
    """A workload that leaves something to look at after each epoch."""

    def show(self, run: RunDirectory, model: nn.Module, epoch: int) -> None:
        """Write it into the run's directory; the model is in evaluation mode.

        Random numbers are drawn from a generator of its own, as the loop's decide what comes next.
        """
        ...


class Workload(Protocol):
    """Sent as a whole to each training process, so it must pickle.

    Nothing in it draws random numbers of its own: the loop hands in whatever decides them, and
    that is why a resumed run repeats an uninterrupted one.
    """

    @property
    def recipe(self) -> Recipe: ...

    @property
    def split(self) -> Split: ...

    @property
    def data_hash(self) -> str:
        """sha256 of what the examples are; their order has no part in it."""
        ...

    @property
    def loss_unit(self) -> str:
        """For the curves."""
        ...

    @property
    def steps(self) -> int:
        """In one epoch."""
        ...

    def build(self) -> nn.Module:
        """The network, not yet trained."""
        ...

    def batches(self, chance: np.random.Generator) -> Sequence[Indices]:
        """The steps of one epoch: which examples of the training part are in each."""
        ...

    def loss(
        self, network: nn.Module, batch: Indices, generator: torch.Generator
    ) -> tuple[Tensor, Totals]:
        """The loss to descend, and what is logged of this step.

        Randomness that belongs to the data, such as augmentation, comes from `generator`, which
        lives on the device to compute on.
        """
        ...

    def score(self, model: nn.Module, examples: Indices, device: torch.device) -> Totals:
        """Measures of a model in evaluation mode; there may be no examples."""
        ...

    def choose(self, history: Sequence[EpochRecord]) -> EpochRecord:
        """The epoch whose weights are kept, of those there are so far."""
        ...

    def save(self, run: RunDirectory, weights: Weights) -> None:
        """Write the checkpoint, and beside it what serving needs besides."""
        ...

    def report(self, run: RunDirectory, history: Sequence[EpochRecord]) -> Report:
        """Judge the checkpoint on the held-out part, which nothing before has looked at."""
        ...


def count_examples(split: Split) -> Examples:
    return Examples(
        train=len(split.train), validation=len(split.validation), held_out=len(split.held_out)
    )
