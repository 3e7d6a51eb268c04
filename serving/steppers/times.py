"""When Whisper's text may tell a time, and what becomes of a text with times.

Both follow the paper's decoder (Radford et al., 2022, section 3.8 and its published code).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from serving.speech.whisper import WhisperSettings, marked
from serving.steppers.processors import NEVER, Scores, Sequences
from serving.text import Tokenizer

LEAST_PART_HEARD = 30
"""A window moves on by a 30th of itself at least, so that every recording comes to an end."""


class TimeRules:
    """A `Rule` by which times come in pairs around what is said, and never go back.

    transformers' `WhisperTimeStampLogitsProcessor`, for texts that begin after `prompt_tokens`.
    """

    def __init__(self, settings: WhisperSettings, eos: int, prompt_tokens: int):
        assert settings.first_time_token is not None
        assert settings.no_times_token is not None
        self._first = settings.first_time_token
        self._no_times = settings.no_times_token
        self._last_initial = settings.last_initial_time
        self._eos = eos
        self._prompt_tokens = prompt_tokens

    def __call__(self, scores: Scores, sequences: Sequences) -> None:
        first = self._first
        scores[:, self._no_times] = NEVER
        if sequences.shape[1] == self._prompt_tokens:
            scores[:, :first] = NEVER
            if self._last_initial is not None:
                scores[:, first + self._last_initial + 1 :] = NEVER
        for row, tokens in zip(scores, sequences[:, self._prompt_tokens :], strict=True):
            self._keep_order(row, tokens)
            # Where some time or other is likelier than any word, it is a time.
            if _log_sum(row[first:]) > row[:first].max():
                row[:first] = NEVER

    def _keep_order(self, scores: Scores, tokens: Sequences) -> None:
        first = self._first
        times = tokens[tokens >= first]
        if not times.size:
            return
        latest = int(times[-1])
        if tokens[-1] < first:
            scores[first : latest + 1] = NEVER
        elif len(tokens) < 2 or tokens[-2] >= first:
            scores[first:] = NEVER
        else:
            scores[: self._eos] = NEVER
            scores[first:latest] = NEVER


def _log_sum(scores: Scores) -> float:
    """log Σ eˣ"""
    largest = scores.max()
    if largest == NEVER:
        return float(NEVER)
    return float(largest + np.log(np.exp(scores - largest).sum()))


class TimedText:
    """Writes the text of one window with its times, a segment as soon as the next begins.

    A text that breaks off within a segment was cut by the window's end: this segment is dropped,
    and the next window begins with it.
    """

    stopped = False

    def __init__(self, tokenizer: Tokenizer, settings: WhisperSettings, start: int, samples: int):
        """Of `samples` samples from `start` on in the recording."""
        assert settings.first_time_token is not None
        self._tokenizer = tokenizer
        self._first = settings.first_time_token
        self._unit = settings.samples_per_time
        self._rate_hz = settings.sampling_rate
        self._least = settings.window_samples // LEAST_PART_HEARD
        self._start = start
        self._samples = samples
        self._tokens: list[int] = []
        """Since the last segment was written."""
        self._written_until: int | None = None
        """Samples of the window up to the end of that."""
        self.heard = samples
        """Once it is finished: the next window begins so many samples later."""

    def push(self, tokens: Iterable[int]) -> str:
        text = ""
        for token in tokens:
            if token >= self._first and self._tokens and self._tokens[-1] >= self._first:
                if len(self._tokens) > 1:
                    text += self._segment(self._tokens)
                self._written_until = self._sample(self._tokens[-1])
                self._tokens = []
            self._tokens.append(token)
        return text

    def finish(self) -> str:
        tokens = self._tokens
        if self._written_until is None:
            return self._whole(tokens)
        if len(tokens) > 1 and tokens[-1] >= self._first:
            return self._segment(tokens)
        self.heard = min(self._samples, max(self._written_until, self._least))
        return ""

    def _segment(self, tokens: Sequence[int]) -> str:
        """Tokens between two times."""
        return self._marked(self._sample(tokens[0]), tokens, self._sample(tokens[-1]))

    def _whole(self, tokens: Sequence[int]) -> str:
        """A window of one segment, which may end before the window does."""
        times = [token for token in tokens if token > self._first]
        return self._marked(0, tokens, self._sample(times[-1]) if times else self._samples)

    def _marked(self, start: int, tokens: Sequence[int], end: int) -> str:
        text = self._tokenizer.decode([token for token in tokens if token < self._first])
        if not text.strip():
            return ""
        start_s, end_s = (
            (self._start + min(sample, self._samples)) / self._rate_hz for sample in (start, end)
        )
        return marked(start_s, text, end_s)

    def _sample(self, token: int) -> int:
        return (token - self._first) * self._unit
