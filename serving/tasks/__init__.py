"""What the numbers mean: tasks by the name that `config.pbtxt` gives in `parameters.task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from serving.errors import ModelLoadError
from serving.types import Parameter, Tensors, TensorSpec

if TYPE_CHECKING:
    from pydantic import BaseModel

TASKS = {
    "automatic-speech-recognition": "serving.tasks.speech_recognition:load",
    "image_classification": "serving.tasks.image_classification:ImageClassification.load",
    "text_to_image": "serving.tasks.text_to_image:TextToImage.load",
    "text_generation": "serving.tasks.text_generation:TextGeneration.load",
    "translation": "serving.tasks.translation:Translation.load",
}


@dataclass(frozen=True, slots=True)
class Question:
    """What a caller sent, as a model is asked it: a batch, and the request's parameters.

    `settings` are those of the task's `Parameters` that came along. What is too long for one
    request has `further` ones after `tensors`, in a sequence if the model must remember what was
    before.
    """

    settings: Any
    tensors: Tensors
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    further: Sequence[Tensors] = ()
    in_sequence: bool = False


@dataclass(frozen=True, slots=True)
class File:
    """An answer that is no JSON."""

    content: bytes
    media_type: str


class Task(Protocol):
    """One kind of question that people ask a model, in the schema of Hugging Face Inference."""

    @property
    def Parameters(self) -> type[BaseModel]:
        """The settings that a caller may send along; unknown ones are refused, or the model's."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The tensors by which it speaks to a model."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors by which the model answers."""
        ...

    @property
    def takes_long(self) -> bool:
        """Whether `preprocess` is to be called in a thread."""
        ...

    def preprocess(self, payload: object, settings: Any) -> Question:
        """From what the caller sent: the bytes of a body, or `inputs` of a JSON body.

        Raises `InvalidRequest`.
        """
        ...

    def postprocess(self, outputs: Tensors, question: Question) -> Any:
        """From the model's answer to what is sent back: a `File`, or anything that is JSON."""
        ...


@runtime_checkable
class LongTask(Task, Protocol):
    """A task whose questions may take several requests, and whose answers take long to read."""

    def conclude(self, parts: Sequence[Tensors], question: Question) -> Any:
        """From the answers to all requests, in order, to what is sent back. Call it in a thread."""
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
    load: Callable[[Path], Task] = attrgetter(attribute)(import_module(module_name))
    return load(directory)
