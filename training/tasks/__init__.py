"""Kinds of models, by the name that a recipe's `task` gives; each is imported when it is needed.

All that belongs to one kind is in its package: settings, data, network, loss and score
(`Workload`), export, and what its card says (`Publication`).
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from training.errors import RunError
from training.recipe import Recipe

if TYPE_CHECKING:
    from training.parity import ParityReport
    from training.publish import Publication
    from training.runs import RunDirectory
    from training.workload import Workload

TASKS = {
    "dictation": "training.tasks.dictation.task:Dictation",
    "image_classification": "training.tasks.image_classification.task:ImageClassification",
    "image_generation": "training.tasks.image_generation.task:ImageGeneration",
    "speech_recognition": "training.tasks.speech_recognition.task:SpeechRecognition",
    "text_generation": "training.tasks.text_generation.task:TextGeneration",
    "translation": "training.tasks.translation.task:Translation",
}


class Task(Protocol):
    """What the commands need of one kind of model. `Any` stands for the task's own classes."""

    @property
    def recipe(self) -> type[Recipe]: ...

    def open(self, recipe: Any, data: Path | None) -> Workload:
        """Open what the recipe reads; `data` is the user's own, where the recipe takes any.

        Raises `DataError` when it cannot be used.
        """
        ...

    def export(self, run: RunDirectory, workload: Any) -> ParityReport:
        """Write the graphs with what they need to be served, and the proof that they are the model.

        Raises `ParityError` with the first check that failed; the report is written all the same.
        """
        ...

    def quantize(self, run: RunDirectory, workload: Any) -> ParityReport:
        """Write an int8 export beside the float32 one, with a parity report of its own.

        Raises `RunError` without a float32 export, and `ParityError` with the check that failed.
        """
        ...

    def publication(
        self, run: RunDirectory, recipe: Any, precision: str, parity: ParityReport
    ) -> Publication: ...


def find_task(name: str) -> Task:
    module_name, _, attribute = TASKS[name].partition(":")
    return cast(Task, getattr(import_module(module_name), attribute)())


def load_recipe(path: Path) -> Recipe:
    """Read a recipe of any task. Raises `RunError` when there is none or it is unusable."""
    try:
        task = json.loads(path.read_text(encoding="utf-8")).get("task")
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise RunError(f"{path}: {error}") from error
    if task not in TASKS:
        raise RunError(f"{path}: task: expected one of {', '.join(TASKS)}, got {task}")
    return find_task(task).recipe.load(path)
