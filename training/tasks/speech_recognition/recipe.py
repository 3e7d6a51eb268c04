"""The settings of a speech recogniser."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from training.recipe import BelowOne, Fraction, Recipe, Settings

Range = tuple[float, float]
"""From, to."""


class Data(Settings):
    """Where the recordings come from."""

    source: Literal["espeak", "manifest"]
    """Synthesised by espeak-ng, or the user's own, listed in a CSV file."""
    utterances: Annotated[int, Field(ge=50)]
    """To synthesise; a manifest brings its own."""
    invented: Annotated[int, Field(ge=0)]
    """Further utterances to synthesise, each by a speaker made up for it, to learn from only."""
    longest_seconds: PositiveFloat
    """A longer recording of a manifest is refused; a longer one that is synthesised, left out."""
    closed_vocabulary: bool = False
    """Whether nobody says other words than the training part has. Then no others are written."""


class Model(Settings):
    """The network's size."""

    architecture: Literal["recurrent", "transformer", "live"]
    """GRUs in both directions, self-attention, or GRUs that hear what has been said so far."""
    mels: Annotated[int, Field(ge=8, le=64)]
    """Bands of the spectrum."""
    width: PositiveInt
    """Of the convolutions; of all layers of a transformer."""
    hidden: PositiveInt
    """Of each GRU; of a transformer's feed-forward layers."""
    layers: PositiveInt
    heads: PositiveInt = 4
    """Of a transformer."""
    delay: Annotated[int, Field(ge=0, le=32)] = 5
    """Of a live one: frames of 30 ms that it hears of what comes after, before it answers."""
    dropout: BelowOne

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Model:
        if self.architecture == "transformer" and self.width % (4 * self.heads):
            raise ValueError(
                f"model.width is {self.width}; a transformer's must be a multiple of four times"
                f" model.heads, which is {self.heads}"
            )
        return self


class Acoustics(Settings):
    """Where an utterance is heard: each value is drawn anew, uniformly, for each utterance."""

    silence_seconds: Range
    """Before it, and after it."""
    playback: Range
    """Samples are played so many times as fast, which moves pitch, formants and tempo alike."""
    tilt_db: Range
    """How much louder the highest frequencies become, a part of it from each octave to the next."""
    level_db: Range
    """Of the speech, root mean square; a full-scale square wave has 0."""
    noise_db: Range
    """Level of the speech above the noise, which is white to brown."""
    rooms: Fraction
    """How many of the utterances are heard in a room that reverberates."""
    reverberation_seconds: Range
    """Until an echo has faded by 60 dB."""
    direct_db: Range
    """Level of the direct sound above all echoes together."""


class Masks(Settings):
    """Stripes of the spectrogram that are hidden: SpecAugment, Park et al., 2019."""

    times: Annotated[int, Field(ge=0)]
    time_seconds: PositiveFloat
    """Of the longest."""
    bands: Annotated[int, Field(ge=0)]
    band_fraction: Fraction
    """Of all bands, the widest."""


class WordErrors(Settings):
    """How many words a model may have wrong before it may be published."""

    word_errors_20_db: PositiveFloat
    """Word error rate on the held-out part, with noise 20 dB below the speech."""
    word_errors_10_db: PositiveFloat


class Acceptance(WordErrors):
    """What a model must show before it may be exported and published."""

    parity: PositiveFloat
    """Largest difference between a served number and torch's."""


class SpeechRecipe(Recipe):
    task: Literal["speech_recognition"] = "speech_recognition"
    data: Data
    model: Model
    acoustics: Acoustics
    masks: Masks
    acceptance: Acceptance
