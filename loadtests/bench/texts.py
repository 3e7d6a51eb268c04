"""English texts of chosen lengths, the same for every run with the same seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

SHORTEST, LONGEST = 5, 120
MEDIAN, SPREAD = 18.0, 0.85
"""Of the log-normal distribution of lengths: most texts are short, one in a hundred is cut."""

_MONTHS = ("January", "March", "April", "May", "July", "August", "October", "December")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_PLACES = ("Norway", "Japan", "Brazil", "Portugal", "Canada", "Kenya", "Italy", "Poland", "India")
_CITIES = ("Oslo", "Tokyo", "Lisbon", "Toronto", "Rome", "Warsaw", "Madrid", "Vienna", "Paris")
_LANGUAGES = ("French", "German", "Spanish", "Italian", "Japanese", "Polish", "Swedish", "Dutch")
_CURRENCIES = ("euros", "US dollars", "Swiss francs", "Japanese yen", "British pounds")

_BLANKS: dict[str, Callable[[Random], str]] = {
    "month": lambda chance: chance.choice(_MONTHS),
    "weekday": lambda chance: chance.choice(_DAYS),
    "place": lambda chance: chance.choice(_PLACES),
    "city": lambda chance: chance.choice(_CITIES),
    "language": lambda chance: chance.choice(_LANGUAGES),
    "currency": lambda chance: chance.choice(_CURRENCIES),
    "day": lambda chance: str(chance.randrange(1, 29)),
    "year": lambda chance: str(chance.randrange(1950, 2040)),
    "hour": lambda chance: str(chance.randrange(2, 12)),
    "minute": lambda chance: f"{5 * chance.randrange(12):02d}",
    "few": lambda chance: str(chance.randrange(2, 30)),
    "many": lambda chance: f"{chance.randrange(1, 900)},{chance.randrange(1000):03d}",
}

_TEMPLATES = (
    "{place}",
    "{weekday}",
    "{language}",
    "{month} {year}",
    "in {few} days",
    "{few} {currency}",
    "{month} {day}, {year}",
    "{weekday}, {month} {day}, {year}",
    "{city}, {city}, and {city}",
    "The meeting is on {month} {day}, {year}.",
    "The exhibition opens on {weekday}, {month} {day}, {year} at {hour}:{minute}.",
    "The train from {city} to {city} leaves at {hour}:{minute}.",
    "In {place}, many people speak {language}.",
    "The ticket costs {few} {currency}.",
    "{many} people live in {city}.",
    "The contract is valid until {month} {day}, {year}.",
    "She speaks {language}, {language}, and {language}.",
)

_CODE = re.compile(r">>[^<>]+<<")


@dataclass(frozen=True)
class Text:
    text: str
    tokens: int


class Writer:
    """Writes texts by joining phrases until they are as long as was drawn.

    `count` gives the tokens of a text. `codes` are what a text may begin with to choose its target
    language, such as `>>de<<`; empty for a model of one language. `phrases` take the place of our
    own.
    """

    def __init__(
        self,
        count: Callable[[str], int],
        codes: Sequence[str],
        phrases: Sequence[str] = (),
        seed: int = 1,
    ):
        self._count = count
        self._codes = codes
        self._phrases = phrases
        self._chance = Random(seed)

    def mixed(self, number: int) -> list[Text]:
        """From 5 to 120 tokens, long-tailed."""
        return [self._text(*self._drawn()) for _ in range(number)]

    def between(self, number: int, shortest: int, longest: int) -> list[Text]:
        """Of lengths that are drawn evenly."""
        return [
            self._text(self._chance.randint(shortest, longest), shortest, longest)
            for _ in range(number)
        ]

    def _drawn(self) -> tuple[int, int, int]:
        length = MEDIAN * self._chance.lognormvariate(0.0, SPREAD)
        return round(min(max(length, SHORTEST), LONGEST)), SHORTEST, LONGEST

    def _text(self, target: int, shortest: int, longest: int) -> Text:
        for _ in range(1000):
            text = self._chance.choice(self._codes) + " " if self._codes else ""
            tokens = 0
            while tokens < target:
                text += ("" if tokens == 0 else " ") + self._phrase()
                tokens = self._count(text)
            # The last phrase may have brought too many, of which a short text has nothing to spare.
            if shortest <= tokens <= min(longest, target + max(2, target // 8)):
                return Text(text, tokens)
        raise SystemExit(
            f"no phrases make a text of {target} tokens; give shorter ones with --phrases"
        )

    def _phrase(self) -> str:
        if self._phrases:
            return self._chance.choice(self._phrases)
        template = self._chance.choice(_TEMPLATES)
        return re.sub(r"\{(\w+)\}", lambda blank: _BLANKS[blank[1]](self._chance), template)


def language_codes(vocabulary: Sequence[str]) -> list[str]:
    """Those that a checkpoint's vocabulary knows."""
    return sorted(token for token in vocabulary if _CODE.fullmatch(token))
