"""What is known about a finished model: written once at the end of a run, quoted in its card."""

from __future__ import annotations

from training.baseline import Baseline, support_vectors
from training.checkpoint import State, chosen_epoch
from training.data import LabelledImages
from training.data.split import Split
from training.evaluate import Evaluation, compute_logits, evaluate
from training.models.image_classifier import ImageClassifier
from training.record import Record


class Pictures(Record):
    """How many there are of each part."""

    train: int
    validation: int
    held_out: int


class Report(Record):
    pictures: Pictures
    epoch: int
    """The one whose weights were kept; see `chosen_epoch`."""
    validation_accuracy: float
    held_out: Evaluation
    baseline: Baseline | None
    """None when the data are too large for it."""


def report(model: ImageClassifier, images: LabelledImages, split: Split, state: State) -> Report:
    """Judge the chosen weights on the held-out part, which nothing before has looked at."""
    chosen = chosen_epoch(state.history, len(split.validation))
    logits = compute_logits(model, images, split.held_out).cpu().numpy()
    return Report(
        pictures=Pictures(
            train=len(split.train), validation=len(split.validation), held_out=len(split.held_out)
        ),
        epoch=chosen.epoch,
        validation_accuracy=chosen.validation_accuracy,
        held_out=evaluate(logits, images.targets[split.held_out], images.labels),
        baseline=support_vectors(images, split),
    )
