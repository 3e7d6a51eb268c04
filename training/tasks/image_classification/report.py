"""How good a finished image classifier is, and what a user would have tried first."""

from __future__ import annotations

from training.checkpoint import EpochRecord
from training.split import Split
from training.tasks.image_classification.baseline import Baseline, support_vectors
from training.tasks.image_classification.evaluate import Evaluation, compute_logits, evaluate
from training.tasks.image_classification.images import LabelledImages
from training.tasks.image_classification.network import ImageClassifier
from training.workload import Report, count_examples


class ImageReport(Report):
    validation_accuracy: float
    held_out: Evaluation
    baseline: Baseline | None
    """None when the data are too large for it."""

    def summary(self) -> list[str]:
        lines = [
            f"epoch {self.epoch}: validation accuracy {self.validation_accuracy:.4f}",
            f"held-out accuracy {self.held_out.accuracy:.4f}, {self.held_out.pictures} pictures",
        ]
        if self.baseline is not None:
            accuracy = self.baseline.held_out_accuracy
            lines.append(f"held-out accuracy {accuracy:.4f}, {self.baseline.setting}")
        return lines


def report(
    model: ImageClassifier, images: LabelledImages, split: Split, chosen: EpochRecord
) -> ImageReport:
    """Judge the chosen weights on the held-out part, which nothing before has looked at."""
    logits = compute_logits(model, images, split.held_out).cpu().numpy()
    return ImageReport(
        examples=count_examples(split),
        epoch=chosen.epoch,
        validation_accuracy=chosen.validation["accuracy"],
        held_out=evaluate(logits, images.targets[split.held_out], images.labels),
        baseline=support_vectors(images, split),
    )
