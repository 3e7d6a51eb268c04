"""A text in each of the languages, with the forms of it that sentences need."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

CODES = ("en", "de", "fr", "es")


class Word(str):
    """A text with other forms of it: `format(word, "of")` is French "d’Oslo" of "Oslo"."""

    forms: dict[str, str]

    def __new__(cls, text: str, **forms: str) -> Word:
        word = super().__new__(cls, text)
        word.forms = forms
        return word

    def __format__(self, form: str) -> str:
        return self.forms[form] if form else str(self)


Parallel = dict[str, Word]
"""Language code -> the same in that language."""

Slot = Callable[[Random], Parallel]


def split(words: str) -> tuple[str, ...]:
    return tuple(words.split())
