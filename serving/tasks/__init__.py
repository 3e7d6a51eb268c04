"""What the numbers mean: tasks by the name that `config.pbtxt` gives in `parameters.task`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from serving.errors import ModelLoadError
from serving.types import Tensors, TensorSpec

TASKS = {
    "image_classification": "serving.tasks.image_classification:ImageClassification.load",
}


class Task(Protocol):
    """One kind of question that people ask a model, in the schema of Hugging Face Inference."""

    Parameters: type[BaseModel]
    """The settings that a caller may send along; unknown ones are refused."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    """The tensors by which it speaks to a model."""

    def preprocess(self, payload: bytes) -> Tensors:
        """From what the caller sent to a batch of one row. May take long: call it in a thread."""
        ...

    def postprocess(self, outputs: Tensors, parameters: Any) -> Any:
        """From that row's outputs to what is sent back as JSON."""
        ...


def load_task(name: str, directory: Path) -> Task:
    """Make a task from the assets in a version directory.

    Raises `ModelLoadError` for an unknown task and for assets that cannot be used.
    """
    if name not in TASKS:
        raise ModelLoadError(
            f"{directory.parent}: parameters.task {name!r} is not supported;"
            f" expected one of {', '.join(TASKS)}"
        )
    module_name, _, attribute = TASKS[name].partition(":")
    class_name, _, method = attribute.partition(".")
    load: Callable[[Path], Task] = getattr(getattr(import_module(module_name), class_name), method)
    return load(directory)
