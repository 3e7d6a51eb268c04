"""What the commands need of translation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import TrainingError
from training.parity import ParityReport
from training.runs import RunDirectory
from training.tasks.translation.corpus import read_pairs
from training.tasks.translation.recipe import TranslationRecipe
from training.tasks.translation.workload import TranslationWorkload

if TYPE_CHECKING:
    from training.tasks.translation.publication import TranslationPublication


class Translation:
    recipe = TranslationRecipe

    def open(self, recipe: TranslationRecipe, data: Path | None) -> TranslationWorkload:
        return TranslationWorkload(recipe, read_pairs(recipe.data, data, recipe.seed))

    def export(self, run: RunDirectory, workload: TranslationWorkload) -> ParityReport:
        from training.tasks.translation.export import export

        return export(run, workload)

    def quantize(self, run: RunDirectory, workload: TranslationWorkload) -> ParityReport:
        raise TrainingError("a translator is not quantised: its weights are stored in 16 bits")

    def publication(
        self, run: RunDirectory, recipe: TranslationRecipe, precision: str, parity: ParityReport
    ) -> TranslationPublication:
        from training.tasks.translation.publication import TranslationPublication

        return TranslationPublication(run, recipe, precision, parity)
