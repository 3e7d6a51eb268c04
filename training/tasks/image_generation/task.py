"""What the commands need of a model that draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import TrainingError
from training.parity import ParityReport
from training.runs import RunDirectory
from training.tasks.image_classification.images import open_images
from training.tasks.image_generation.recipe import DiffusionRecipe
from training.tasks.image_generation.workload import DiffusionWorkload

if TYPE_CHECKING:
    from training.tasks.image_generation.publication import DiffusionPublication


class ImageGeneration:
    recipe = DiffusionRecipe

    def open(self, recipe: DiffusionRecipe, data: Path | None) -> DiffusionWorkload:
        return DiffusionWorkload(recipe, open_images(recipe.data, data))

    def export(self, run: RunDirectory, workload: DiffusionWorkload) -> ParityReport:
        from training.tasks.image_generation.export import export

        return export(run, workload)

    def quantize(self, run: RunDirectory, workload: DiffusionWorkload) -> ParityReport:
        raise TrainingError(
            "a model that draws is not quantised: its weights are stored in 16 bits"
        )

    def publication(
        self, run: RunDirectory, recipe: DiffusionRecipe, precision: str, parity: ParityReport
    ) -> DiffusionPublication:
        from training.tasks.image_generation.publication import DiffusionPublication

        return DiffusionPublication(run, recipe, precision, parity)
