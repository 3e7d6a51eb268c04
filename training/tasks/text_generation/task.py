"""What the commands need of text generation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import TrainingError
from training.parity import ParityReport
from training.runs import RunDirectory
from training.tasks.text_generation.corpus import read_corpus
from training.tasks.text_generation.recipe import TextRecipe
from training.tasks.text_generation.workload import TextWorkload

if TYPE_CHECKING:
    from training.tasks.text_generation.publication import TextPublication


class TextGeneration:
    recipe = TextRecipe

    def open(self, recipe: TextRecipe, data: Path | None) -> TextWorkload:
        return TextWorkload(recipe, read_corpus(recipe.data, data))

    def export(self, run: RunDirectory, workload: TextWorkload) -> ParityReport:
        from training.tasks.text_generation.export import export

        return export(run, workload)

    def quantize(self, run: RunDirectory, workload: TextWorkload) -> ParityReport:
        raise TrainingError("a language model is not quantised: its weights are stored in 16 bits")

    def publication(
        self, run: RunDirectory, recipe: TextRecipe, precision: str, parity: ParityReport
    ) -> TextPublication:
        from training.tasks.text_generation.publication import TextPublication

        return TextPublication(run, recipe, precision, parity)
