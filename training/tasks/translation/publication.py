"""A translator in a model repository: its config.pbtxt, its card, its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving.pbtxt import CONFIG_FILE, read_config
from serving.types import DYNAMIC, TensorSpec
from training import durable
from training.errors import PublishRefused
from training.parity import ParityReport
from training.runs import RunDirectory
from training.tasks.translation.card import model_card
from training.tasks.translation.export import ANSWER_FILE, EXAMPLE_FILE
from training.tasks.translation.recipe import TranslationRecipe
from training.tasks.translation.report import TranslationReport

MAX_BATCH_SIZE = 32
BACKEND = "python"

_INPUT = TensorSpec("text_input", "BYTES", (DYNAMIC, 1))
_OUTPUT = TensorSpec("text_output", "BYTES", (DYNAMIC, 1))


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
        """By input, output and task; the target languages may become more, never fewer."""
        path = model / CONFIG_FILE
        if not path.exists():
            durable.write_new(path, _config_text(model.name))
        # Also after writing: another first publisher may have been faster, with another model.
        config = read_config(model)
        if (config.inputs, config.outputs) != ((_INPUT,), (_OUTPUT,)):
            raise PublishRefused(
                f"{path} promises other inputs or outputs than a translator has,"
                " text_input and text_output: publish it as another model with --name"
            )
        if config.backend != BACKEND:
            raise PublishRefused(
                f"{path}: backend is {config.backend!r}, and this version needs {BACKEND!r}"
            )
        if config.task != "translation":
            raise PublishRefused(
                f"{path}: the task is {config.task!r}, and this version is for 'translation'"
            )

    def card(self, name: str, commands: Sequence[str]) -> str:
        export = self._run.export(self.precision)
        example = (export / EXAMPLE_FILE).read_text(encoding="utf-8").strip()
        answer = (export / ANSWER_FILE).read_text(encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in sorted(export.iterdir())}
        return model_card(
            name, self.recipe, self.report, self.parity, commands, (example, answer), sizes
        )


def _config_text(name: str) -> str:
    return f"""\
name: "{name}"
backend: "{BACKEND}"
max_batch_size: {MAX_BATCH_SIZE}
input {{
  name: "{_INPUT.name}"
  data_type: TYPE_STRING
  dims: [ 1 ]
}}
output {{
  name: "{_OUTPUT.name}"
  data_type: TYPE_STRING
  dims: [ 1 ]
}}
model_transaction_policy {{
  decoupled: true
}}
parameters {{
  key: "task"
  value {{ string_value: "translation" }}
}}
parameters {{
  key: "stepper"
  value {{ string_value: "generation" }}
}}
"""
