"""A translator in a model repository: its config.pbtxt, its card, its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.errors import PublishRefused
from training.graphs.from_run import ANSWER_FILE, EXAMPLE_FILE
from training.graphs.promise import promise
from training.parity import ParityReport
from training.runs import RunDirectory
from training.tasks.translation.card import model_card
from training.tasks.translation.recipe import TranslationRecipe
from training.tasks.translation.report import TranslationReport


class TranslationPublication:
    packages = ("babel", "num2words", "sacrebleu", "sentencepiece", "transformers")

    def __init__(
        self,
        run: RunDirectory,
        recipe: TranslationRecipe,
        precision: str,
        parity: ParityReport,
    ):
        self.recipe = recipe
        self.precision = precision
        self.parity = parity
        self.report = TranslationReport.load(run.report)
        self._run = run

    @property
    def metrics(self) -> dict[str, float | None]:
        figures: dict[str, float | None] = {
            "validation_accuracy": self.report.validation_accuracy,
        }
        for score in self.report.held_out:
            figures[f"held_out_exact_match_{score.language}"] = score.exact_match
            figures[f"held_out_bleu_{score.language}"] = score.bleu
        return figures

    def require_quality(self) -> None:
        wanted = self.recipe.acceptance.exact_match
        for score in self.report.held_out:
            if score.exact_match < wanted:
                raise PublishRefused(
                    f"{self._run.path}: held-out exact match in {score.language},"
                    f" {score.exact_match:.4f}, is below acceptance.exact_match {wanted};"
                    " train a better model"
                )

    def promise(self, model: Path) -> None:
        promise(model, self.recipe.task)

    def card(self, name: str, commands: Sequence[str]) -> str:
        export = self._run.export(self.precision)
        example = (export / EXAMPLE_FILE).read_text(encoding="utf-8").strip()
        answer = (export / ANSWER_FILE).read_text(encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in sorted(export.iterdir())}
        return model_card(
            name, self.recipe, self.report, self.parity, commands, (example, answer), sizes
        )
