"""What the commands need of speech recognition."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import TrainingError
from training.parity import ParityReport
from training.runs import RunDirectory
from training.tasks.speech_recognition.corpus import open_corpus
from training.tasks.speech_recognition.recipe import SpeechRecipe
from training.tasks.speech_recognition.workload import SpeechWorkload

if TYPE_CHECKING:
    from training.tasks.speech_recognition.publication import SpeechPublication


class SpeechRecognition:
    recipe = SpeechRecipe

    def open(self, recipe: SpeechRecipe, data: Path | None) -> SpeechWorkload:
        return SpeechWorkload(recipe, open_corpus(recipe.data, data, recipe.seed))

    def export(self, run: RunDirectory, workload: SpeechWorkload) -> ParityReport:
        from training.tasks.speech_recognition.export import export

        return export(run, workload)

    def quantize(self, run: RunDirectory, workload: SpeechWorkload) -> ParityReport:
        raise TrainingError("a recogniser is not quantised: its weights are stored in 16 bits")

    def publication(
        self, run: RunDirectory, recipe: SpeechRecipe, precision: str, parity: ParityReport
    ) -> SpeechPublication:
        from training.tasks.speech_recognition.publication import SpeechPublication

        return SpeechPublication(run, recipe, precision, parity)
