"""What the commands need of dictation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import TrainingError
from training.parity import ParityReport
from training.runs import RunDirectory
from training.tasks.dictation.recipe import DictationRecipe
from training.tasks.dictation.workload import DictationWorkload
from training.tasks.speech_recognition.corpus import open_corpus

if TYPE_CHECKING:
    from training.tasks.dictation.publication import DictationPublication


class Dictation:
    recipe = DictationRecipe

    def open(self, recipe: DictationRecipe, data: Path | None) -> DictationWorkload:
        return DictationWorkload(recipe, open_corpus(recipe.data, data, recipe.seed))

    def export(self, run: RunDirectory, workload: DictationWorkload) -> ParityReport:
        from training.tasks.dictation.export import export

        return export(run, workload)

    def quantize(self, run: RunDirectory, workload: DictationWorkload) -> ParityReport:
        raise TrainingError("a recogniser is not quantised: its weights are stored in 16 bits")

    def publication(
        self, run: RunDirectory, recipe: DictationRecipe, precision: str, parity: ParityReport
    ) -> DictationPublication:
        from training.tasks.dictation.publication import DictationPublication

        return DictationPublication(run, recipe, precision, parity)
