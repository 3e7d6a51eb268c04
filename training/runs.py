"""The directory of one training run: what is in it, and when a run may use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training import durable
from training.errors import RunError
from training.recipe import Recipe, first_difference
from training.record import Record
from training.tasks import load_recipe

FLOAT32 = "float32"
INT8 = "int8"

GRAPH_FILE = "model.onnx"
PARITY_FILE = "parity.json"
CURVES_FILE = "curves.png"


class Origin(Record):
    """How a run was made, for its card and for the commands that come after it."""

    command: str
    """With paths relative to where it was given, fit to be shown to anybody."""
    directory: str | None
    """The user's own data, absolute; stays in the run directory."""
    data_hash: str
    split_hash: str


@dataclass(frozen=True)
class RunDirectory:
    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.json"

    @property
    def origin(self) -> Path:
        return self.path / "origin.json"

    @property
    def states(self) -> Path:
        """What training continues from."""
        return self.path / "state"

    @property
    def checkpoint(self) -> Path:
        """The model that training chose, in the Hugging Face layout."""
        return self.path / "checkpoint"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def curves(self) -> Path:
        return self.path / CURVES_FILE

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    def export(self, precision: str) -> Path:
        return self.path / "export" / precision

    def begin(self, recipe: Recipe, origin: Origin, *, resume: bool) -> None:
        """Take the directory for a run of this recipe on these data.

        Raises `RunError` when it holds another run, or one that the user did not ask to resume.
        """
        holds_run = self.recipe.exists() and self.origin.exists()
        if holds_run and resume:
            self._check_same(recipe, origin)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        # Killed before it could begin, a run has left no more than this.
        durable.remove_leftovers(self.path)
        if any(path != self.origin for path in self.path.iterdir()):
            advice = (
                " and holds no run to resume:" if resume else ": continue its run with --resume, or"
            )
            raise RunError(
                f"{self.path} is not empty{advice} choose another directory with --run-dir"
            )
        origin.save(self.origin)
        recipe.save(self.recipe)

    def load(self) -> tuple[Recipe, Origin]:
        """The recipe and the origin of a finished run. Raises `RunError` if it is none."""
        if not self.report.exists():
            state = "has not finished training" if self.recipe.exists() else "holds no training run"
            raise RunError(f"{self.path} {state}: run slipway train --run-dir {self.path} first")
        return load_recipe(self.recipe), Origin.load(self.origin)

    def _check_same(self, recipe: Recipe, origin: Origin) -> None:
        difference = first_difference(load_recipe(self.recipe), recipe)
        if difference is not None:
            key, before, now = difference
            raise RunError(
                f"{self.path} was made with {key}={before} and this command asks for {key}={now};"
                " resume with the same settings, or choose another directory with --run-dir"
            )
        if Origin.load(self.origin).data_hash != origin.data_hash:
            raise RunError(
                f"the data are not those that {self.path} was trained on;"
                " restore them, or choose another directory with --run-dir"
            )


def shown(path: Path) -> str:
    """A path as a card may show it: relative, and never where on this machine it is."""
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()
