"""The settings of a translator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from training.recipe import BelowOne, Fraction, Recipe, Settings


class Data(Settings):
    """Where the sentences come from, and how they are cut into pieces."""

    source: Literal["phrases", "file"]
    """Made from CLDR's tables, or the user's own parallel corpus."""
    sentences: PositiveInt
    """Different English sentences to make; a file brings its own."""
    vocabulary: Annotated[int, Field(ge=64, le=65_536)]
    """Pieces, at most; the languages share them."""
    longest: Annotated[int, Field(ge=8)]
    """Pieces of a sentence; longer ones of a file are left out."""


class Model(Settings):
    """The network's size."""

    width: PositiveInt
    heads: PositiveInt
    encoder_layers: PositiveInt
    decoder_layers: PositiveInt
    feed_forward: PositiveInt
    dropout: BelowOne

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Model:
        if self.width % self.heads or self.width % 2:
            raise ValueError(
                f"model.width is {self.width}; it must be even and a multiple of model.heads,"
                f" which is {self.heads}"
            )
        return self


class Acceptance(Settings):
    """What a model must show before it may be exported and published."""

    exact_match: Fraction
    """On the held-out part, in each language."""


class TranslationRecipe(Recipe):
    task: Literal["translation"] = "translation"
    batch_size: PositiveInt
    """Tokens in one step, sources and targets with their padding, over all devices together."""
    data: Data
    model: Model
    acceptance: Acceptance
