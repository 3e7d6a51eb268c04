"""The settings of a language model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from training.recipe import BelowOne, Recipe, Settings


class Data(Settings):
    """Where the text comes from, and how it is cut into tokens."""

    source: Literal["standard_library", "folder"]
    """Python's own modules, or the user's folder of .txt files."""
    bytes: PositiveInt
    """Of text, at most; files are taken in the order of their hashes, as far as they fit."""
    vocabulary: Annotated[int, Field(ge=257, le=65_536)]
    """Tokens, at most: every byte, the end of a text, and what occurs often."""
    steps: PositiveInt
    """In one epoch, at most: of a long text each epoch takes another part."""


class Model(Settings):
    """The network's size."""

    context: Annotated[int, Field(ge=16)]
    """Tokens that it sees at once, and the longest text that it can write."""
    width: PositiveInt
    heads: PositiveInt
    layers: PositiveInt
    dropout: BelowOne

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Model:
        if self.width % self.heads:
            raise ValueError(
                f"model.width is {self.width}; it must be a multiple of model.heads,"
                f" which is {self.heads}"
            )
        return self


class Acceptance(Settings):
    """What a model must show before it may be published."""

    bits_per_byte: PositiveFloat
    """On the held-out part, at most; 8 is the text itself."""


class TextRecipe(Recipe):
    task: Literal["text_generation"] = "text_generation"
    batch_size: PositiveInt
    """Windows of `model.context` tokens in one step, over all devices together."""
    data: Data
    model: Model
    acceptance: Acceptance
