"""What is said: numbers, dates, times and short commands, in words as they are spoken."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from num2words import num2words

_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september"),
    *("october", "november", "december"),
)
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_UNITS = (
    *("dollars", "euros", "pounds", "meters", "miles", "grams", "liters", "degrees", "percent"),
    *("minutes", "hours", "days", "weeks", "months", "years"),
)
_COMMANDS = (
    "set a timer for {minutes}",
    "set an alarm for {time}",
    "wake me up at {time}",
    "remind me on {weekday} at {time}",
    "remind me on the {ordinal} of {month}",
    "call extension {digits}",
    "dial {digits}",
    "turn the volume to {percent}",
    "turn the lights down to {percent}",
    "set the temperature to {degrees}",
    "switch off the light in room {number}",
    "open door {number}",
    "close window {number}",
    "play track {number}",
    "go to page {number}",
    "go to floor {number}",
    "add {number} and {number}",
    "subtract {number} from {number}",
    "multiply {number} by {number}",
    "what is {number} times {number}",
    "book a table for {number} at {time}",
    "meet me at gate {number} on {weekday}",
    "the train leaves at {time} from platform {number}",
    "the code is {digits}",
    "my room is {digits}",
    "transfer {amount} on {weekday}",
    "pay {amount} before the {ordinal}",
)
_PHRASES = (
    "repeat that",
    "start",
    "stop",
    "pause",
    "yes",
    "no",
    "cancel",
    "good morning",
    "good night",
    "thank you",
    "what time is it",
)


def say_something(chance: Random) -> str:
    """One utterance, with the punctuation that makes it be spoken as it should."""
    sentences = chance.choices((1, 2, 3), (16, 3, 1))[0]
    return ", ".join(chance.choices(_KINDS, _WEIGHTS)[0](chance) for _ in range(sentences))


def normalize(text: str) -> str:
    """A text as it is learned and compared: case, punctuation and spaces do not matter."""
    return " ".join(re.sub(r"[^\w']|_", " ", text.casefold()).split())


def _words(number: int | float, to: str = "cardinal") -> str:
    return normalize(str(num2words(number, lang="en", to=to)))


def _number(chance: Random) -> str:
    """As likely of one digit as of six."""
    number = chance.randrange(10 ** chance.choice((1, 2, 2, 2, 3, 3, 4, 5, 6)))
    words = _words(number)
    # Americans leave it out.
    return words.replace(" and ", " ") if chance.random() < 0.3 else words


def _small(chance: Random) -> str:
    return _words(chance.randrange(100))


def _decimal(chance: Random) -> str:
    digits = " ".join(chance.choice(_DIGITS) for _ in range(chance.randint(1, 3)))
    return f"{_small(chance)} point {digits}"


def _digits(chance: Random) -> str:
    return " ".join(chance.choice(_DIGITS) for _ in range(chance.randint(2, 7)))


def _ordinal(chance: Random) -> str:
    return _words(chance.randint(1, 31), to="ordinal")


def _year(chance: Random) -> str:
    return _words(chance.randint(1900, 2030), to="year")


def _date(chance: Random) -> str:
    day, month = _ordinal(chance), chance.choice(_MONTHS)
    date = chance.choice((f"the {day} of {month}", f"{month} the {day}", f"{month} {day}"))
    if chance.random() < 0.3:
        date = f"{chance.choice(_WEEKDAYS)} {date}"
    return f"{date} {_year(chance)}" if chance.random() < 0.4 else date


def _time(chance: Random) -> str:
    hour = _words(chance.randint(1, 12))
    minute = chance.randint(1, 59)
    minutes = _words(minute) if minute > 9 else f"oh {_words(minute)}"
    half = chance.choice(("a.m.", "p.m."))
    past = chance.choice(("past", "to"))
    return chance.choice(
        (
            f"{hour} o'clock",
            f"{hour} {half}",
            f"{hour} {minutes}",
            f"{hour} {minutes} {half}",
            f"half past {hour}",
            f"a quarter {past} {hour}",
            f"{_words(chance.choice((5, 10, 20, 25)))} {past} {hour}",
            "noon",
            "midnight",
        )
    )


def _measure(chance: Random) -> str:
    number = _decimal(chance) if chance.random() < 0.2 else _number(chance)
    return f"{number} {chance.choice(_UNITS)}"


def _command(chance: Random) -> str:
    def fill(blank: re.Match[str]) -> str:
        return _BLANKS[blank[1]](chance)

    return re.sub(r"{(\w+)}", fill, chance.choice(_COMMANDS))


_BLANKS: dict[str, Callable[[Random], str]] = {
    "number": _small,
    "digits": _digits,
    "ordinal": _ordinal,
    "month": lambda chance: chance.choice(_MONTHS),
    "weekday": lambda chance: chance.choice(_WEEKDAYS),
    "time": _time,
    "minutes": lambda chance: f"{_words(chance.randint(2, 59))} minutes",
    "percent": lambda chance: f"{_words(chance.randint(1, 100))} percent",
    "degrees": lambda chance: f"{_words(chance.randint(10, 30))} degrees",
    "amount": lambda chance: f"{_number(chance)} {chance.choice(_UNITS[:3])}",
}
_KINDS: tuple[Callable[[Random], str], ...] = (
    *(_number, _digits, _decimal, _ordinal, _date, _time, _measure, _command),
    lambda chance: chance.choice(_PHRASES),
)
_WEIGHTS = (8, 3, 1, 1, 4, 4, 3, 6, 1)
