"""The settings of a recogniser that writes what it hears, with times: Whisper's architecture."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from training.recipe import BelowOne, Fraction, Recipe, Settings
from training.tasks.speech_recognition.recipe import Acoustics, Data, Masks, WordErrors


class Model(Settings):
    """The network's size."""

    seconds: PositiveInt
    """That it hears at once."""
    mels: Annotated[int, Field(ge=8, le=128)]
    """Bands of the spectrum."""
    width: PositiveInt
    heads: PositiveInt
    hidden: PositiveInt
    """Of the feed-forward layers."""
    encoder_layers: PositiveInt
    decoder_layers: PositiveInt
    tokens: Annotated[int, Field(ge=16)]
    """That the text of a window may have, with those that are no text."""
    vocabulary: Annotated[int, Field(ge=256, le=65_536)]
    """Pieces of text, at most: every byte, and what occurs often."""
    dropout: BelowOne

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Model:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"model.width is {self.width}; it must be a multiple of twice model.heads,"
                f" which is {self.heads}"
            )
        return self


class Windows(Settings):
    """What is said in a window to learn from."""

    utterances: PositiveInt
    """At most, one after another, as far as they fit."""
    pause_seconds: tuple[float, float]
    """Before each and after the last, from and to."""
    timed: Fraction
    """How many of the windows are written down with times."""


class Hints(Settings):
    """What the network is told beside the next token while it learns, and what that weighs.

    By tokens alone, attention takes ten times as long to find out what to attend to.
    """

    sounds: NonNegativeFloat
    """Which sound is made in each frame, where the corpus knows."""
    attention: NonNegativeFloat
    """Where in its utterance each token is said, for half of the heads."""
    attention_seconds: PositiveFloat
    """As far from there as a head may look without harm: a standard deviation."""


class DictationRecipe(Recipe):
    task: Literal["dictation"] = "dictation"
    data: Data
    model: Model
    windows: Windows
    hints: Hints
    acoustics: Acoustics
    """`silence_seconds` are those of the recordings that judge it."""
    masks: Masks
    acceptance: WordErrors
