"""The search among known words, against all paths that spell nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.speech import lexicon
from serving.speech.ctc import GreedySearch, Token
from serving.speech.lexicon import Lexicon, LexiconSearch

BLANK = 0
VOCABULARY = ("", " ", "a", "b")
WORDS = ("a", "ab", "bb")
HORIZON = 1000

Frames = npt.NDArray[Any]


def frames(longest: int) -> st.SearchStrategy[Frames]:
    frame = st.lists(st.integers(0, 9), min_size=len(VOCABULARY), max_size=len(VOCABULARY))
    return st.lists(frame, min_size=1, max_size=longest).map(log_probs)


def log_probs(weights: list[list[int]]) -> Frames:
    numbers = np.array(weights, np.float64) + 0.01
    return np.asarray(np.log(numbers / numbers.sum(axis=1, keepdims=True)))


def certain(path: str) -> Frames:
    """Frames that are nearly sure of a path; "-" is the blank."""
    numbers = np.full((len(path), len(VOCABULARY)), 0.001)
    for at, character in enumerate(path):
        numbers[at, BLANK if character == "-" else VOCABULARY.index(character)] = 1
    return np.asarray(np.log(numbers / numbers.sum(axis=1, keepdims=True)))


def text(tokens: Iterable[Token]) -> str:
    return " ".join("".join(VOCABULARY[token.id] for token in tokens).split())


def collapsed(path: tuple[int, ...]) -> str:
    kept = (id for id, _ in itertools.groupby(path) if id != BLANK)
    return " ".join("".join(VOCABULARY[id] for id in kept).split())


def best_of_all(numbers: Frames, worth: Mapping[str, float]) -> float:
    """The value of the best path that spells words only, of all that there are."""
    values = []
    for path in itertools.product(range(len(VOCABULARY)), repeat=len(numbers)):
        words = collapsed(path).split()
        if set(words) <= set(WORDS):
            value = sum(numbers[at, id] for at, id in enumerate(path))
            values.append(value + sum(worth.get(word, 0.0) for word in words))
    return float(max(values))


def value_of(tokens: list[Token], numbers: Frames, worth: Mapping[str, float]) -> float:
    path = [BLANK] * len(numbers)
    for token in tokens:
        path[token.first : token.last + 1] = [token.id] * (token.last - token.first + 1)
    value = sum(numbers[at, id] for at, id in enumerate(path))
    return float(value + sum(worth.get(word, 0.0) for word in text(tokens).split()))


def found(numbers: Frames, worth: Mapping[str, float]) -> list[Token]:
    search = LexiconSearch(Lexicon(WORDS, VOCABULARY, BLANK, worth), HORIZON)
    search.push(numbers)
    return search.best()


@given(
    frames(longest=6),
    st.sampled_from([{"a": 1e-9}, {"bb": 2.0}, {"a": 0.5, "ab": 3.0}]),
    st.sampled_from([1, 500]),
)
def test_no_path_through_the_words_is_better(
    numbers: Frames, worth: dict[str, float], most_at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # All words in one branch, or a branch for each first letter.
        patch.setattr(lexicon, "_MOST_AT_ONCE", most_at_once)
        tokens = found(numbers, worth)
    assert set(text(tokens).split()) <= set(WORDS)
    assert value_of(tokens, numbers, worth) == pytest.approx(best_of_all(numbers, worth), abs=1e-4)


@given(frames(longest=24))
def test_what_is_mended_is_words_in_their_order(numbers: Frames) -> None:
    tokens = found(numbers, {})
    assert set(text(tokens).split()) <= set(WORDS)
    ends = [-1, *(token.last for token in tokens)]
    assert all(end < token.first <= token.last for end, token in zip(ends, tokens, strict=False))
    assert ends[-1] < len(numbers)


def test_what_is_well_spelt_elsewhere_stays() -> None:
    said = "-a-b- -bb-b- -a- -a-b-b-- -b-b -ab- - a--"
    tokens = found(certain(said), {})
    greedy = GreedySearch(BLANK)
    greedy.push(certain(said))
    assert text(greedy.best()) == "ab bb a abb bb ab a"
    mended = text(tokens).split()
    assert mended[:3] + mended[-3:] == ["ab", "bb", "a", "bb", "ab", "a"]
    whole = LexiconSearch(Lexicon(WORDS, VOCABULARY, BLANK), HORIZON)
    whole.push(certain(said))
    whole.settled()
    assert text(whole.best()) == text(tokens)


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=6),
    st.lists(st.floats(0, 20), max_size=3),
    st.integers(1, 8),
    st.lists(st.tuples(frames(longest=6), st.booleans()), min_size=1, max_size=6),
)
def test_what_was_told_is_never_taken_back(
    words: list[str], worth: list[float], horizon: int, pieces: list[tuple[Frames, bool]]
) -> None:
    favourites = dict(zip(words, worth, strict=False))
    search = LexiconSearch(Lexicon(words, VOCABULARY, BLANK, favourites), horizon)
    told: list[int] = []
    for numbers, asks in pieces:
        search.push(numbers)
        if asks:
            settled = search.settled()
            told += [token.id for token in search.best(len(told))[: settled - len(told)]]
            assert len(told) == settled
        assert [token.id for token in search.best()][: len(told)] == told
    *whole, last = text(search.best()).split() or [words[0]]
    assert set(whole) <= set(words)
    # A recording may break off within its last word.
    assert any(word.startswith(last) for word in words)


@pytest.mark.parametrize("horizon", [4, HORIZON])
def test_a_favourite_that_nobody_says_drives_nobody_out(horizon: int) -> None:
    worth = {"a" * 12: 18.0, "b" * 12: 18.0}
    search = LexiconSearch(Lexicon(("ab", "bb"), VOCABULARY, BLANK, worth), horizon)
    said = "-a-b--- -b-b-- -a-b-- -b-b--"
    for start in range(0, len(said), 4):
        search.push(certain(said[start : start + 4]))
        search.settled()
    assert text(search.best()) == "ab bb ab bb"


@given(frames(longest=12), st.integers(0, 12), st.integers(0, 3))
def test_what_is_settled_stays(numbers: Frames, cut: int, start: int) -> None:
    known = Lexicon(WORDS, VOCABULARY, BLANK)
    search = LexiconSearch(known, HORIZON)
    search.push(numbers[:cut])
    count = search.settled()
    before = [token.id for token in search.best()[:count]]
    search.push(numbers[cut:])
    after = search.best()
    assert [token.id for token in after[:count]] == before
    assert search.best(start) == after[start:]
    assert search.settled() >= count


@given(frames(longest=12), st.lists(st.integers(0, 12), max_size=3))
def test_it_does_not_matter_in_what_pieces_frames_come(numbers: Frames, cuts: list[int]) -> None:
    known = Lexicon(WORDS, VOCABULARY, BLANK)
    whole, pieces = LexiconSearch(known, HORIZON), LexiconSearch(known, HORIZON)
    whole.push(numbers)
    for piece in np.split(numbers, sorted(cuts)):
        pieces.push(piece)
    assert pieces.best() == whole.best()


def test_a_misspelt_word_becomes_the_nearest() -> None:
    numbers = certain("--a--b--b- -a-")
    greedy = GreedySearch(BLANK)
    greedy.push(numbers)
    assert text(greedy.best()) == "abb a"
    assert text(found(numbers, {})) in {"ab a", "bb a"}


def test_what_is_well_spelt_is_what_the_greedy_path_says() -> None:
    numbers = certain(" -aa-b  --b-b- ")
    greedy = GreedySearch(BLANK)
    greedy.push(numbers)
    assert text(greedy.best()) == "ab bb"
    assert found(numbers, {}) == greedy.best()


def test_times_are_those_of_the_path() -> None:
    tokens = found(certain("-aab- -bb-b"), {"a": 1e-6})
    spans = [(VOCABULARY[token.id], token.first, token.last) for token in tokens]
    assert spans == [("a", 1, 2), ("b", 3, 3), (" ", 5, 5), ("b", 7, 8), ("b", 10, 10)]


def test_silence_says_nothing() -> None:
    assert found(certain("------"), {}) == []
    assert LexiconSearch(Lexicon(WORDS, VOCABULARY, BLANK), HORIZON).best() == []


def test_words_of_a_request_are_words_too() -> None:
    numbers = certain("-b-a- -a-")
    assert text(found(numbers, {})) != "ba a"
    known = Lexicon(WORDS, VOCABULARY, BLANK, {"ba": 1.0, "BAB": 1.0, "no such": 1.0, "x": 1.0})
    search = LexiconSearch(known, HORIZON)
    search.push(numbers)
    assert text(search.best()) == "ba a"


def test_a_close_call_does_not_stay_open_for_ever() -> None:
    # Either "ab" or "bb", and then a long silence that favours neither.
    close = certain("-a-b-")
    close[1, 3] = close[1, 2] - 0.1
    search = LexiconSearch(Lexicon(WORDS, VOCABULARY, BLANK, {"ab": 0.01}), 10)
    search.push(close)
    assert search.settled() == 0
    search.push(certain("-" * 30))
    assert search.settled() == 2
    assert text(search.best()) == "ab"


def test_what_was_told_is_not_taken_back_when_a_word_breaks_off() -> None:
    known = Lexicon(("aab", "b"), VOCABULARY, BLANK)
    search = LexiconSearch(known, HORIZON)
    search.push(certain("-a-a"))
    assert search.settled() == 2
    assert text(search.best()) == "aa"


def test_minus_infinity_is_a_number_like_others() -> None:
    numbers = np.full((4, len(VOCABULARY)), -np.inf)
    numbers[:, 3] = 0.0
    assert set(text(found(numbers, {})).split()) <= set(WORDS)


def test_there_is_something_to_find() -> None:
    with pytest.raises(ValueError, match="a word that the vocabulary can spell"):
        Lexicon(("né", ""), VOCABULARY, BLANK)


def test_words_need_a_space() -> None:
    with pytest.raises(ValueError, match="a space"):
        Lexicon(WORDS, ("", "a", "b"), BLANK)
