"""recognizer.json of a version directory: the facts of a model that recognises speech."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from serving.model_file import read_model_file

RECOGNIZER_FILE = "recognizer.json"

MAX_WORDS = 2000
"""Of a model's own. A request takes some 20 KB for each while it is heard, and a frame 0.3 us."""


class _Kind(BaseModel):
    type: Literal["ctc", "ctc-live", "whisper"]


def kind_of(directory: Path) -> str:
    """What a version directory's recognizer.json tells of. Raises `ModelLoadError`."""
    return read_model_file(_Kind, directory / RECOGNIZER_FILE).type


class RecognizerSettings(BaseModel, frozen=True, extra="forbid", strict=True):
    """Of a model that gives log-probabilities of the `vocabulary` for every frame of a waveform.

    It hears whole recordings ("ctc"), up to `max_seconds` of them at once, or live ones
    ("ctc-live"), chunk after chunk. A text is what its tokens are when they are written one after
    another, so a space is a token or part of one. `language` is that of the texts, in ISO 639-1.
    If there are `words`, texts have no others.
    """

    type: Literal["ctc", "ctc-live"]
    sampling_rate: Annotated[int, Field(ge=4000, le=192_000)]
    samples_per_frame: PositiveInt
    blank: Annotated[int, Field(ge=0)]
    vocabulary: tuple[str, ...]
    language: str | None = None
    words: tuple[str, ...] = ()

    # Of whole recordings: two windows of a longer one have `overlap_seconds` in common.
    max_seconds: PositiveFloat | None = None
    overlap_seconds: NonNegativeFloat | None = None

    # Of live ones: a frame comes out so many frames after its samples went in.
    chunk_samples: PositiveInt | None = None
    delay_frames: NonNegativeInt = 0

    @classmethod
    def load(cls, directory: Path) -> RecognizerSettings:
        """Read the settings of a version directory. Raises `ModelLoadError`, naming the field."""
        return read_model_file(cls, directory / RECOGNIZER_FILE)

    def save(self, directory: Path) -> None:
        text = self.model_dump_json(indent=2, exclude_none=True)
        (directory / RECOGNIZER_FILE).write_text(text + "\n", encoding="utf-8")

    @property
    def frame_s(self) -> float:
        return self.samples_per_frame / self.sampling_rate

    @property
    def max_frames(self) -> int:
        assert self.max_seconds is not None
        return int(self.max_seconds / self.frame_s)

    @property
    def overlap_frames(self) -> int:
        assert self.overlap_seconds is not None
        return int(self.overlap_seconds / self.frame_s)

    @property
    def is_live(self) -> bool:
        return self.type == "ctc-live"

    @property
    def chunk_frames(self) -> int:
        assert self.chunk_samples is not None
        return self.chunk_samples // self.samples_per_frame

    def _can_spell(self, words: Sequence[str]) -> None:
        if len(words) > MAX_WORDS:
            raise ValueError(f"there are {len(words)} words; expected at most {MAX_WORDS}")
        classes = [text for id, text in enumerate(self.vocabulary) if id != self.blank]
        if " " not in classes:
            raise ValueError("words need a vocabulary with a space")
        characters = {text.casefold() for text in classes}
        if len(characters) < len(classes) or any(len(text.casefold()) != 1 for text in classes):
            raise ValueError(
                "words need a vocabulary of single characters that differ in more than case"
            )
        for word in words:
            if not word or " " in word or not characters.issuperset(word.casefold()):
                raise ValueError(f"the vocabulary cannot spell {word!r}, which is one of the words")

    @model_validator(mode="after")
    def _agree(self) -> RecognizerSettings:
        if self.blank >= len(self.vocabulary):
            raise ValueError(f"blank is not one of the {len(self.vocabulary)} classes")
        if self.words:
            self._can_spell(self.words)
        if self.is_live:
            if self.chunk_samples is None or self.chunk_samples % self.samples_per_frame:
                raise ValueError("chunk_samples must be a multiple of samples_per_frame")
            return self
        if self.max_seconds is None or self.overlap_seconds is None:
            raise ValueError("max_seconds and overlap_seconds are required")
        if not self.max_frames > 2 * self.overlap_frames:
            raise ValueError("max_seconds must be more than twice overlap_seconds and a frame")
        return self
