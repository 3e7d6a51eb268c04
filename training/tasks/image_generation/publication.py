"""A model that draws in a model repository: its config.pbtxt, its card, its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving.diffusion.settings import DiffusionSettings
from serving.steppers.diffusion import OUTPUT
from serving.steppers.drawing import INPUT
from training.parity import ParityReport
from training.promise import promise
from training.runs import RunDirectory
from training.tasks.image_generation.card import model_card
from training.tasks.image_generation.export import EXAMPLE_FILE
from training.tasks.image_generation.recipe import DiffusionRecipe
from training.tasks.image_generation.report import DiffusionReport
from training.tasks.image_generation.verify import SERVED_AGREEMENT

TASK = "text_to_image"
STEPPER = "diffusion"
MAX_BATCH_SIZE = 16


class DiffusionPublication:
    packages = ("diffusers", "pillow", "scikit-learn")

    def __init__(
        self, run: RunDirectory, recipe: DiffusionRecipe, precision: str, parity: ParityReport
    ):
        self.recipe = recipe
        self.precision = precision
        self.parity = parity
        self.report = DiffusionReport.load(run.report)
        self._run = run

    @property
    def metrics(self) -> dict[str, float | None]:
        served = self.parity.measurements[SERVED_AGREEMENT]
        return {**self.report.figures, "agreement_as_served": served}

    def require_quality(self) -> None:
        self.report.require(self.recipe.acceptance, self._run.path)

    def promise(self, model: Path) -> None:
        promise(model, config_text(model.name, self._settings))

    def card(self, name: str, commands: Sequence[str]) -> str:
        export = self._run.export(self.precision)
        example = (export / EXAMPLE_FILE).read_text(encoding="utf-8").strip()
        sizes = {path.name: path.stat().st_size for path in sorted(export.iterdir())}
        return model_card(
            name, self.recipe, self._settings, self.report, self.parity, commands, example, sizes
        )

    @property
    def _settings(self) -> DiffusionSettings:
        return DiffusionSettings.load(self._run.export(self.precision))


def config_text(name: str, settings: DiffusionSettings) -> str:
    sample = settings.sample
    return f"""\
name: "{name}"
backend: "python"
max_batch_size: {MAX_BATCH_SIZE}
input {{
  name: "{INPUT}"
  data_type: TYPE_STRING
  dims: [ 1 ]
}}
output {{
  name: "{OUTPUT}"
  data_type: TYPE_UINT8
  dims: [ {sample.height}, {sample.width}, {sample.channels} ]
}}
model_transaction_policy {{
  decoupled: true
}}
parameters {{
  key: "task"
  value {{ string_value: "{TASK}" }}
}}
parameters {{
  key: "stepper"
  value {{ string_value: "{STEPPER}" }}
}}
"""
