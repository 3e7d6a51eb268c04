"""What passes between a stepper and the way in which one request chooses its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from serving.errors import InferenceFailed
from serving.steppers.processors import Scores

Reason = Literal["eos", "length", "stop"]
"""Why a text ended: the model ended it, it is as long as was asked, or a stop string came."""


@dataclass(slots=True)
class Advance:
    """What a step made of one request.

    `tokens` is the next input of each row, `sources` the row whose cache each row continues from
    (None: its own). `emitted` are the tokens that are now certain, without the one that ends a
    text; with beams there are none until the end. Once `finished` there is no next step, and
    `tokens` is empty.
    """

    tokens: list[int]
    sources: list[int] | None
    emitted: list[int]
    finished: Reason | None


class Decoding(Protocol):
    """How one request chooses its tokens, in `rows` rows of a batch."""

    rows: int

    def advance(self, logits: Scores) -> Advance:
        """Take one step, given its logits, [rows, vocabulary], which are left as they are.

        At the first step the rows are equal, and one will do for all. Raises `InferenceFailed` for
        logits that hold NaN or infinity.
        """
        ...


def require_finite(logits: Scores) -> None:
    """Raises `InferenceFailed`. Minus infinity is a model's way to say "never", and may occur."""
    if not np.isfinite(logits.max(axis=1)).all():
        raise not_finite()


def not_finite() -> InferenceFailed:
    return InferenceFailed("the model computed logits that are not finite")
