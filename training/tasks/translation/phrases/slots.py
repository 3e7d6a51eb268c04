"""What fills the blanks of a sentence: dates, numbers, amounts, names, in four languages at once.

Everything comes from the Unicode CLDR tables that Babel carries, numbers in words from num2words.
Where the tables alone would make a sentence wrong (the first of a month in French, four digits in
Spanish, "y" before an i), the rule is here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from random import Random
from typing import Any, Literal

from babel import Locale, dates, lists, numbers
from num2words import num2words

from training.tasks.translation.phrases.places import CITIES, COUNTRIES, LANGUAGES, TERRITORIES
from training.tasks.translation.phrases.words import CODES, Parallel, Slot, Word, split


def _parallel(make: Callable[[str], str]) -> Parallel:
    return {code: Word(_plain(make(code))) for code in CODES}


def _plain(text: str) -> str:
    """With the spaces that keyboards have, as people will type it."""
    return re.sub("[\u00a0\u2009\u202f]", " ", text).replace("\u00ad", "")


# Dates and times


def _any_date(chance: Random) -> date:
    return date(1950, 1, 1) + timedelta(days=chance.randrange(90 * 365))


def _skeleton(pattern: str) -> Slot:
    def slot(chance: Random) -> Parallel:
        day = _any_date(chance)

        def write(code: str) -> str:
            text = dates.format_skeleton(pattern, day, locale=code)
            # CLDR counts "1 mars", and everybody says and writes "1er mars".
            return re.sub(r"\b1 (?=\D)", "1er ", text) if code == "fr" else text

        return _parallel(write)

    return slot


def _formatted(length: str) -> Slot:
    def slot(chance: Random) -> Parallel:
        day = _any_date(chance)

        def write(code: str) -> str:
            text = dates.format_date(day, length, locale=code)
            return re.sub(r"\b1 (?=\D)", "1er ", text) if code == "fr" else text

        return _parallel(write)

    return slot


long_date = _formatted("long")
full_date = _formatted("full")
medium_date = _formatted("medium")
day_of_year = _skeleton("MMMMd")
month_of_year = _skeleton("yMMMM")
numeric_date = _skeleton("yMd")


def weekday(chance: Random) -> Parallel:
    day = chance.randrange(7)
    return _parallel(lambda code: dates.get_day_names(locale=code)[day])


def month(chance: Random) -> Parallel:
    number = chance.randrange(1, 13)
    return _parallel(lambda code: dates.get_month_names(locale=code)[number])


def year(chance: Random) -> Parallel:
    number = chance.randrange(1900, 2100)
    return _parallel(lambda _: str(number))


def clock(chance: Random) -> Parallel:
    """Not between one and two at night, for which Spanish needs another article."""
    # Noon and midnight are told otherwise than the other hours, so there are more of them.
    moment = time(chance.choice([0, 0, 12, 13, *range(2, 24)]), chance.randrange(12) * 5)
    return _parallel(lambda code: dates.format_time(moment, "short", locale=code))


def date_and_time(chance: Random) -> Parallel:
    day = _any_date(chance)
    moment = datetime(day.year, day.month, day.day, chance.randrange(24), chance.randrange(60))
    return _parallel(lambda code: dates.format_datetime(moment, "short", locale=code))


def _relative(direction: int) -> Slot:
    def slot(chance: Random) -> Parallel:
        if chance.random() < 0.3:
            unit = chance.choice(["day", "week", "month", "year"])
            return _parallel(lambda code: _fields(code)[unit]["relative"][direction])
        unit, most = chance.choice(
            [("minute", 59), ("hour", 23), ("day", 30), ("week", 12), ("month", 11), ("year", 90)]
        )
        # The singular has a pattern of its own, and would hardly be seen.
        count = 1 if chance.random() < 0.15 else chance.randint(2, most)

        def write(code: str) -> str:
            patterns = _fields(code)[unit]["future" if direction > 0 else "past"]
            return str(patterns[Locale(code).plural_form(count)]).replace("{0}", str(count))

        return _parallel(write)

    return slot


@cache
def _fields(code: str) -> Mapping[str, Any]:
    """Of CLDR, by unit: "relative" has names for -1 and 1, "past" and "future" patterns."""
    fields: Mapping[str, Any] = Locale(code)._data["date_fields"]
    return fields


past = _relative(-1)
future = _relative(1)


# Numbers


def _grouped(number: Decimal, code: str) -> bool:
    """In Spanish, a number of four digits is not."""
    return code != "es" or abs(number) >= 10_000


def _decimal(number: Decimal, code: str, places: int) -> str:
    pattern = "#,##0" if places == 0 else "#,##0." + "0" * places
    separate = _grouped(number, code)
    return numbers.format_decimal(number, pattern, locale=code, group_separator=separate)


def _some_integer(chance: Random, digits: int) -> int:
    """Of any length as likely as of another."""
    length = chance.randint(1, digits)
    return chance.randrange(10 ** (length - 1), 10**length)


def integer(chance: Random) -> Parallel:
    number = Decimal(_some_integer(chance, 6))
    return _parallel(lambda code: _decimal(number, code, 0))


def large_integer(chance: Random) -> Parallel:
    number = Decimal(chance.randrange(1_000, 10 ** chance.randint(4, 7)))
    return _parallel(lambda code: _decimal(number, code, 0))


def decimal(chance: Random) -> Parallel:
    places = chance.randint(1, 2)
    number = _some_integer(chance, 5) + Decimal(chance.randrange(10**places)) / 10**places
    return _parallel(lambda code: _decimal(number, code, places))


def small_count(chance: Random) -> Parallel:
    """Two or more, so that what is counted is plural."""
    number = chance.randint(2, 99)
    return _parallel(lambda _: str(number))


def room_number(chance: Random) -> Parallel:
    number = chance.randint(1, 999)
    return _parallel(lambda _: str(number))


def percentage(chance: Random) -> Parallel:
    places = chance.randint(0, 1)
    number = Decimal(chance.randrange(1, 1000 if places else 101)) / 10**places
    return _parallel(lambda code: _decimal(number, code, places) + ("%" if code == "en" else " %"))


def in_words(chance: Random) -> Parallel:
    number = _some_integer(chance, 4)
    return _parallel(lambda code: _spell(number, code))


def small_in_words(chance: Random) -> Parallel:
    number = chance.randrange(1, 100)
    return _parallel(lambda code: _spell(number, code))


def _spell(number: int, code: str) -> str:
    text = str(num2words(number, lang=code))
    if code == "es":
        # num2words does not shorten "uno" before "mil".
        text = text.replace("veintiuno mil", "veintiún mil").replace(" uno mil", " un mil")
    return text


# Quantities and money


def _quantity(*names: str, below: int = 1000, style: str = "long") -> Slot:
    def slot(chance: Random) -> Parallel:
        name = chance.choice(names)
        places = chance.choice([0, 0, 1, 1, 2])
        number = Decimal(chance.randrange(1, below * 10**places)) / 10**places

        def write(code: str) -> str:
            locale = Locale(code)
            pattern = locale._data["unit_patterns"][name][style][locale.plural_form(number)]
            return str(pattern).replace("{0}", _decimal(number, code, places))

        return _parallel(write)

    return slot


length = _quantity(
    "length-kilometer", "length-meter", "length-centimeter", "length-millimeter", "length-mile",
    "length-foot", "length-inch", "length-nautical-mile",
)  # fmt: skip
mass = _quantity("mass-kilogram", "mass-gram", "mass-tonne", "mass-milligram", "mass-pound")
volume = _quantity(
    "volume-liter", "volume-milliliter", "volume-centiliter", "volume-hectoliter", "volume-gallon"
)
speed = _quantity("speed-kilometer-per-hour", "speed-mile-per-hour", "speed-meter-per-second")
area = _quantity("area-square-meter", "area-square-kilometer", "area-hectare", below=10_000)
power = _quantity("power-kilowatt", "power-watt", "power-megawatt", "power-horsepower")
data = _quantity("digital-gigabyte", "digital-megabyte", "digital-terabyte", "digital-kilobyte")
temperature = _quantity("temperature-celsius", "temperature-fahrenheit", below=200)
duration = _quantity(
    "duration-second", "duration-minute", "duration-hour", "duration-day", "duration-week",
    below=100,
)  # fmt: skip
short_quantity = _quantity(
    "length-kilometer", "length-meter", "length-centimeter", "length-millimeter", "mass-kilogram",
    "mass-gram", "volume-liter", "volume-milliliter", "speed-kilometer-per-hour", "power-kilowatt",
    "digital-gigabyte", "digital-megabyte", "frequency-megahertz", "energy-kilowatt-hour",
    below=10_000, style="short",
)  # fmt: skip

_CURRENCIES = split(
    "EUR USD GBP CHF JPY INR BRL CAD AUD NZD MXN ARS SEK NOK DKK CZK HUF TRY RUB EGP KRW SGD"
)
_WITH_SYMBOLS = ("EUR", "EUR", "USD", "USD", "GBP", "CHF", "JPY", "CAD", "AUD", "BRL", "SEK")


def _money(chance: Random, currency: str) -> tuple[Decimal, int]:
    """An amount, and how many places are written."""
    usual = numbers.get_currency_precision(currency)
    places = usual if chance.random() < 0.6 else 0
    digits = chance.randint(1, 5)
    return Decimal(chance.randrange(1, 10 ** (digits + places))) / 10**places, places


def amount(chance: Random) -> Parallel:
    """With the currency's symbol."""
    currency = chance.choice(_WITH_SYMBOLS)
    number, places = _money(chance, currency)

    def write(code: str) -> str:
        pattern = str(Locale(code).currency_formats["standard"].pattern)
        return numbers.format_currency(
            number,
            currency,
            pattern if places else pattern.replace(".00", ""),
            locale=code,
            currency_digits=False,
            group_separator=_grouped(number, code),
        )

    return _parallel(write)


