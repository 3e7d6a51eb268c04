"""How good a finished model's pictures are, and what some of them look like."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.checkpoint import EpochRecord
from training.errors import PublishRefused
from training.record import Record
from training.runs import RunDirectory
from training.split import Indices, Split
from training.tasks.image_classification.images import LabelledImages
from training.tasks.image_generation import network
from training.tasks.image_generation.evaluate import (
    Frechet,
    Judge,
    Nearest,
    compare_with_held_out,
    seek_copies,
)
from training.tasks.image_generation.pictures import save_grid
from training.tasks.image_generation.plot import plot_quality
from training.tasks.image_generation.recipe import Acceptance, DiffusionRecipe
from training.tasks.image_generation.sampling import Classes, draw
from training.workload import Report, count_examples

SAMPLES_FILE = "samples.png"
QUALITY_FILE = "quality-against-steps.png"
SHOWN_OF_EACH = 10
MOST_CLASSES_SHOWN = 10


class Quality(Record):
    """Of pictures that were drawn in so many steps."""

    steps: int
    agreement: float
    """Share that the independent classifier takes for what was asked for."""
    frechet: Frechet | None
    """None if there are too few held-out pictures."""


class DiffusionReport(Report):
    validation_loss: float
    parameters: int
    samples: int
    """Pictures drawn at each number of steps."""
    guidance_scale: float
    quality: Quality
    """At the number of steps that a request gets that does not say otherwise."""
    by_steps: tuple[Quality, ...]
    """In the order of their numbers; `quality` is among them."""
    classifier_accuracy: float
    """Of the independent classifier, on the held-out pictures."""
    nearest: Nearest

    @property
    def figures(self) -> dict[str, float | None]:
        """For the manifest of what is published, by name."""
        frechet = self.quality.frechet
        return {
            "validation_loss": self.validation_loss,
            "agreement": self.quality.agreement,
            "frechet_distance": frechet.drawn if frechet else None,
            "frechet_distance_of_held_out_halves": frechet.real if frechet else None,
            "copies": self.nearest.copies,
        }

    def require(self, acceptance: Acceptance, run: Path) -> None:
        """Raises `PublishRefused` where the pictures are worse than is accepted."""
        # Each is written so that a figure which is not a number is refused.
        if not self.quality.agreement >= acceptance.agreement:
            raise PublishRefused(
                f"{run}: the classifier agrees with {self.quality.agreement:.4f} of the pictures,"
                f" which is below acceptance.agreement {acceptance.agreement}; train a better model"
            )
        frechet, limit = self.quality.frechet, acceptance.frechet_ratio
        if limit is not None and not (frechet and frechet.ratio <= limit):
            measured = f"{frechet.ratio:.2f} times" if frechet else "not known beside"
            raise PublishRefused(
                f"{run}: the Fréchet distance from held-out pictures is {measured} that between"
                f" two halves of them, and acceptance.frechet_ratio is {limit}; train a better"
                " model"
            )
        if not self.nearest.copies <= acceptance.copies:
            raise PublishRefused(
                f"{run}: {self.nearest.copies:.4f} of the pictures are nearer to one that was"
                " learned from than any held-out picture is, which is above acceptance.copies"
                f" {acceptance.copies}; train for fewer epochs, or with more pictures"
            )

    def summary(self) -> list[str]:
        frechet = self.quality.frechet
        return [
            f"epoch {self.epoch}: validation loss {self.validation_loss:.4f}",
            f"{self.samples} pictures drawn in {self.quality.steps} steps, guidance"
            f" {self.guidance_scale:g}: a classifier takes {self.quality.agreement:.4f} for what"
            f" was asked for, and {self.classifier_accuracy:.4f} of held-out pictures for what"
            " they are",
            f"Fréchet distance from held-out pictures {frechet.drawn:.4f}; between halves of those"
            f" {frechet.real:.4f}"
            if frechet
            else "too few held-out pictures for a Fréchet distance",
            f"the nearest to a picture learned from: {self.nearest.drawn_smallest:.4f}, of the"
            f" held-out ones {self.nearest.held_out_smallest:.4f}",
        ]


def report(
    run: RunDirectory,
    recipe: DiffusionRecipe,
    images: LabelledImages,
    split: Split,
    chosen: EpochRecord,
) -> DiffusionReport:
    """Draw with the checkpoint as anybody would load it, and judge; leaves two pictures, too."""
    denoiser, scheduler = network.load(run.checkpoint)
    labels = len(images.labels)
    classes = classes_to_draw(recipe, labels)
    judge = Judge(images, split.train)
    held_out = _some_of_each(images.targets, split.held_out, len(classes) // labels)
    real = judge.features(images.read(held_out))
    by_steps: list[Quality] = []
    drawn = {}
    standard = recipe.sampling.num_inference_steps
    for steps in sorted({standard, *recipe.judging.steps}):
        settings = recipe.sampling.model_copy(update={"num_inference_steps": steps})
        drawn[steps] = draw(
            denoiser,
            scheduler,
            classes,
            recipe.shape,
            settings,
            unconditional=labels,
            seed=recipe.seed,
        )
        frechet = compare_with_held_out(
            judge.features(drawn[steps]), classes, real, images.targets[held_out]
        )
        agreement = judge.agreement(drawn[steps], classes)
        by_steps.append(Quality(steps=steps, agreement=agreement, frechet=frechet))
    [quality] = [each for each in by_steps if each.steps == standard]
    accuracy = judge.agreement(images.read(split.held_out), images.targets[split.held_out])
    save_grid(run.path / SAMPLES_FILE, drawn[standard][_shown(classes, labels)], SHOWN_OF_EACH)
    plot_quality(
        run.path / QUALITY_FILE,
        [each.steps for each in by_steps],
        [each.agreement for each in by_steps],
        accuracy,
        [each.frechet for each in by_steps],
    )
    return DiffusionReport(
        examples=count_examples(split),
        epoch=chosen.epoch,
        validation_loss=chosen.validation["loss"],
        parameters=sum(weight.numel() for weight in denoiser.parameters()),
        samples=len(classes),
        guidance_scale=recipe.sampling.guidance_scale,
        quality=quality,
        by_steps=tuple(by_steps),
        classifier_accuracy=accuracy,
        nearest=seek_copies(drawn[standard], images, split.train, split.held_out),
    )


def classes_to_draw(recipe: DiffusionRecipe, labels: int) -> Classes:
    """Of each picture that a model is judged by: every class in turn."""
    return np.arange(max(1, recipe.judging.samples // labels) * labels) % labels


def _some_of_each(targets: Classes, indices: Indices, most: int) -> Indices:
    """At most so many of each class."""
    return np.concatenate(
        [indices[targets[indices] == which][:most] for which in np.unique(targets[indices])]
    )


def _shown(classes: Classes, labels: int) -> Indices:
    """A row of pictures for each of the first classes, repeated where there are too few."""
    rows = [np.flatnonzero(classes == which) for which in range(min(labels, MOST_CLASSES_SHOWN))]
    return np.concatenate([np.resize(row, SHOWN_OF_EACH) for row in rows])
