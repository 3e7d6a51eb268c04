"""Speech recognition by a model that writes what it hears: its text tells times, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel

from serving.speech.transcript import Segment, SegmentedTranscript
from serving.speech.whisper import LANGUAGE_MARK, MARKED, WAVEFORM, WhisperSettings
from serving.tasks import Question
from serving.tasks.payload import as_bytes
from serving.tasks.text import OUTPUTS, from_tensors, request_parameters
from serving.types import DYNAMIC, Array, Tensors, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Dictation(Question):
    """A recording, which the model hears as a whole."""

    duration_s: float

    @property
    def times(self) -> bool:
        return bool(self.parameters["return_timestamps"])


class WhisperParameters(BaseModel, extra="forbid", frozen=True):
    """`generation_parameters` are the model's; `language` is that of ISO 639-1."""

    return_timestamps: bool | None = None
    language: str | None = None
    task: str | None = None
    generation_parameters: Mapping[str, Any] = {}


class WhisperRecognition:
    """The task. The times that it tells are those of segments, which the model chooses itself."""

    Parameters = WhisperParameters
    inputs: tuple[TensorSpec, ...] = (TensorSpec(WAVEFORM, "FP32", (DYNAMIC, DYNAMIC)),)
    outputs: tuple[TensorSpec, ...] = OUTPUTS
    takes_long = True

    def __init__(self, settings: WhisperSettings, decode: Callable[[bytes, int], Array]):
        self.settings = settings
        self._decode = decode

    @property
    def languages(self) -> Sequence[str]:
        """Those that a caller may ask for; none if there is no choice."""
        return tuple(self.settings.languages)

    def preprocess(self, payload: object, settings: WhisperParameters) -> Dictation:
        """One recording: its bytes, or in JSON their base64."""
        times = settings.return_timestamps
        if times is None:
            times = self.settings.first_time_token is not None
        own: Mapping[str, object] = {
            "return_timestamps": times,
            "language": settings.language,
            "task": settings.task,
        }
        parameters = request_parameters([settings.generation_parameters, own])
        waveform = self._decode(as_bytes(payload), self.settings.sampling_rate)
        return Dictation(
            settings,
            {WAVEFORM: waveform[np.newaxis]},
            parameters,
            duration_s=len(waveform) / self.settings.sampling_rate,
        )

    def listener(self, question: Dictation) -> WhisperListener:
        """What the answers for a recording are given to, in order."""
        return WhisperListener(question)

    def postprocess(self, outputs: Tensors, question: Question) -> dict[str, Any]:
        """The text of a recording, and its segments with their times in seconds."""
        assert isinstance(question, Dictation)
        listener = self.listener(question)
        listener.push(outputs)
        transcript = listener.transcript()
        if not question.times:
            return {"text": transcript.text}
        return {
            "text": transcript.text,
            "chunks": [
                {"text": segment.text, "timestamp": [segment.start_s, segment.end_s]}
                for segment in transcript.segments()
            ],
        }


class WhisperListener:
    """Reads the answers for one recording as they come; without times it is one segment."""

    def __init__(self, question: Dictation):
        self._duration_s = question.duration_s
        self._times = question.times
        self._language: str | None = None
        self._segments: list[Segment] = []
        self._unread = ""
        self._told = 0

    def push(self, outputs: Tensors) -> None:
        self._unread += from_tensors(outputs)[0]
        if not self._times:
            self._segments = [Segment(self._unread, 0.0, self._duration_s)]
            return
        if (found := LANGUAGE_MARK.match(self._unread)) is not None:
            self._language, self._unread = found[1], self._unread[found.end() :]
        while (found := MARKED.match(self._unread)) is not None:
            self._segments.append(Segment(found[2], float(found[1]), float(found[3])))
            self._unread = self._unread[found.end() :]

    def news(self, *, final: bool = False) -> str:
        """The text that has come since this was last asked; all answers together are the text."""
        text = self.transcript().text
        told, self._told = self._told, len(text)
        return text[told:]

    def transcript(self) -> SegmentedTranscript:
        """What the recording says so far."""
        return SegmentedTranscript(tuple(self._segments), self._duration_s, self._language)
