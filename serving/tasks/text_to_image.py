"""Text to image: a picture of what a prompt says."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel

from serving.diffusion.settings import DiffusionSettings
from serving.tasks import File, Question
from serving.tasks.payload import as_one_text
from serving.tasks.text import request_parameters
from serving.types import DYNAMIC, Array, Tensors, TensorSpec

INPUT = "prompt"
OUTPUT = "image"

Format = Literal["png", "jpeg", "webp"]


class TextToImage:
    """The task. Settings that it does not know are parameters of the model; the answer is a PNG."""

    class Parameters(BaseModel, extra="allow", frozen=True):
        # One request for one picture is one answer.
        num_images_per_prompt: Literal[1] | None = None

    inputs = (TensorSpec(INPUT, "BYTES", (DYNAMIC, 1)),)
    takes_long = True

    def __init__(self, channels: int):
        self.outputs = (TensorSpec(OUTPUT, "UINT8", (DYNAMIC, DYNAMIC, DYNAMIC, channels)),)

    @classmethod
    def load(cls, directory: Path) -> TextToImage:
        """Read from a version directory whether there are colours. Raises `ModelLoadError`."""
        return cls(DiffusionSettings.load(directory).image_channels)

    def preprocess(self, payload: object, settings: TextToImage.Parameters) -> Question:
        """A prompt."""
        chosen = request_parameters([settings.model_extra or {}])
        return Question(settings, prompts([as_one_text(payload)]), chosen)

    def postprocess(self, outputs: Tensors, question: Question) -> File:
        [pixels] = outputs[OUTPUT]
        return File(encoded(pixels), "image/png")

    def conclude(self, parts: Sequence[Tensors], question: Question) -> File:
        return self.postprocess(parts[-1], question)


@dataclass(frozen=True, slots=True)
class Encoding:
    """Of a file with a picture; `quality`, of 100, has an effect where something is lost."""

    format: Format = "png"
    quality: int = 100


def prompts(texts: Sequence[str]) -> Tensors:
    """A row for each text."""
    tensor = np.empty((len(texts), 1), np.object_)
    tensor[:, 0] = [text.encode() for text in texts]
    return {INPUT: tensor}


def encoded(pixels: Array, encoding: Encoding | None = None) -> bytes:
    """The file of a picture, [height, width, channel]."""
    from PIL import Image

    encoding = encoding or Encoding()
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    picture.save(file, encoding.format, quality=encoding.quality)
    return file.getvalue()
