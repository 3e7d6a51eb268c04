"""A language model in a model repository: its config.pbtxt, its card, its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.errors import PublishRefused
from training.graphs.promise import promise
from training.parity import ParityReport
from training.runs import RunDirectory
from training.tasks.text_generation.card import model_card
from training.tasks.text_generation.recipe import TextRecipe
from training.tasks.text_generation.report import TextReport


class TextPublication:
    packages = ("transformers", "tokenizers")

    def __init__(self, run: RunDirectory, recipe: TextRecipe, precision: str, parity: ParityReport):
        self.recipe = recipe
        self.precision = precision
        self.parity = parity
        self.report = TextReport.load(run.report)
        self._run = run

    @property
    def metrics(self) -> dict[str, float | None]:
        held_out, baseline = self.report.held_out, self.report.baseline
        return {
            "held_out_bits_per_byte": held_out.bits_per_byte,
            "held_out_perplexity": held_out.perplexity,
            "held_out_accuracy": held_out.accuracy,
            "validation_loss": self.report.validation_loss,
            "validation_accuracy": self.report.validation_accuracy,
            "baseline_bits_per_byte": baseline.after_training_text,
        }

    def require_quality(self) -> None:
        measured, most = self.report.held_out.bits_per_byte, self.recipe.acceptance.bits_per_byte
        # Written so that a figure which is not a number is refused.
        if not measured <= most:
            raise PublishRefused(
                f"{self._run.path}: held-out text takes {measured:.3f} bits per byte, which is"
                f" above acceptance.bits_per_byte {most:g}; train a better model"
            )

    def promise(self, model: Path) -> None:
        promise(model, self.recipe.task)

    def card(self, name: str, commands: Sequence[str]) -> str:
        return model_card(name, self.recipe, self.report, self.parity, commands)
