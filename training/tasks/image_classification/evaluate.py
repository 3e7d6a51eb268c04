"""How good a model is on pictures that it did not learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.record import Record
from training.split import Indices
from training.tasks.image_classification.images import Images, LabelledImages

BATCH = 256

Logits = npt.NDArray[np.float32]
"""[picture, class]."""


class ClassScore(Record):
    label: str
    pictures: int
    accuracy: float


class Evaluation(Record):
    pictures: int
    accuracy: float
    per_class: tuple[ClassScore, ...]


def evaluate(logits: Logits, targets: npt.NDArray[np.int64], labels: Sequence[str]) -> Evaluation:
    """Score the logits of some pictures; every class has at least one of them."""
    right = logits.argmax(axis=1) == targets
    return Evaluation(
        pictures=len(targets),
        accuracy=float(right.mean()),
        per_class=tuple(
            ClassScore(label=label, pictures=int(mine.sum()), accuracy=float(right[mine].mean()))
            for label, mine in ((label, targets == c) for c, label in enumerate(labels))
        ),
    )


def batches(images: LabelledImages, indices: Indices, size: int = BATCH) -> Iterator[Images]:
    """Read pictures a batch at a time, in order."""
    for start in range(0, len(indices), size):
        yield images.read(indices[start : start + size])


@torch.no_grad()
def compute_logits(model: nn.Module, images: LabelledImages, indices: Indices) -> Tensor:
    """[picture, class], on the model's device; the model must be in evaluation mode."""
    device = next(model.parameters()).device
    return torch.cat(
        [model(torch.from_numpy(batch).to(device)) for batch in batches(images, indices)]
    )
