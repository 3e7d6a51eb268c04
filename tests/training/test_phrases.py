"""The sentences of the shipped translator: the same for the same seed, and grammatical."""

from __future__ import annotations

import re
import unicodedata
from random import Random

import pytest

from training.tasks.translation.phrases import Phrase, make_phrases
from training.tasks.translation.phrases.places import COUNTRIES, TERRITORIES
from training.tasks.translation.phrases.slots import _before_the_same_vowel, _spell, country


@pytest.fixture(scope="module")
def phrases() -> list[Phrase]:
    return make_phrases(4000, seed=5)


def test_the_seed_decides(phrases: list[Phrase]) -> None:
    assert make_phrases(100, seed=5) == phrases[:100]
    assert make_phrases(100, seed=6) != phrases[:100]


def test_sources_differ_and_every_blank_is_filled(phrases: list[Phrase]) -> None:
    assert len({phrase.source for phrase in phrases}) == 4000
    for phrase in phrases:
        assert phrase.targets.keys() == {"de", "fr", "es"}
        for text in (phrase.source, *phrase.targets.values()):
            assert not set(text) & set("{}\u00a0\u202f\u00ad")
            assert text == " ".join(unicodedata.normalize("NFKC", text).split())


def test_numbers_keep_their_digits(phrases: list[Phrase]) -> None:
    """But for dates and times, whose order and hours change."""
    checked = 0
    for phrase in phrases:
        if re.search(r"[/:]|\d(st|nd|rd|th)\b| [AP]M|, \d{4}|[A-Z][a-z]+ \d", phrase.source):
            continue
        digits = re.sub(r"\D", "", phrase.source)
        for text in phrase.targets.values():
            if "Prices" not in phrase.source:
                assert re.sub(r"\D", "", text) == digits, (phrase.source, text)
        checked += bool(digits)
    assert checked > 500


@pytest.mark.parametrize(
    ("language", "wrong"),
    [
        ("fr", r"\bde [AEIOÉÎaeioé]\w+ à "),
        ("fr", r"\b(à|de) les? |\bque [AEIOÉaeioé]"),
        ("fr", r"\b1 (janv|févr|mars|avril|mai|juin|juil|août|sept|oct|nov|déc)"),
        ("de", r"\bin (Schweiz|Türkei|Ukraine|Slowakei|Niederlande|Vereinigte)"),
        ("es", r"\by [ií](?!e)|\bo [oó]"),
        ("es", r"uno mil|\b1:\d\d PM|(?<![.\d])\d\.\d{3}(?![.\d])"),
        ("es", r"\ba las 1:"),
    ],
)
def test_no_sentence_has_a_known_mistake(phrases: list[Phrase], language: str, wrong: str) -> None:
    found = [phrase.targets[language] for phrase in phrases]
    assert [text for text in found if re.search(wrong, text)] == []


def test_numbers_in_spanish_words_lose_their_ending_before_thousand() -> None:
    assert _spell(21_000, "es") == "veintiún mil"
    assert _spell(31_231, "es") == "treinta y un mil doscientos treinta y uno"


def test_spanish_and_changes_before_the_same_vowel() -> None:
    assert _before_the_same_vowel("ruso y inglés", "inglés") == "ruso e inglés"
    assert _before_the_same_vowel("ruso o hindi", "hindi") == "ruso o hindi"
    assert _before_the_same_vowel("Lima o Oslo", "Oslo") == "Lima u Oslo"


def test_countries_bring_their_prepositions() -> None:
    chance = Random(0)
    found = {str(place["en"]): place for place in (country(chance) for _ in range(3000))}
    assert len(found) == len(COUNTRIES)
    assert set(TERRITORIES) >= COUNTRIES.keys()
    forms = {
        name: [format(found[name][code], form) for code in ("de", "fr", "es")]
        for name, form in (("Netherlands", "from"), ("Switzerland", "in"), ("Japan", "in"))
    }
    assert forms == {
        "Netherlands": ["aus den Niederlanden", "des Pays-Bas", "de los Países Bajos"],
        "Switzerland": ["in der Schweiz", "en Suisse", "en Suiza"],
        "Japan": ["in Japan", "au Japon", "en Japón"],
    }
