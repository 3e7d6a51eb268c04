"""The settings of a model that draws."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from serving.diffusion.parameters import MAX_STEPS
from training.recipe import BelowOne, Fraction, Recipe, Settings
from training.tasks.image_classification.recipe import Data

GROUPS = 8
"""Of feature maps that are normalised together."""

Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]


class Model(Settings):
    """The network's size; the data decide the rest."""

    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Feature maps of each stage; between two stages the picture's sides are halved."""
    layers: PositiveInt
    """Residual blocks on the way down a stage; one more on the way up."""
    dropout: BelowOne


class Diffusion(Settings):
    """How the network learns to remove noise."""

    prediction_type: Literal["epsilon", "v_prediction"]
    """What it tells of a noisy picture: the noise, or v of Salimans and Ho, 2022."""
    unlabelled: BelowOne
    """Of the pictures, how many are shown without their class: guidance needs both ways."""
    average_decay: BelowOne
    """The weights that draw are a running average of the trained ones, of which each step keeps
    so much."""


class Sampling(Settings):
    """What a request gets that does not say otherwise."""

    num_inference_steps: Steps
    guidance_scale: Annotated[float, Field(ge=1.0, le=100.0)]


class Judging(Settings):
    """What is drawn to judge the finished model by."""

    samples: Annotated[int, Field(ge=10)]
    """Pictures, equally many of each class; at each number of steps."""
    steps: Annotated[tuple[Steps, ...], Field(min_length=1)]
    """Numbers of steps, besides that of `Sampling`, at which the quality is measured."""


class Acceptance(Settings):
    """What a model must show before it may be exported and published."""

    agreement: Fraction
    """Of the pictures, how many an independent classifier takes for what was asked for."""
    frechet_ratio: PositiveFloat | None
    """The Fréchet distance from the held-out pictures, as a multiple of that between two parts of
    them; null for any."""
    copies: Fraction
    """Of the pictures, how many are closer to one that was learned from than any held-out is."""
    parity: PositiveFloat
    """Largest difference between a served number and torch's."""


class DiffusionRecipe(Recipe):
    task: Literal["image_generation"] = "image_generation"
    passes: PositiveInt
    """Times that an epoch shows each picture, each time with other noise."""
    data: Data
    model: Model
    diffusion: Diffusion
    sampling: Sampling
    judging: Judging
    acceptance: Acceptance

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one picture: channels, height, width."""
        return self.data.preprocessing.channels, self.data.height, self.data.width

    @model_validator(mode="after")
    def _stages_fit_the_picture(self) -> DiffusionRecipe:
        multiple = 2 ** (len(self.model.widths) - 1)
        for key in ("height", "width"):
            side = getattr(self.data, key)
            if side % multiple:
                raise ValueError(
                    f"data.{key} is {side}; the {len(self.model.widths)} stages of model.widths"
                    f" need a multiple of {multiple}"
                )
        return self

    @model_validator(mode="after")
    def _guidance_was_learned(self) -> DiffusionRecipe:
        if self.sampling.guidance_scale > 1.0 and not self.diffusion.unlabelled:
            raise ValueError(
                f"sampling.guidance_scale is {self.sampling.guidance_scale:g}, and guidance needs"
                " diffusion.unlabelled above 0"
            )
        return self

    @model_validator(mode="after")
    def _groups_fit_the_widths(self) -> DiffusionRecipe:
        for width in self.model.widths:
            if width % GROUPS:
                raise ValueError(f"model.widths: expected multiples of {GROUPS}, got {width}")
        return self