def named_amount(chance: Random) -> Parallel:
    """With the currency's name."""
    currency = chance.choice(_CURRENCIES)
    number, places = _money(chance, currency)
    return _parallel(
        lambda code: f"{_decimal(number, code, places)} {_currency_name(currency, number, code)}"
    )


def _currency_name(currency: str, number: Decimal, code: str) -> str:
    return numbers.get_currency_name(currency, number, locale=code)


def currency(chance: Random) -> Parallel:
    chosen = chance.choice(_CURRENCIES)
    return _parallel(lambda code: numbers.get_currency_name(chosen, locale=code))


# Names


def _name(kind: str, key: str) -> Parallel:
    return _parallel(lambda code: str(getattr(Locale(code), kind)[key]))


def territory(chance: Random) -> Parallel:
    return _name("territories", chance.choice(TERRITORIES))


def language(chance: Random) -> Parallel:
    return _name("languages", chance.choice(LANGUAGES))


def country(chance: Random) -> Parallel:
    """With the forms "in" and "from", which bring their preposition and article."""
    key = chance.choice(list(COUNTRIES))
    names = {code: _plain(Locale(code).territories[key]) for code in CODES}
    return COUNTRIES[key].decline(names)


def city(chance: Random) -> Parallel:
    """With the French form "of"."""
    zone = chance.choice(CITIES)

    def write(code: str) -> str:
        exemplar = Locale(code).time_zones.get(zone, {}).get("city")
        return str(exemplar or zone.rsplit("/", 1)[-1].replace("_", " "))

    place = _parallel(write)
    french = place["fr"]
    of = f"d’{french}" if french[0] in "AEIOÉÎ" else f"de {french}"
    return {**place, "fr": Word(french, of=of)}


