"""Speech recognition: from the bytes of a recording to its words.

A model that hears whole recordings gets long ones in windows; one that hears live gets chunks, in a
sequence, as from a caller who speaks. Those that CTC trained are here; one that writes its text, as
Whisper does, windows recordings itself: see `serving.tasks.whisper`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, Field

from serving.errors import ModelLoadError
from serving.speech.chunks import Chunker
from serving.speech.ctc import GreedySearch, Search
from serving.speech.hot_words import HotWords
from serving.speech.lexicon import Lexicon, LexiconSearch
from serving.speech.prefix_beam import PrefixBeamSearch
from serving.speech.recognizer import RecognizerSettings, kind_of
from serving.speech.transcriber import Transcriber
from serving.speech.transcript import SegmentedTranscript, Transcript
from serving.speech.whisper import WhisperSettings
from serving.speech.windows import Window, windows
from serving.tasks import Question
from serving.tasks.payload import as_bytes
from serving.tasks.whisper import WhisperRecognition
from serving.types import DYNAMIC, Array, Tensors, TensorSpec

INPUT = "waveform"
LOGITS = "logits"
FRAMES = "frames"
INSTALL_HINT = "pip install 'slipway[audio]'"

HOT_WORD_BEAMS = 8
"""Hot words need other texts to choose from than the most probable one."""

FLOOR = -8.0
"""A token less probable than e^-8 is not tried by a beam search: it would double its time."""

HORIZON_S = 5.0
"""What was said so long ago is settled, and later frames do not change it any more."""

Decode = Callable[[bytes, int], Array]


class Resampler(Protocol):
    """Brings a waveform to another rate while it comes in; see `serving.speech.audio`."""

    def push(self, samples: Array, *, is_last: bool = False) -> Array: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording(Question):
    """A recording in pieces, a request for each."""

    windows: Sequence[Window]
    duration_s: float


class Listener(Protocol):
    """Takes what a model answers for one recording, and tells what it says."""

    def push(self, outputs: Tensors) -> None: ...

    def news(self, *, final: bool = False) -> str:
        """The text that has become certain since this was last asked; if `final`, all the rest.

        All answers, one after another, are the transcript's text.
        """
        ...

    def transcript(self) -> Transcript | SegmentedTranscript:
        """What the recording says so far."""
        ...


class GenerationParameters(BaseModel, extra="forbid", frozen=True):
    num_beams: Annotated[int, Field(ge=1, le=32)] | None = None


class SpeechRecognition:
    """The task, for models that CTC trained: a waveform in, log-probabilities of frames out.

    `hot_words` are words and phrases that the caller expects to hear. Each is worth
    `hot_word_weight` nats for every character, so 1.5 makes a text with a hot word of four letters
    400 times as probable.

    A model that has words of its own hears only those, and a caller's hot words; but one that is
    asked for more than one beam spells whatever it hears.
    """

    takes_long = True

    class Parameters(BaseModel, extra="forbid", frozen=True):
        return_timestamps: bool | Literal["word", "char"] = "word"
        generation_parameters: GenerationParameters | None = None
        hot_words: Annotated[
            tuple[Annotated[str, Field(max_length=100)], ...], Field(max_length=200)
        ] = ()
        hot_word_weight: Annotated[float, Field(gt=0, le=10)] = 1.5

    def __init__(
        self,
        settings: RecognizerSettings,
        decode: Decode,
        resampler: Callable[[int, int], Resampler] | None = None,
    ):
        self.settings = settings
        self._decode = decode
        self._resampler = resampler
        self._lexicon = self._words({}) if settings.words else None
        classes = len(settings.vocabulary)
        if settings.is_live:
            assert settings.chunk_samples is not None
            self.inputs = (TensorSpec(INPUT, "FP32", (DYNAMIC, settings.chunk_samples)),)
            self.outputs: tuple[TensorSpec, ...] = (
                TensorSpec(LOGITS, "FP32", (DYNAMIC, settings.chunk_frames, classes)),
            )
        else:
            self.inputs = (TensorSpec(INPUT, "FP32", (DYNAMIC, DYNAMIC)),)
            self.outputs = (
                TensorSpec(LOGITS, "FP32", (DYNAMIC, DYNAMIC, classes)),
                TensorSpec(FRAMES, "INT64", (DYNAMIC, 1)),
            )

    @property
    def languages(self) -> Sequence[str]:
        """That of the texts, if the model says so."""
        return (self.settings.language,) if self.settings.language else ()

    def preprocess(self, payload: object, settings: SpeechRecognition.Parameters) -> Recording:
        """One recording: its bytes, or in JSON their base64."""
        waveform = self._decode(as_bytes(payload), self.settings.sampling_rate)
        if self.settings.is_live:
            chunker = Chunker(self.settings)
            pieces = [*chunker.push(waveform), *chunker.finish()]
        else:
            cut = windows(len(waveform), self.settings)
            pieces = [(waveform[window.start : window.stop], window) for window in cut]
        first, *further = ({INPUT: samples[np.newaxis]} for samples, _ in pieces)
        return Recording(
            settings,
            first,
            further=further,
            in_sequence=self.settings.is_live,
            windows=[window for _, window in pieces],
            duration_s=len(waveform) / self.settings.sampling_rate,
        )

    def resampler(self, from_hz: int) -> Resampler:
        """For a live recording at another rate than the model's."""
        assert self._resampler is not None
        return self._resampler(from_hz, self.settings.sampling_rate)

    def listener(self, question: Recording) -> Listener:
        """What the answers for a recording are given to, in order."""
        return CtcListener(self.transcriber(question.settings), question)

    def transcriber(self, parameters: SpeechRecognition.Parameters) -> Transcriber:
        """What the answers for the pieces of a recording are given to, in order."""
        return Transcriber(self.settings, self._search(parameters))

    def postprocess(self, outputs: Tensors, question: Question) -> dict[str, Any]:
        """The text of a recording of one piece, and its words with their times in seconds."""
        return self.conclude([outputs], question)

    def conclude(self, parts: Sequence[Tensors], question: Question) -> dict[str, Any]:
        """The same of a recording of any number of pieces."""
        assert isinstance(question, Recording)
        listener = CtcListener(self.transcriber(question.settings), question)
        for outputs in parts:
            listener.push(outputs)
        transcript = listener.transcript()
        wanted = question.settings.return_timestamps
        if not wanted:
            return {"text": transcript.text}
        chunks = transcript.characters if wanted == "char" else transcript.words
        return {
            "text": transcript.text,
            "chunks": [
                {"text": chunk.text, "timestamp": [round(chunk.start_s, 3), round(chunk.end_s, 3)]}
                for chunk in chunks
            ],
        }

    def _search(self, parameters: SpeechRecognition.Parameters) -> Search:
        blank, vocabulary = self.settings.blank, self.settings.vocabulary
        generation = parameters.generation_parameters or GenerationParameters()
        horizon = max(1, round(HORIZON_S / self.settings.frame_s))
        if self._lexicon is not None and generation.num_beams in (None, 1):
            weight = parameters.hot_word_weight
            hot = [word for phrase in parameters.hot_words for word in phrase.split()]
            worth = {word.casefold(): weight * len(word) for word in hot}
            return LexiconSearch(self._words(worth) if worth else self._lexicon, horizon)
        if not parameters.hot_words and generation.num_beams in (None, 1):
            return GreedySearch(blank)
        hot_words = None
        if parameters.hot_words:
            hot_words = HotWords(parameters.hot_words, parameters.hot_word_weight, vocabulary)
        return PrefixBeamSearch(
            blank,
            generation.num_beams or HOT_WORD_BEAMS,
            hot_words=hot_words,
            floor=FLOOR,
            horizon=horizon,
        )

    def _words(self, worth: Mapping[str, float]) -> Lexicon:
        settings = self.settings
        return Lexicon(settings.words, settings.vocabulary, settings.blank, worth)


