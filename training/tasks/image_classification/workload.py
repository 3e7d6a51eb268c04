"""Image classification as the loop sees it: random views, cross-entropy, accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from serving.tasks.image_classification import LABELS_FILE
from training.checkpoint import EpochRecord, Weights, last_of_the_best
from training.runs import RunDirectory
from training.split import Indices
from training.tasks.image_classification.augmentation import augment
from training.tasks.image_classification.evaluate import compute_logits
from training.tasks.image_classification.images import LabelledImages, hash_images, split_images
from training.tasks.image_classification.network import (
    ImageClassifier,
    ImageClassifierConfig,
    load_model,
    save_model,
)
from training.tasks.image_classification.recipe import ImageRecipe
from training.tasks.image_classification.report import ImageReport, report
from training.workload import Totals

STATISTICS_FROM = 2048
"""Pictures from which the mean and deviation of pixels are taken."""


class ImageWorkload:
    loss_unit = "nats"

    def __init__(self, recipe: ImageRecipe, images: LabelledImages):
        self.recipe = recipe
        self.images = images
        self.split = split_images(images)
        self.data_hash = hash_images(images)

    @property
    def steps(self) -> int:
        # The last, incomplete batch is left out; another epoch's order puts others there.
        return max(1, len(self.split.train) // self.recipe.batch_size)

    def configure(self) -> ImageClassifierConfig:
        """The network that fits these data; mean and deviation are those of the training part."""
        train = self.split.train
        pixels = self.images.read(train[:: math.ceil(len(train) / STATISTICS_FROM)]) / 255.0
        return ImageClassifierConfig(
            channels=pixels.shape[1],
            height=pixels.shape[2],
            width=pixels.shape[3],
            classes=len(self.images.labels),
            mean=tuple(pixels.mean(axis=(0, 2, 3)).tolist()),
            # Pictures of one flat colour deviate by nothing, and nothing must not be divided by.
            std=tuple(np.maximum(pixels.std(axis=(0, 2, 3)), 1 / 255).tolist()),
            **self.recipe.model.model_dump(),
        )

    def build(self) -> ImageClassifier:
        return ImageClassifier(self.configure())

    def batches(self, chance: np.random.Generator) -> list[Indices]:
        order = chance.permutation(self.split.train)
        size = self.recipe.batch_size
        return [order[step * size : (step + 1) * size] for step in range(self.steps)]

    def loss(
        self, network: nn.Module, batch: Indices, generator: torch.Generator
    ) -> tuple[Tensor, Totals]:
        pictures = torch.from_numpy(self.images.read(batch)).to(generator.device)
        targets = torch.from_numpy(self.images.targets[batch]).to(generator.device)
        logits = network(augment(pictures, self.recipe.augmentation, generator))
        loss = functional.cross_entropy(
            logits, targets, label_smoothing=self.recipe.optimizer.label_smoothing
        )
        return loss, _totals(loss.detach() * len(batch), logits, targets)

    def score(self, model: nn.Module, examples: Indices, device: torch.device) -> Totals:
        if not len(examples):
            nothing = torch.zeros(2, device=device)
            return {"loss": nothing, "accuracy": nothing}
        logits = compute_logits(model, self.images, examples)
        targets = torch.from_numpy(self.images.targets[examples]).to(device)
        loss = functional.cross_entropy(logits, targets, reduction="sum")
        return _totals(loss, logits, targets)

    def choose(self, history: Sequence[EpochRecord]) -> EpochRecord:
        return last_of_the_best(history, len(self.split.validation))

    def save(self, run: RunDirectory, weights: Weights) -> None:
        save_model(run.checkpoint, self.configure(), weights)
        labels = "".join(f"{label}\n" for label in self.images.labels)
        (run.path / LABELS_FILE).write_text(labels, encoding="utf-8")
        self.recipe.data.preprocessing.save(run.path)

    def report(self, run: RunDirectory, history: Sequence[EpochRecord]) -> ImageReport:
        chosen = self.choose(history)
        return report(load_model(run.checkpoint), self.images, self.split, chosen)


def _totals(loss: Tensor, logits: Tensor, targets: Tensor) -> Totals:
    """Of the summed loss and the right answers."""
    right = (logits.argmax(dim=1) == targets).sum()
    pictures = torch.full_like(loss, len(targets))
    return {
        "loss": torch.stack([loss, pictures]),
        "accuracy": torch.stack([right.float(), pictures]),
    }