_WOMEN = split("Anna Clara Emma Julia Laura Maria Nora Sofia Elena Eva")
_MEN = (
    "Adrian",
    "Daniel",
    "David",
    "Gabriel",
    "Hugo",
    "Leo",
    "Martin",
    "Oscar",
    "Samuel",
    "Victor",
)


def woman(chance: Random) -> Parallel:
    name = chance.choice(_WOMEN)
    return _parallel(lambda _: name)


def man(chance: Random) -> Parallel:
    name = chance.choice(_MEN)
    return _parallel(lambda _: name)


# Several at once


def _listing(one: Slot, style: Literal["standard", "or"] = "standard") -> Slot:
    def slot(chance: Random) -> Parallel:
        several: dict[str, Parallel] = {}
        wanted = chance.choice([2, 3, 3])
        while len(several) < wanted:
            item = one(chance)
            several.setdefault(item["en"], item)

        def write(code: str) -> str:
            items = [str(item[code]) for item in several.values()]
            text = lists.format_list(items, style=style, locale=code)
            return _before_the_same_vowel(text, items[-1]) if code == "es" else text

        return _parallel(write)

    return slot


def _before_the_same_vowel(text: str, last: str) -> str:
    """Spanish says "e inglés" for "y inglés", and "u Oslo" for "o Oslo"."""
    if re.match("h?[ií](?!e)", last, re.IGNORECASE):
        return re.sub(f" y {re.escape(last)}$", f" e {last}", text)
    if re.match("h?[oó]", last, re.IGNORECASE):
        return re.sub(f" o {re.escape(last)}$", f" u {last}", text)
    return text


languages = _listing(language)
either_language = _listing(language, "or")
territories = _listing(territory)
cities = _listing(city)
weekdays = _listing(weekday)
months = _listing(month)
