"""Parallel phrases, English with German, French and Spanish, made from CLDR's tables."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from random import Random

from training.tasks.translation.phrases.templates import TEMPLATES, Template
from training.tasks.translation.phrases.words import CODES

TRIES = 50
"""Draws in a row that bring nothing new, after which there is nothing more to draw."""


@dataclass(frozen=True)
class Phrase:
    source: str
    targets: dict[str, str]
    """Language -> its translation."""


def make_phrases(count: int, seed: int) -> list[Phrase]:
    """So many different English sentences, or all there are, each in every target language."""
    chance = Random(seed)  # noqa: S311  # nothing is secret about it
    weights = [template.weight for template in TEMPLATES]
    phrases: dict[str, Phrase] = {}
    without = 0
    while len(phrases) < count and without < TRIES:
        [template] = chance.choices(TEMPLATES, weights)
        phrase = _fill(template, chance)
        without = without + 1 if phrase.source in phrases else 0
        phrases.setdefault(phrase.source, phrase)
    return list(phrases.values())


def _fill(template: Template, chance: Random) -> Phrase:
    filled: dict[str, dict[str, str]] = {}
    for name, slot in template.slots.items():
        value = slot(chance)
        while value in filled.values():  # nobody flies from Oslo to Oslo
            value = slot(chance)
        filled[name] = dict(value)
    texts = {
        code: unicodedata.normalize(
            "NFKC",
            getattr(template, code).format(**{name: each[code] for name, each in filled.items()}),
        )
        for code in CODES
    }
    return Phrase(texts.pop("en"), texts)
