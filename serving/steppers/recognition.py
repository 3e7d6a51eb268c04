"""Texts from recordings, by models of Whisper's architecture.

A recording is heard in windows, one after another: where the text of one says that it ends is where
the next begins (Radford et al., 2022, section 3.8). All windows of a recording are one job, which
keeps its place among the others from the first to the last.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from serving.config import ModelConfig
from serving.engines.base import Graph
from serving.engines.onnx_graph import open_graph
from serving.errors import InvalidRequest, ModelLoadError
from serving.scheduling.stepper import News
from serving.speech.recognizer import RECOGNIZER_FILE
from serving.speech.whisper import WAVEFORM, WhisperSettings, language_mark
from serving.steppers.advance import Advance, Decoding, require_finite
from serving.steppers.cache import reserved_extent
from serving.steppers.decoding import decoding_for
from serving.steppers.options import count
from serving.steppers.parameters import GenerationParameters, validated
from serving.steppers.processors import Scores
from serving.steppers.settings import GENERATION_FILE, GenerationSettings
from serving.steppers.times import TimedText, TimeRules
from serving.steppers.tokens import (
    DEFAULT_MEMORY_MB,
    DEFAULT_SLOTS,
    ENCODER_FILE,
    OUTPUT,
    Born,
    Generation,
    TokenStepper,
    open_decoder,
)
from serving.text import Tokenizer, load_tokenizer
from serving.text.stream import TextStream
from serving.types import DYNAMIC, InferRequest, Parameter, TensorSpec, Work

LOUDEST = 32768.0
"""Samples are -1 to 1; a caller who scales them as integers is still understood."""

Waveform = npt.NDArray[np.float32]


class RecognitionParameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """What a request may choose besides `GenerationParameters`; see `WhisperSettings.prompt`."""

    language: str | None = None
    task: str | None = None
    return_timestamps: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Recognition(Generation):
    """One row of a request: a recording, which ends before its first NaN."""

    waveform: Waveform
    parameters: GenerationParameters
    times: bool
    following: list[int | None]
    """The prompt after its first token; None for a language that is to be found."""
    start: int = 0
    """The sample with which the window begins."""
    samples: int = 0
    """Of the window, without what pads it."""
    is_last_window: bool = False


@dataclass(frozen=True, slots=True)
class Heard(Born):
    """A window; see `Recognition`."""

    samples: int
    is_last_window: bool


class Prompted:
    """Feeds a prompt token by token, as attention to a source takes one a step.

    Where `following`, the prompt after its first token, holds None, that becomes the likeliest of
    `languages`.
    """

    def __init__(self, following: list[int | None], languages: Sequence[int], rows: int):
        self.rows = rows
        self._following = following
        self._languages = list(languages)
        self._fed = 0

    @property
    def is_over(self) -> bool:
        return self._fed == len(self._following)

    def advance(self, logits: Scores) -> Advance:
        require_finite(logits)
        token = self._following[self._fed]
        if token is None:
            token = self._languages[int(logits[0, self._languages].argmax())]
            self._following[self._fed] = token
        self._fed += 1
        return Advance([token] * self.rows, None, [], None)


class RecognitionStepper(TokenStepper[Recognition]):
    """See `Stepper`."""

    def __init__(
        self,
        decoder: Graph,
        encoder: Graph,
        settings: GenerationSettings,
        hearing: WhisperSettings,
        tokenizer: Tokenizer,
        *,
        slots: int,
        memory_bytes: int,
        threads: int = 1,
    ):
        super().__init__(decoder, settings, slots=slots, memory_bytes=memory_bytes, threads=threads)
        self.inputs: Sequence[TensorSpec] = [TensorSpec(WAVEFORM, "FP32", (DYNAMIC, DYNAMIC))]
        self.outputs: Sequence[TensorSpec] = [TensorSpec(OUTPUT, "BYTES", (DYNAMIC, 1))]
        assert settings.max_source is not None, "whatever hears has an encoder. This is a bug."
        self._positions = settings.max_source
        self._encoder = encoder
        self._hearing = hearing
        self._codes = {token: code for code, token in hearing.languages.items()}
        self._tokenizer = tokenizer

    def plan(self, request: InferRequest, *, streams: bool) -> Sequence[Recognition]:
        return [
            self._admitted(self._job(request, waveform, streams=streams))
            for waveform in request.inputs[WAVEFORM]
        ]

    def begin(self, jobs: Sequence[Recognition]) -> list[News[Recognition]]:
        for job in jobs:
            # Each alone: all windows are of one size, and one is enough for a thread.
            compute = partial(self._hear, job.waveform, job.start)
            self._beginnings.start([job], compute, tokens=self._positions)
        self._unborn.update(jobs)
        return []

    def warm(self) -> None:
        silence = np.zeros(self._hearing.window_samples, np.float32)
        job = self._job(InferRequest("", {}), silence, streams=False)
        self.begin([job])
        self.step([job])
        self.end(job)
        self.work = Work()

    def _job(self, request: InferRequest, waveform: Waveform, *, streams: bool) -> Recognition:
        settings = self._settings
        wishes, others = _parted(request.parameters)
        following = self._hearing.prompt(
            wishes.language, wishes.task, times=wishes.return_timestamps
        )
        prompt_tokens = 1 + len(following)
        parameters = settings.parameters(others, self._positions, prompt_tokens)
        if parameters.stop:
            raise InvalidRequest("parameter 'stop': a recording is written down to its end")
        assert settings.decoder_start_token_id is not None
        most = reserved_extent(prompt_tokens + parameters.max_new_tokens, settings.max_length)
        return Recognition(
            rows=parameters.num_beams,
            priority=request.priority,
            timeout_s=request.timeout_s,
            deadline=request.deadline,
            extents=(most, self._positions, 1),
            begin_cost=self._positions,
            prompt=[settings.decoder_start_token_id],
            source=range(self._positions),
            decoding=Prompted(following, list(self._codes), parameters.num_beams),
            text=TextStream(self._tokenizer),
            streams=streams,
            is_written=True,
            waveform=waveform,
            parameters=parameters,
            times=wishes.return_timestamps,
            following=following,
        )

    def _hear(self, waveform: Waveform, start: int) -> list[Heard]:
        """Encode a window."""
        window = waveform[start : start + self._hearing.window_samples]
        missing = np.isnan(window)
        samples = int(missing.argmax()) if missing.any() else len(window)
        if not samples:
            raise InvalidRequest(f"input {WAVEFORM!r} has a row without a sample")
        window = window[:samples]
        if not np.abs(window).max() <= LOUDEST:
            raise InvalidRequest(f"input {WAVEFORM!r}: expected samples of -1 to 1")
        padded = np.zeros((1, self._hearing.window_samples), np.float32)
        padded[0, :samples] = window
        outputs = self._encoder.run({WAVEFORM: padded})
        end = start + samples
        return [
            Heard(
                self._rows.packed(outputs, [0], [self._positions])[0],
                None,
                samples,
                end == len(waveform) or bool(np.isnan(waveform[end])),
            )
        ]

    def _born(self, job: Recognition, born: Born) -> Iterable[News[Recognition]]:
        assert isinstance(born, Heard)
        job.samples, job.is_last_window = born.samples, born.is_last_window
        job.text = TextStream(self._tokenizer)
        if job.times:
            job.text = TimedText(self._tokenizer, self._hearing, job.start, job.samples)
        if not job.following:
            job.decoding = self._chooser(job)
        return super()._born(job, born)

    def _after(self, job: Recognition, advance: Advance) -> Iterable[News[Recognition]]:
        if isinstance(job.decoding, Prompted) and job.decoding.is_over:
            job.decoding = self._chooser(job)
            if job.times and not job.start and self._codes:
                job.written = language_mark(self._codes[_known(job.following)[0]])
        return super()._after(job, advance)

    def _goes_on(self, job: Recognition) -> bool:
        """Begin the next window, if there is one. The job's place is kept for it."""
        heard = job.text.heard if isinstance(job.text, TimedText) else job.samples
        if job.is_last_window and heard == job.samples:
            return False
        job.start += heard
        self._rows.leave(job)
        job.decoding = Prompted(job.following, (), job.rows)
        self.begin([job])
        return True

    def _chooser(self, job: Recognition) -> Decoding:
        """What chooses the tokens after the prompt."""
        prompt = [*job.prompt, *_known(job.following)]
        rules = []
        if job.times:
            rules.append(TimeRules(self._hearing, self._settings.eos_token_ids[0], len(prompt)))
        return decoding_for(self._settings, job.parameters, prompt, rules)


