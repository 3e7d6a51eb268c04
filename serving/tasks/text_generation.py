"""Text generation: from the beginning of a text to what follows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from serving.tasks import Question
from serving.tasks.payload import as_texts
from serving.tasks.text import (
    INPUT,
    INPUTS,
    OUTPUTS,
    from_tensors,
    request_parameters,
    to_tensors,
)
from serving.types import Tensors


class TextGeneration:
    """The task. Settings that it does not know are parameters of the model."""

    class Parameters(BaseModel, extra="allow", frozen=True):
        return_full_text: bool | None = None
        # Clients send these with their defaults; other values would have no effect here.
        best_of: Literal[1] | None = None
        decoder_input_details: Literal[False] | None = None
        details: Literal[False] | None = None
        watermark: Literal[False] | None = None

    inputs = INPUTS
    outputs = OUTPUTS
    takes_long = False

    @classmethod
    def load(cls, directory: Path) -> TextGeneration:
        """The task needs nothing of a version directory."""
        return cls()

    def preprocess(self, payload: object, settings: TextGeneration.Parameters) -> Question:
        """One text or several, a row for each."""
        parameters = request_parameters([settings.model_extra or {}])
        return Question(settings, to_tensors(as_texts(payload)), parameters)

    def postprocess(self, outputs: Tensors, question: Question) -> list[dict[str, str]]:
        """What was generated, in the order of the inputs."""
        texts = from_tensors(outputs)
        if question.settings.return_full_text:
            prompts = question.tensors[INPUT].ravel()
            texts = [begun.decode() + text for begun, text in zip(prompts, texts, strict=True)]
        return [{"generated_text": text} for text in texts]
