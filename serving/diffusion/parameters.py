"""What one request for an image may choose, and its limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

SolverName = Literal["ddpm", "ddim", "euler", "dpmsolver++"]

MAX_STEPS = 1000


class DiffusionParameters(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """Names and meanings are those of `diffusers`' pipelines.

    `guidance_scale` has an effect above 1. Without a `seed`, the image is different each time.
    `height` and `width` are pixels; None is the model's own size. Whoever streams is sent
    `partial_images` before the image, at even distances; None is one after every step.
    """

    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 50
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 1.0
    negative_prompt: str = ""
    scheduler: SolverName = "ddim"
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    height: Annotated[int, Field(ge=1)] | None = None
    width: Annotated[int, Field(ge=1)] | None = None
    partial_images: Annotated[int, Field(ge=0)] | None = None
