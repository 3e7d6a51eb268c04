"""What parameters make of a step's scores, in the order of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from serving.steppers.parameters import GenerationParameters
from serving.steppers.settings import GenerationSettings

Scores: TypeAlias = npt.NDArray[np.float32]
"""[row, vocabulary]; logits, or log-probabilities where beams are searched."""

Sequences: TypeAlias = npt.NDArray[np.int64]
"""The tokens so far, [row, position], the decoder's prompt included."""

Rule: TypeAlias = Callable[[Scores, Sequences], None]
"""What one kind of model wants besides; called as `Processors` are, after all of them."""

NEVER = -np.inf


class Processors:
    """Called with the scores of a step and the tokens before it, changes the scores in place."""

    __slots__ = (
        "_begin_suppressed",
        "_eos",
        "_first",
        "_last",
        "_length_of_last",
        "_min_length",
        "_ngram",
        "_penalty",
        "_prompt_tokens",
        "_rules",
        "_suppressed",
    )

    def __init__(
        self,
        settings: GenerationSettings,
        parameters: GenerationParameters,
        prompt_tokens: int,
        rules: Sequence[Rule],
    ):
        self._prompt_tokens = prompt_tokens
        self._rules = rules
        self._begin_suppressed = list(settings.begin_suppressed_token_ids)
        self._penalty = parameters.repetition_penalty
        self._ngram = parameters.no_repeat_ngram_size
        self._suppressed = list(settings.suppressed_token_ids)
        self._eos = list(settings.eos_token_ids)
        self._min_length = prompt_tokens + parameters.min_new_tokens
        self._first = settings.forced_bos_token_id
        self._last = settings.forced_eos_token_id
        self._length_of_last = prompt_tokens + parameters.max_new_tokens - 1

    def __call__(self, scores: Scores, sequences: Sequences) -> None:
        length = sequences.shape[1]
        if self._penalty != 1.0:
            seen = np.take_along_axis(scores, sequences, axis=1)
            seen = np.where(seen < 0, seen * self._penalty, seen / self._penalty)
            np.put_along_axis(scores, sequences, seen, axis=1)
        if 0 < self._ngram <= length:
            _ban_repeated(scores, sequences, self._ngram)
        if self._suppressed:
            scores[:, self._suppressed] = NEVER
        if length < self._min_length:
            scores[:, self._eos] = NEVER
        if self._first is not None and length == 1:
            _force(scores, self._first)
        if self._last is not None and length == self._length_of_last:
            _force(scores, self._last)
        if self._begin_suppressed and length == self._prompt_tokens:
            scores[:, self._begin_suppressed] = NEVER
        for rule in self._rules:
            rule(scores, sequences)


class History:
    """The tokens of a request's rows, and the processors that look at them."""

    __slots__ = ("_buffer", "_length", "_process", "_prompt_tokens")

    def __init__(
        self,
        settings: GenerationSettings,
        parameters: GenerationParameters,
        prompt: Sequence[int],
        rules: Sequence[Rule] = (),
    ):
        self._prompt_tokens = self._length = len(prompt)
        capacity = len(prompt) + parameters.max_new_tokens
        self._buffer = np.empty((parameters.num_beams, capacity), np.int64)
        self._buffer[:, : len(prompt)] = prompt
        self._process = Processors(settings, parameters, len(prompt), rules)

    def process(self, scores: Scores) -> None:
        """Let the processors change a step's scores."""
        self._process(scores, self._buffer[:, : self._length])

    def append(self, tokens: Sequence[int]) -> None:
        """The next token of each row."""
        self._buffer[:, self._length] = tokens
        self._length += 1

    def reorder(self, sources: Sequence[int]) -> None:
        """Let each row go on with the tokens of another."""
        self._buffer[:, : self._length] = self._buffer[sources, : self._length]

    def generated(self, row: int) -> list[int]:
        """A row's tokens after the prompt."""
        tokens: list[int] = self._buffer[row, self._prompt_tokens : self._length].tolist()
        return tokens


def _force(scores: Scores, token: int) -> None:
    scores.fill(NEVER)
    scores[:, token] = 0.0


def _ban_repeated(scores: Scores, sequences: Sequences, size: int) -> None:
    """Ban each token that followed, somewhere before, the last `size - 1` tokens."""
    windows = np.lib.stride_tricks.sliding_window_view(sequences, size, axis=1)
    prefix = sequences[:, sequences.shape[1] + 1 - size :]
    rows, places = np.nonzero((windows[..., :-1] == prefix[:, np.newaxis]).all(axis=-1))
    scores[rows, windows[rows, places, -1]] = NEVER
