"""Models of Whisper's architecture: what recognizer.json says of one, and how a text tells times.

Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022. Such a model
hears a window of fixed length at a time and writes its text; between the words it can write when
they are said. `text_output` has these times as Whisper writes them, in seconds from the beginning
of the recording: `<|0.00|> one two<|1.48|>`, and before them the language: `<|en|>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, PositiveInt, model_validator

from serving.errors import InvalidRequest, shown
from serving.model_file import read_model_file
from serving.speech.recognizer import RECOGNIZER_FILE

WAVEFORM = "waveform"
TRANSCRIBE = "transcribe"

LANGUAGE_MARK = re.compile(r"<\|([a-z]+)\|>")
MARKED = re.compile(r"<\|(\d+\.\d\d)\|>(.*?)<\|(\d+\.\d\d)\|>", re.DOTALL)
"""A segment and its times."""

_TokenId = Annotated[int, Field(ge=0)]


class WhisperSettings(BaseModel, frozen=True, extra="forbid", strict=True):
    """recognizer.json of a version directory; generation.json is beside it.

    The model hears `window_samples` at a time. The token `first_time_token` says the beginning of a
    window, and each that follows `samples_per_time` later; without it, no times are told. A model
    of several `languages` (ISO 639-1) is told which one is spoken, by default `language`; if there
    is none it finds out. `tasks` are what it can do, such as to translate; it does `task` if nobody
    says.
    """

    type: Literal["whisper"]
    sampling_rate: Annotated[int, Field(ge=4000, le=192_000)]
    window_samples: PositiveInt
    samples_per_time: PositiveInt = 320
    first_time_token: _TokenId | None = None
    no_times_token: _TokenId | None = None
    last_initial_time: PositiveInt | None = None
    """The latest time that a window's text may begin with, in units of `samples_per_time`."""
    languages: Mapping[str, _TokenId] = {}
    language: str | None = None
    tasks: Mapping[str, _TokenId] = {}
    task: str = TRANSCRIBE

    @classmethod
    def load(cls, directory: Path) -> WhisperSettings:
        """Read the settings of a version directory. Raises `ModelLoadError`, naming the field."""
        return read_model_file(cls, directory / RECOGNIZER_FILE)

    def save(self, directory: Path) -> None:
        text = self.model_dump_json(indent=2, exclude_none=True)
        (directory / RECOGNIZER_FILE).write_text(text + "\n", encoding="utf-8")

    @model_validator(mode="after")
    def _agree(self) -> WhisperSettings:
        if self.first_time_token is not None and self.no_times_token is None:
            raise ValueError("first_time_token needs a no_times_token")
        if self.language is not None and self.language not in self.languages:
            raise ValueError("language is not one of languages")
        if self.languages and self.task not in self.tasks:
            raise ValueError("task is not one of tasks")
        return self

    def prompt(self, language: str | None, task: str | None, *, times: bool) -> list[int | None]:
        """The tokens between the first of all and the text; None for a language to be found.

        Raises `InvalidRequest`, naming the parameter.
        """
        prompt: list[int | None] = []
        if self.languages:
            language = language or self.language
            prompt.append(None if language is None else self._chosen("language", language))
            prompt.append(self._chosen("task", task or self.task))
        else:
            for name, value in (("language", language), ("task", task)):
                if value is not None:
                    raise InvalidRequest(
                        f"parameter {name!r}: this model does one thing in one language, got"
                        f" {shown(value)}"
                    )
        if times and self.first_time_token is None:
            raise InvalidRequest("parameter 'return_timestamps': this model cannot tell times")
        if not times and self.no_times_token is not None:
            prompt.append(self.no_times_token)
        return prompt

    def _chosen(self, name: str, value: str) -> int:
        known = self.languages if name == "language" else self.tasks
        if value not in known:
            raise InvalidRequest(
                f"parameter {name!r}: expected one of {', '.join(known)}, got {shown(value)}"
            )
        return known[value]


def language_mark(code: str) -> str:
    return f"<|{code}|>"


def marked(start_s: float, text: str, end_s: float) -> str:
    """A segment as `text_output` has it."""
    return f"<|{start_s:.2f}|>{text}<|{end_s:.2f}|>"
