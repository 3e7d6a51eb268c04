"""The settings of an image classifier."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from serving.tasks.image_classification import ImagePreprocessing
from training.recipe import BelowOne, Fraction, Recipe, Settings


class Data(Settings):
    """Where the pictures come from, and how each is prepared for the model."""

    source: Literal["digits", "folder"]
    """scikit-learn's handwritten digits, or the user's own folder with one folder per class."""
    height: Annotated[int, Field(ge=4, le=256)]
    width: Annotated[int, Field(ge=4, le=256)]
    mode: Literal["L", "RGB"]
    resample: Literal["box", "bilinear", "bicubic", "lanczos"]
    background: Literal["any", "dark"]

    @property
    def preprocessing(self) -> ImagePreprocessing:
        return ImagePreprocessing(**self.model_dump(exclude={"source"}))


class Model(Settings):
    """The network's size; the data decide the rest."""

    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Feature maps of each stage; between two stages the picture's sides are halved."""
    dropout: BelowOne


class Augmentation(Settings):
    """How far a random view may be from its picture."""

    shift: Fraction
    """Of the picture's side."""
    rotation_degrees: Annotated[float, Field(ge=0.0, le=180.0)]
    smallest: Annotated[float, Field(gt=0.0, le=1.0)]
    largest: Annotated[float, Field(ge=1.0)]
    """The view's scale lies between these; uniform in the logarithm."""
    contrast: Fraction
    """The brightness is multiplied by 1 ± this."""
    noise: Fraction
    """Standard deviation of the noise, where 1 is from black to white."""
    outside: Literal["black", "edge"]
    """What a view shows beyond the picture: black, or the picture's edge repeated."""


class Acceptance(Settings):
    """What a model must show before it may be exported and published."""

    accuracy: Fraction
    """On the held-out part."""
    parity: PositiveFloat
    """Largest difference between a served logit and torch's."""
    int8_loss: Fraction
    """Held-out accuracy that quantisation may cost."""


class ImageRecipe(Recipe):
    task: Literal["image_classification"] = "image_classification"
    data: Data
    model: Model
    augmentation: Augmentation
    acceptance: Acceptance

    @model_validator(mode="after")
    def _every_stage_has_pixels(self) -> ImageRecipe:
        stages = len(self.model.widths)
        side = min(self.data.height, self.data.width)
        if side >> (stages - 1) < 1:
            raise ValueError(
                f"model.widths has {stages} stages, each half the size of the one before, "
                f"and a picture of {side} pixels has room for {side.bit_length()}"
            )
        return self