class CtcListener:
    """Takes the answers for the pieces of a recording, in order."""

    def __init__(self, transcriber: Transcriber, question: Recording):
        self._transcriber = transcriber
        self._windows = iter(question.windows)
        self._duration_s = question.duration_s

    def push(self, outputs: Tensors) -> None:
        self._transcriber.push(frames_of(outputs), next(self._windows))

    def news(self, *, final: bool = False) -> str:
        return self._transcriber.news(final=final)

    def transcript(self) -> Transcript:
        return self._transcriber.transcript(self._duration_s)


def load(directory: Path) -> SpeechRecognition | WhisperRecognition:
    """The task of a version directory, for the kind of model that its settings tell of.

    Raises `ModelLoadError`.
    """
    try:
        audio = import_module("serving.speech.audio")
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            f"{directory.parent}: speech recognition needs the package {error.name!r}:"
            f" {INSTALL_HINT}"
        ) from error
    if kind_of(directory) == "whisper":
        return WhisperRecognition(WhisperSettings.load(directory), audio.decode)
    return SpeechRecognition(RecognizerSettings.load(directory), audio.decode, audio.Resampler)


def frames_of(outputs: Tensors) -> Array:
    """The frames of a model's answer for one piece, [frame, class], without padding."""
    frames: Array = outputs[LOGITS][0]
    return frames[: int(outputs[FRAMES][0, 0])] if FRAMES in outputs else frames
