"""CTC decoding against what all paths add up to, counted one by one."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.speech.ctc import GreedySearch, Search, Token
from serving.speech.hot_words import HotWords
from serving.speech.prefix_beam import PrefixBeamSearch
from serving.speech.recognizer import RecognizerSettings
from serving.speech.transcriber import Transcriber
from serving.speech.transcript import transcript
from serving.speech.windows import Window

BLANK = 0
VOCABULARY = ("", " ", "a", "b", "c", "d")


def log_probs(frames: list[list[int]]) -> npt.NDArray[np.float64]:
    weights = np.array(frames, np.float64).reshape(len(frames), -1) + 0.01
    return np.asarray(np.log(weights / weights.sum(axis=1, keepdims=True)))


def frames_of(classes: int, longest: int) -> st.SearchStrategy[npt.NDArray[np.float64]]:
    frame = st.lists(st.integers(0, 9), min_size=classes, max_size=classes)
    return st.lists(frame, min_size=1, max_size=longest).map(log_probs)


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(id for id, _ in itertools.groupby(path) if id != BLANK)


def summed(frames: npt.NDArray[Any]) -> dict[tuple[int, ...], float]:
    """The probability of every text, from every path."""
    sums: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(frames.shape[1]), repeat=len(frames)):
        sums[collapsed(path)] += math.exp(sum(frames[at, id] for at, id in enumerate(path)))
    return sums


def ids(search: Search) -> tuple[int, ...]:
    return tuple(token.id for token in search.best())


def said(path: list[int], classes: int = len(VOCABULARY)) -> npt.NDArray[np.float64]:
    """Frames that are nearly certain of a path."""
    frames = np.full((len(path), classes), 0.01)
    frames[np.arange(len(path)), path] = 1
    return np.asarray(np.log(frames / frames.sum(axis=1, keepdims=True)))


def test_greedy_drops_repetitions_and_blanks() -> None:
    search = GreedySearch(BLANK)
    search.push(said([0, 2, 2, 0, 2, 3]))
    search.push(said([3, 0, 0, 4]))
    spans = [(token.id, token.first, token.last) for token in search.best()]
    assert spans == [(2, 1, 2), (2, 4, 4), (3, 5, 6), (4, 9, 9)]


@given(frames_of(classes=3, longest=6))
def test_a_wide_beam_has_every_text_with_the_sum_of_its_paths(
    frames: npt.NDArray[np.float64],
) -> None:
    search = PrefixBeamSearch(BLANK, width=10_000)
    search.push(frames)
    expected = summed(frames)
    found = search.prefixes()
    assert {ids for ids, _ in found} == set(expected)
    for text, value in found:
        assert math.exp(value) == pytest.approx(expected[text], rel=1e-9)
    assert sum(math.exp(value) for _, value in found) == pytest.approx(1)
    assert ids(search) == found[0][0]
    assert math.exp(found[0][1]) == pytest.approx(max(expected.values()))


@given(frames_of(classes=4, longest=12), st.integers(1, 12))
def test_no_beam_is_worse_than_the_greedy_path(frames: npt.NDArray[np.float64], width: int) -> None:
    greedy, beam = GreedySearch(BLANK), PrefixBeamSearch(BLANK, width)
    greedy.push(frames)
    beam.push(frames)
    best, score = beam.prefixes()[0]
    assert score >= frames.max(axis=1).sum() - 1e-9
    assert best == ids(beam)
    assert len(beam.prefixes()) <= width + 1


@given(frames_of(classes=3, longest=6), st.integers(1, 8))
def test_a_narrow_beam_never_claims_more_than_there_is(
    frames: npt.NDArray[np.float64], width: int
) -> None:
    search = PrefixBeamSearch(BLANK, width)
    search.push(frames)
    expected = summed(frames)
    for text, value in search.prefixes():
        assert math.exp(value) <= expected[text] * (1 + 1e-9)


@given(frames_of(classes=4, longest=10), st.integers(1, 6), st.integers(0, 10))
def test_it_does_not_matter_in_what_pieces_frames_come(
    frames: npt.NDArray[np.float64], width: int, cut: int
) -> None:
    for make in (lambda: GreedySearch(BLANK), lambda: PrefixBeamSearch(BLANK, width)):
        whole: Search = make()
        pieces: Search = make()
        whole.push(frames)
        pieces.push(frames[:cut])
        settled = ids(pieces)[: pieces.settled()]
        pieces.push(frames[cut:])
        assert pieces.best() == whole.best()
        assert pieces.best(1) == whole.best()[1:]
        assert ids(pieces)[: len(settled)] == settled


@given(frames_of(classes=4, longest=10), st.integers(1, 6))
def test_tokens_have_frames_in_which_the_path_has_them(
    frames: npt.NDArray[np.float64], width: int
) -> None:
    for search in (GreedySearch(BLANK), PrefixBeamSearch(BLANK, width)):
        search.push(frames)
        tokens = search.best()
        path = [BLANK] * len(frames)
        for token in tokens:
            path[token.first : token.last + 1] = [token.id] * (token.last + 1 - token.first)
            strongest = frames[token.first : token.last + 1, token.id].max()
            assert token.log_prob == pytest.approx(strongest)
        assert collapsed(tuple(path)) == tuple(token.id for token in tokens)


def test_the_beam_finds_what_the_best_path_misses() -> None:
    # "a" is said by three of the paths, and by none of them as probably as nothing is.
    frames = log_probs([[55, 0, 45], [55, 0, 45]])
    greedy, beam = GreedySearch(BLANK), PrefixBeamSearch(BLANK, 4)
    greedy.push(frames)
    beam.push(frames)
    assert (ids(greedy), ids(beam)) == ((), (2,))


def test_a_floor_leaves_out_what_is_hardly_possible_but_never_the_most_probable() -> None:
    frames = said([2, 0, 3, 3, 4])
    search = PrefixBeamSearch(BLANK, 8, floor=math.inf)
    search.push(frames)
    assert ids(search) == (2, 3, 4)
    assert {id for text, _ in search.prefixes() for id in text} == {2, 3, 4}


def text_of(search: Search) -> str:
    return transcript(search.best(), VOCABULARY, 1, 100).text


def between(first: str, second: str, share: float = 0.6) -> npt.NDArray[np.float64]:
    """Frames that rather say one text than another of the same length."""
    frames = np.full((2 * len(first), len(VOCABULARY)), 1e-6)
    frames[1::2, BLANK] = 1
    for at, (one, other) in enumerate(zip(first, second, strict=True)):
        frames[2 * at, VOCABULARY.index(one)] += share
        frames[2 * at, VOCABULARY.index(other)] += 1 - share
    return np.asarray(np.log(frames / frames.sum(axis=1, keepdims=True)))


@pytest.mark.parametrize(
    ("hot", "expected"),
    [
        ([], "abc ab"),
        (["abd"], "abd ab"),
        (["ABD"], "abd ab"),
        (["abd ac"], "abd ac"),
        (["abd", "ac"], "abd ac"),
        (["abda"], "abc ab"),
        (["abd a"], "abc ab"),
        (["bd", "", "  "], "abc ab"),
    ],
)
def test_hot_words_are_preferred_where_they_are_whole_words(hot: list[str], expected: str) -> None:
    hot_words = HotWords(hot, 2.0, VOCABULARY)
    search = PrefixBeamSearch(BLANK, 8, hot_words=hot_words)
    search.push(between("abc ab", "abd ac"))
    assert text_of(search) == expected


def test_a_hot_word_that_was_not_said_stays_away() -> None:
    search = PrefixBeamSearch(BLANK, 8, hot_words=HotWords(["abd"], 1.0, VOCABULARY))
    search.push(between("abc ab", "abd ac", share=0.9999))
    assert text_of(search) == "abc ab"


def test_a_long_recording_keeps_no_more_than_its_beam() -> None:
    random = np.random.default_rng(0)
    search = PrefixBeamSearch(BLANK, 4, horizon=50)
    frames = random.normal(size=(600, len(VOCABULARY))) * 3
    search.push(frames - np.log(np.exp(frames).sum(axis=1, keepdims=True)))
    root = search._beam[0]
    while root.parent is not None:
        root = root.parent
    count, waiting = 0, [root]
    while waiting:
        count += 1
        waiting += waiting.pop().children.values()
    deepest = max(prefix.depth for prefix in search._beam)
    assert count <= 1 + deepest * len(search._beam)
    assert search.settled() > deepest * 0.8


SPACED = {"type": "ctc", "max_seconds": 9.0, "overlap_seconds": 0.0, "vocabulary": VOCABULARY}


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.lists(st.integers(0, 40), max_size=5),
    st.booleans(),
)
def test_news_add_up_to_the_text(path: list[int], cuts: list[int], beams: bool) -> None:
    settings = RecognizerSettings.model_validate(
        {**SPACED, "sampling_rate": 16000, "samples_per_frame": 640, "blank": BLANK}
    )
    search = PrefixBeamSearch(BLANK, 4, horizon=3) if beams else GreedySearch(BLANK)
    transcriber = Transcriber(settings, search)
    frames = said(path).reshape(-1, len(VOCABULARY))
    text = ""
    for piece in np.split(frames, sorted(min(cut, len(frames)) for cut in cuts)):
        transcriber.push(piece, Window(0, 0, 0, None))
        text += transcriber.news()
        assert text == text.strip()
    text += transcriber.news(final=True)
    assert text == transcriber.transcript(10).text
    assert transcriber.news(final=True) == ""


def test_words_have_the_times_of_their_frames() -> None:
    vocabulary = ("", " ", "ab", "c", " d", "e f")
    tokens = [Token(id, at, at + 1, -0.1) for at, id in enumerate([1, 2, 3, 1, 1, 3, 4, 5])]
    spoken = transcript(tokens, vocabulary, frame_s=0.5, duration_s=4.25)
    assert [(word.text, word.start_s, word.end_s) for word in spoken.words] == [
        ("abc", 0.5, 2.0),
        ("c", 2.5, 3.5),
        ("de", 3.0, 4.25),
        ("f", 3.5, 4.25),
    ]
    assert [len(word.tokens) for word in spoken.words] == [2, 1, 2, 1]
    assert spoken.text == "abc c de f"
    assert "".join(character.text for character in spoken.characters) == "abccdef"


def test_segments_end_at_pauses_and_where_they_are_full() -> None:
    def word(at: int) -> list[Token]:
        return [Token(2, at, at, 0.0), Token(1, at + 1, at + 1, 0.0)]

    starts = [0, 5, 10, 30, *range(35, 135, 5)]
    spoken = transcript(
        [token for at in starts for token in word(at)], VOCABULARY, frame_s=0.1, duration_s=20
    )
    sizes = [len(segment.text.split()) for segment in spoken.segments()]
    assert sizes == [3, 14, 7]
    long = [Token(2, at, at, 0.0) for at in range(0, 160, 2)]
    crowded = transcript([*long, *word(162), *word(170)], VOCABULARY, 0.01, 2)
    assert [len(segment.text.split()) for segment in crowded.segments()] == [2]
    assert transcript([], VOCABULARY, 0.1, 1).segments() == []
