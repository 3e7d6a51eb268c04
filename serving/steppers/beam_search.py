"""Beam search, number by number that of transformers 5.24 (`GenerationMixin._beam_search`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.steppers.advance import Advance, require_finite
from serving.steppers.parameters import GenerationParameters
from serving.steppers.processors import History, Rule, Scores
from serving.steppers.ranking import largest
from serving.steppers.settings import GenerationSettings

_OUT = np.float32(-1e9)
"""Added to a score that must not win. Finite, and rounded to multiples of 64, as there."""
_ZERO = np.float32(0)


class BeamSearch:
    """The `num_beams` likeliest texts side by side; the best finished one is the answer."""

    __slots__ = (
        "_early_stopping",
        "_eos",
        "_finished",
        "_finished_scores",
        "_finished_texts",
        "_history",
        "_keep",
        "_length",
        "_length_penalty",
        "_max_length",
        "_scores",
        "rows",
    )

    def __init__(
        self,
        settings: GenerationSettings,
        parameters: GenerationParameters,
        prompt: Sequence[int],
        rules: Sequence[Rule] = (),
    ):
        self.rows = beams = parameters.num_beams
        self._eos = np.array(settings.eos_token_ids, np.int64)
        # Enough for `num_beams` to go on even if each of them could end in every way.
        self._keep = max(2, 1 + len(settings.eos_token_ids)) * beams
        self._length_penalty = parameters.length_penalty
        self._early_stopping = parameters.early_stopping
        self._max_length = parameters.max_new_tokens
        self._history = History(settings, parameters, prompt, rules)
        self._length = 0
        # The beams are equal at first, so only one of them may have successors.
        self._scores = np.full(beams, _OUT)
        self._scores[0] = 0.0
        self._finished = np.zeros(beams, np.bool_)
        self._finished_scores = np.full(beams, _OUT)
        self._finished_texts: list[list[int]] = [[] for _ in range(beams)]

    def advance(self, logits: Scores) -> Advance:
        require_finite(logits)
        is_first = self._length == 0
        if is_first and len(logits) == 1:
            logits = np.repeat(logits, self.rows, axis=0)
        scores = _log_softmax(logits)
        self._history.process(scores)
        scores += self._scores[:, np.newaxis]
        found = largest(scores.ravel(), self._keep)
        values = scores.ravel()[found]
        beams, tokens = np.divmod(found, scores.shape[1])
        self._length += 1
        is_last = self._length == self._max_length
        ended = np.isin(tokens, self._eos) | is_last

        running = values + np.where(ended, _OUT, _ZERO)
        chosen = _order(running)[: self.rows]
        self._finish(values, beams, tokens, ended)
        self._scores = running[chosen]
        if is_last or self._is_over():
            return self._answer()
        sources: list[int] = beams[chosen].tolist()
        inputs: list[int] = tokens[chosen].tolist()
        self._history.reorder(sources)
        self._history.append(inputs)
        return Advance(inputs, [0] * self.rows if is_first else sources, [], None)

    def _finish(
        self,
        values: npt.NDArray[np.float32],
        beams: npt.NDArray[np.intp],
        tokens: npt.NDArray[np.intp],
        ended: npt.NDArray[np.bool_],
    ) -> None:
        """Keep the best texts that are finished. Of this step's, those beyond `num_beams` only
        stand by to go on, and are no answer."""
        ended = ended & (np.arange(len(ended)) < self.rows)
        if not ended.any():
            return
        new = values / self._length**self._length_penalty
        new += np.where(ended, _ZERO, _OUT)
        merged = np.concatenate((self._finished_scores, new))
        kept = _order(merged)[: self.rows]
        texts = []
        for place in kept.tolist():
            candidate = place - self.rows
            if candidate < 0:
                texts.append(self._finished_texts[place])
            elif ended[candidate]:
                text = self._history.generated(int(beams[candidate]))
                texts.append([*text, int(tokens[candidate])])
            else:
                texts.append([])
        self._finished_texts = texts
        self._finished_scores = merged[kept]
        self._finished = np.concatenate((self._finished, ended))[kept]

    def _is_over(self) -> bool:
        """Whether no running beam can be expected to become a better answer."""
        if self._early_stopping is True and self._finished.all():
            return True
        worst = self._finished_scores.min() if self._finished.all() else _OUT
        return not self._scores[0] / self._longest() > worst

    def _longest(self) -> float:
        """The length penalty that the best running beam is given the benefit of."""
        grows = self._early_stopping == "never" and self._length_penalty > 0.0
        length = self._max_length if grows else self._length
        return float(length**self._length_penalty)

    def _answer(self) -> Advance:
        text = self._finished_texts[0]
        if text and text[-1] in self._eos:
            return Advance([], None, text[:-1], "eos")
        return Advance([], None, text, "length")


def _log_softmax(logits: Scores) -> Scores:
    shifted: Scores = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _order(values: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    return np.argsort(-values, kind="stable")
