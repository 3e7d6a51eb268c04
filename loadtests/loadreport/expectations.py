"""What each call of a pool is to be answered.

Before any load, every call is made once, alone. Where the truth is known, nearly all answers must
say it: otherwise another model is served, or a broken one. Under load each call must then be
answered as it was alone, for what a model knows does not depend on how busy it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadreport.calls import Answer, Call, Unreadable, agree, said
from loadreport.models import Front, ShippedModel

RIGHT_SHARE = 0.9
"""Of the answers whose truth is known. No model is always right."""


class Unfit(Exception):
    """The server cannot be measured, and why, in one sentence."""


@dataclass(frozen=True)
class Expectations:
    model: ShippedModel
    front: Front
    texts: Sequence[str]
    """For each call of the pool."""

    @classmethod
    def learn(
        cls, model: ShippedModel, front: Front, calls: Sequence[Call], answers: Sequence[Answer]
    ) -> Expectations:
        """From the answers to calls that were made alone. Raises `Unfit`."""
        try:
            texts = [said(model, front, answer) for answer in answers]
        except Unreadable as error:
            raise Unfit(
                f"{model.name} does not answer through {front} as it should: {error}"
            ) from error
        known = [
            text == call.truth
            for call, text in zip(calls, texts, strict=True)
            if call.truth is not None
        ]
        if sum(known) < RIGHT_SHARE * len(known):
            raise Unfit(
                f"{model.name} is right about {sum(known)} of {len(known)} inputs whose answer is"
                f" known, expected {RIGHT_SHARE:.0%}; is it the model that this repository ships?"
            )
        return cls(model, front, texts)

    def problem(self, number: int, answer: Answer) -> str | None:
        """What is wrong with the answer to a call, or None."""
        return problem(self.model, self.front, self.texts[number], answer)


def problem(model: ShippedModel, front: Front, expected: str, answer: Answer) -> str | None:
    """What is wrong with an answer that should say what is expected, or None."""
    try:
        text = said(model, front, answer)
    except Unreadable as error:
        return str(error)
    if agree(model, text, expected):
        return None
    return f"expected {expected[:60]!r}, got {text[:60]!r}"
