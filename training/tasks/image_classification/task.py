"""What the commands need of image classification."""

from __future__ import annotations

from pathlib import Path

from training.parity import ParityReport
from training.runs import RunDirectory
from training.tasks.image_classification.images import open_images
from training.tasks.image_classification.publication import ImagePublication
from training.tasks.image_classification.recipe import ImageRecipe
from training.tasks.image_classification.workload import ImageWorkload


class ImageClassification:
    recipe = ImageRecipe

    def open(self, recipe: ImageRecipe, data: Path | None) -> ImageWorkload:
        return ImageWorkload(recipe, open_images(recipe.data, data))

    def export(self, run: RunDirectory, workload: ImageWorkload) -> ParityReport:
        from training.tasks.image_classification.export import export

        return export(run, workload.recipe, workload.images, workload.split)

    def quantize(self, run: RunDirectory, workload: ImageWorkload) -> ParityReport:
        from training.tasks.image_classification.quantize import quantize

        return quantize(run, workload.recipe, workload.images, workload.split)

    def publication(
        self, run: RunDirectory, recipe: ImageRecipe, precision: str, parity: ParityReport
    ) -> ImagePublication:
        return ImagePublication(run, recipe, precision, parity)