def load(config: ModelConfig, directory: Path) -> RecognitionStepper:
    """From a version directory. Raises `ModelLoadError`."""
    settings = GenerationSettings.load(directory)
    hearing = WhisperSettings.load(directory)
    _check(settings, hearing, directory)
    return RecognitionStepper(
        open_decoder(config, directory),
        open_graph(directory / ENCODER_FILE, config),
        settings,
        hearing,
        load_tokenizer(directory),
        slots=count(config, "slots", DEFAULT_SLOTS),
        memory_bytes=count(config, "memory_mb", DEFAULT_MEMORY_MB) << 20,
        threads=count(config, "step_threads", os.cpu_count() or 1),
    )


def _check(settings: GenerationSettings, hearing: WhisperSettings, directory: Path) -> None:
    tokens = [
        hearing.first_time_token,
        hearing.no_times_token,
        *hearing.languages.values(),
        *hearing.tasks.values(),
    ]
    for token in tokens:
        if token is not None and token >= settings.vocab_size:
            raise ModelLoadError(
                f"{directory / RECOGNIZER_FILE}: token {token} is not below the vocab_size of"
                f" {GENERATION_FILE}, {settings.vocab_size}"
            )
    if not settings.is_encoder_decoder or not settings.eos_token_ids:
        raise ModelLoadError(
            f"{directory / GENERATION_FILE}: a model that hears has a decoder_start_token_id and"
            " eos_token_ids"
        )


def _parted(
    requested: Mapping[str, Parameter],
) -> tuple[RecognitionParameters, Mapping[str, Parameter]]:
    """A request's parameters: those of recordings, and those of every text."""
    own = RecognitionParameters.model_fields.keys()
    wishes = {name: value for name, value in requested.items() if name in own}
    others = {name: value for name, value in requested.items() if name not in own}
    return validated(RecognitionParameters, wishes), others


def _known(following: Sequence[int | None]) -> list[int]:
    """A prompt of which all is known."""
    return [token for token in following if token is not None]
