"""From tokens to what people read: words, and segments of words, with their times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from serving.speech.ctc import Token

PAUSE_S = 0.8
"""Silence that ends a segment."""
MAX_SEGMENT_S = 7.0
MAX_SEGMENT_CHARACTERS = 84
"""Two lines of 42 and seven seconds are what a viewer of subtitles is asked to read at once."""


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of text, the seconds at which it begins and ends, and the tokens that spell it."""

    text: str
    start_s: float
    end_s: float
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """What is read at once: a text, the seconds at which it begins and ends, and, where a model
    tells its certainty of each, the tokens that spell it."""

    text: str
    start_s: float
    end_s: float
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class SegmentedTranscript:
    """What a recording of `duration_s` seconds says, by a model that tells no times of words.

    The texts of `parts` have the spaces between them, and `language` is the one that was heard.
    """

    parts: tuple[Segment, ...]
    duration_s: float
    language: str | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts).strip()

    def segments(self) -> list[Segment]:
        return [replace(part, text=part.text.strip()) for part in self.parts]


@dataclass(frozen=True, slots=True)
class Transcript:
    """What a recording of `duration_s` seconds says."""

    words: tuple[Word, ...]
    characters: tuple[Word, ...]
    """The same without the spaces between the words."""
    duration_s: float

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    def segments(self) -> list[Segment]:
        """The words in groups, which end at pauses or where they would be too long to read."""
        segments: list[list[Word]] = []
        for word in self.words:
            if not segments or not _continues(segments[-1], word):
                segments.append([])
            segments[-1].append(word)
        return [
            Segment(
                " ".join(word.text for word in words),
                words[0].start_s,
                words[-1].end_s,
                tuple(token for word in words for token in word.tokens),
            )
            for words in segments
        ]


def transcript(
    tokens: Iterable[Token], vocabulary: Sequence[str], frame_s: float, duration_s: float
) -> Transcript:
    """Spell tokens out; a frame lasts `frame_s` seconds, the recording `duration_s`."""
    characters: list[Word] = []
    words: list[list[Word]] = []
    within = False
    for token, character in spelt(tokens, vocabulary):
        if character.isspace():
            within = False
            continue
        start_s = min(token.first * frame_s, duration_s)
        end_s = min((token.last + 1) * frame_s, duration_s)
        characters.append(Word(character, start_s, end_s, (token,)))
        if not within:
            words.append([])
        words[-1].append(characters[-1])
        within = True
    return Transcript(tuple(map(_word, words)), tuple(characters), duration_s)


def spelt(tokens: Iterable[Token], vocabulary: Sequence[str]) -> Iterator[tuple[Token, str]]:
    """The characters of tokens, each with its token."""
    return ((token, character) for token in tokens for character in vocabulary[token.id])


def _word(characters: Sequence[Word]) -> Word:
    # A token of several characters counts once.
    tokens = tuple(dict.fromkeys(token for word in characters for token in word.tokens))
    text = "".join(word.text for word in characters)
    return Word(text, characters[0].start_s, characters[-1].end_s, tokens)


def _continues(segment: Sequence[Word], word: Word) -> bool:
    return (
        word.start_s - segment[-1].end_s < PAUSE_S
        and word.end_s - segment[0].start_s <= MAX_SEGMENT_S
        and sum(len(before.text) + 1 for before in segment) + len(word.text)
        <= MAX_SEGMENT_CHARACTERS
    )
