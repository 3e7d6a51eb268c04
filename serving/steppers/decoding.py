"""From a step's logits to its tokens, for one request, whatever shares the batch.

Greedy and beam search give the tokens of transformers' `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.steppers.advance import Advance, Decoding, not_finite, require_finite
from serving.steppers.beam_search import BeamSearch
from serving.steppers.parameters import GenerationParameters
from serving.steppers.processors import History, Rule, Scores
from serving.steppers.sampling import candidates, draw
from serving.steppers.settings import GenerationSettings

Tokens = npt.NDArray[np.int64]

NOT_FINITE = -1
"""Stands for the token of a row whose logits hold NaN or infinity."""


def decoding_for(
    settings: GenerationSettings,
    parameters: GenerationParameters,
    prompt: Sequence[int],
    rules: Sequence[Rule] = (),
) -> Decoding:
    """The strategy that a request's parameters ask for.

    `prompt` holds the decoder's first tokens: the text of a decoder-only model, or those with
    which an encoder-decoder model starts.
    """
    if parameters.num_beams > 1:
        return BeamSearch(settings, parameters, prompt, rules)
    if parameters.do_sample:
        return Sampling(settings, parameters, prompt, rules)
    return Greedy(settings, parameters, prompt, rules)


def best_tokens(logits: Scores, suppressed: frozenset[int]) -> Tokens:
    """What `Greedy.take` wants, for all rows of a batch: their best tokens, or `NOT_FINITE`.

    `suppressed` are the settings' `suppressed_token_ids`.
    """
    best: Tokens = logits.argmax(axis=1)
    best[~np.isfinite(logits[np.arange(len(best)), best])] = NOT_FINITE
    replace_suppressed(best, logits, suppressed)
    return best


def replace_suppressed(best: Tokens, logits: Scores, suppressed: frozenset[int]) -> None:
    """Let rows whose best token is suppressed have their best of all others."""
    if not suppressed.isdisjoint(best.tolist()):
        for row, token in enumerate(best.tolist()):
            if token in suppressed:
                allowed = logits[row].copy()
                allowed[list(suppressed)] = -np.inf
                best[row] = allowed.argmax()


class _OneRow:
    """A request that writes a text token by token."""

    __slots__ = ("_eos", "_first", "_last", "_left", "rows")

    def __init__(
        self,
        settings: GenerationSettings,
        parameters: GenerationParameters,
        prompt: Sequence[int],
    ):
        self.rows = 1
        self._eos = frozenset(settings.eos_token_ids)
        self._left = parameters.max_new_tokens
        self._first = settings.forced_bos_token_id if len(prompt) == 1 else None
        self._last = settings.forced_eos_token_id

    def take(self, token: int) -> Advance:
        """Take a step with the token that was chosen; see `Greedy.plain`."""
        if token < 0:
            raise not_finite()
        self._left = left = self._left - 1
        if self._first is not None:
            token, self._first = self._first, None
        if left == 0 and self._last is not None:
            token = self._last
        if token in self._eos:
            return Advance([], None, [], "eos")
        if left == 0:
            return Advance([], None, [token], "length")
        return Advance([token], None, [token], None)


class Greedy(_OneRow):
    """The most likely token.

    A `plain` request needs nothing of its logits but where the largest is: `take` with what
    the graph found for the whole batch does what `advance` does, and much faster. Nor need it
    be asked at every step: see `quiet`.
    """

    __slots__ = ("_history", "_suppressed", "plain")

    def __init__(
        self,
        settings: GenerationSettings,
        parameters: GenerationParameters,
        prompt: Sequence[int],
        rules: Sequence[Rule] = (),
    ):
        super().__init__(settings, parameters, prompt)
        self.plain = (
            not rules
            and not settings.begin_suppressed_token_ids
            and parameters.repetition_penalty == 1.0
            and parameters.no_repeat_ngram_size == 0
            and parameters.min_new_tokens == 0
        )
        self._suppressed = frozenset(settings.suppressed_token_ids)
        self._history = None if self.plain else History(settings, parameters, prompt, rules)

    @property
    def quiet(self) -> int:
        """Steps ahead of which each goes on with its best token, but for one that ends the text."""
        return self._left - 1 if self.plain and self._first is None else 0

    def skip(self, steps: int) -> None:
        """Take so many quiet steps, of which none has ended the text."""
        self._left -= steps

    def advance(self, logits: Scores) -> Advance:
        if self._history is None:
            return self.take(int(best_tokens(logits, self._suppressed)[0]))
        require_finite(logits)
        scores = logits.copy()
        self._history.process(scores)
        token = int(scores.argmax())
        self._history.append([token])
        return self.take(token)


class Sampling(_OneRow):
    """A random token, which depends on nothing but this request's logits and its seed."""

    __slots__ = ("_history", "_parameters", "_random")

    def __init__(
        self,
        settings: GenerationSettings,
        parameters: GenerationParameters,
        prompt: Sequence[int],
        rules: Sequence[Rule] = (),
    ):
        super().__init__(settings, parameters, prompt)
        self._parameters = parameters
        self._history = History(settings, parameters, prompt, rules)
        self._random = np.random.Generator(np.random.PCG64(parameters.seed))

    def advance(self, logits: Scores) -> Advance:
        require_finite(logits)
        chosen = self._parameters
        scores = logits.copy()
        self._history.process(scores)
        if chosen.temperature != 1.0:
            scores /= chosen.temperature
        tokens, weights = candidates(scores[0], chosen.top_k, chosen.top_p)
        if not tokens.size:
            return Advance([], None, [], "length")  # every token was forbidden to be repeated
        token = draw(tokens, weights, self._random)
        self._history.append([token])
        return self.take(token)
