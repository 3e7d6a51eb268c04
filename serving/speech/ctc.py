"""Connectionist temporal classification: from the log-probabilities of frames to tokens.

A path has one class for each frame. It says what is left when repetitions are taken for one and
blanks are dropped (Graves et al., "Connectionist Temporal Classification", 2006).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

LogProbs = npt.NDArray[np.floating]
"""[frame, class], natural logarithms."""


@dataclass(frozen=True, slots=True)
class Token:
    """A class of the vocabulary and the frames that it lasts, both ends included."""

    id: int
    first: int
    last: int
    log_prob: float
    """Of the frame where it is most certain."""


class Search(Protocol):
    """Looks for what a recording says while its frames come in."""

    def push(self, log_probs: LogProbs) -> None:
        """Take in the frames that follow."""
        ...

    def best(self, start: int = 0) -> list[Token]:
        """What the frames so far say most probably, from the token with the number `start`."""
        ...

    def settled(self) -> int:
        """How many tokens of `best` have ids that no further frame can change.

        May decide for what is most probable so far, if that is by far.
        """
        ...


class GreedySearch:
    """Follows the one most probable path."""

    def __init__(self, blank: int):
        self._blank = blank
        self._tokens: list[Token] = []
        self._frames = 0
        self._previous = blank

    def push(self, log_probs: LogProbs) -> None:
        for id, value in zip(log_probs.argmax(axis=1), log_probs.max(axis=1), strict=True):
            self._follow(int(id), float(value))

    def best(self, start: int = 0) -> list[Token]:
        return self._tokens[start:]

    def settled(self) -> int:
        return len(self._tokens)

    def _follow(self, id: int, log_prob: float) -> None:
        at = self._frames
        if id != self._blank:
            if id == self._previous:
                token = self._tokens[-1]
                strongest = max(token.log_prob, log_prob)
                self._tokens[-1] = replace(token, last=at, log_prob=strongest)
            else:
                self._tokens.append(Token(id, at, at, log_prob))
        self._previous = id
        self._frames += 1
