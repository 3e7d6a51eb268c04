"""A recogniser's own words: the most probable path of all that spell nothing else.

Viterbi's algorithm over a tree of all words, spelt by CTC's states (a blank may stand between two
characters, and must where they are alike), with the gap between words as the only way from one to
the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from serving.speech.ctc import GreedySearch, LogProbs, Token

BEAM = 5.0
"""Nats by which a path may be less probable than the best when text is asked for that is certain:
those beyond are given up."""

_LEAST = -1e4
"""No log-probability counts for less, so that sums stay numbers."""

_SPACE, _PAUSE = 0, 1
"""The states between words: the space, and the blank after it."""


class Lexicon:
    """Words as a tree of characters, which those that begin alike share; each node has two states.

    The first two states are the gap; a node's are its character and the blank after it. `worth`
    says of words by how many nats they are preferred. Upper and lower case are alike, and a word is
    left out that the vocabulary does not have the characters for.
    """

    def __init__(
        self,
        words: Iterable[str],
        vocabulary: Sequence[str],
        blank: int,
        worth: Mapping[str, float] = MappingProxyType({}),
    ):
        """Raises `ValueError` if the vocabulary has no space."""
        classes = {text.casefold(): id for id, text in enumerate(vocabulary) if id != blank}
        if " " not in classes:
            raise ValueError("a lexicon needs a vocabulary with a space")
        known = {word.casefold() for word in (*words, *worth)}
        self._words = {word for word in known if word and classes.keys() >= set(word)}
        self._vocabulary = vocabulary
        self.blank = blank
        self.has_favourites = bool(worth)
        # Each beginning of a word, those that it goes on from first.
        beginnings = sorted({word[:end] for word in self._words for end in range(1, len(word) + 1)})
        state = {beginning: 2 + 2 * at for at, beginning in enumerate(beginnings)}
        hope = dict.fromkeys(beginnings, 0.0)
        for word in self._words & worth.keys():
            for end in range(1, len(word) + 1):
                hope[word[:end]] = max(hope[word[:end]], worth[word])
        labels = [classes[" "], blank]
        blank_before, character_before = [_PAUSE, _SPACE], [_SPACE, _SPACE]
        gain, skip = [0.0, 0.0], [-np.inf, -np.inf]
        for beginning in beginnings:
            before, character = beginning[:-1], beginning[-1]
            labels += [classes[character], blank]
            blank_before += [state[before] + 1 if before else _PAUSE, state[beginning]]
            character_before += [state.get(before, _SPACE), _SPACE]
            # A favourite earns as it begins, and what turns out to be another word gives it back.
            gain += [hope[beginning] - hope.get(before, 0.0), 0.0]
            skip += [gain[-2] if before and before[-1] != character else -np.inf, -np.inf]
        self.labels = np.array(labels, np.intp)
        """The class that each state hears."""
        self.blank_before = np.array(blank_before, np.intp)
        """The state from which each is reached: a character from the blank before it (the first one
        of a word from the gap), a blank from its character. It gains `gain`."""
        self.character_before = np.array(character_before, np.intp)
        """The state from which it is reached past that blank, with `skip`; -inf if it is not."""
        self.gain = np.array(gain, np.float32)
        self.skip = np.array(skip, np.float32)
        self.firsts = np.array([state[each] for each in beginnings if len(each) == 1], np.intp)
        self.is_first = np.isin(np.arange(len(labels)), self.firsts)
        whole = sorted(self._words)
        ends = [state[word] + blank for word in whole for blank in (0, 1)]
        self.ends = np.array(ends, np.intp)
        """The states in which a word may end; it then gains `parting`."""
        parting = [worth.get(word, 0.0) - hope[word] for word in whole for _ in (0, 1)]
        self.parting = np.array(parting, np.float32)

    def spells(self, tokens: Iterable[Token]) -> bool:
        """Whether tokens say nothing but these words."""
        text = "".join(self._vocabulary[token.id] for token in tokens)
        return self._words.issuperset(text.casefold().split())


class LexiconSearch:
    """Follows the most probable path through a lexicon's words.

    Paths are given up that differ from the best in what was said more than `horizon` frames ago,
    so that the closest call of a long recording does not stay open until its end.
    """

    def __init__(self, lexicon: Lexicon, horizon: int):
        self._lexicon = lexicon
        self._horizon = horizon
        self._pending: list[LogProbs] = []
        self._scores = np.full(len(lexicon.labels), -np.inf, np.float32)
        self._scores[_PAUSE] = 0.0
        self._open: list[_Frame] = []
        """Frames whose state is not settled."""
        self._settled = _Spelling(lexicon)

    def push(self, log_probs: LogProbs) -> None:
        self._pending.append(log_probs)

    def best(self, start: int = 0) -> list[Token]:
        if not (self._open or self._settled.frames or self._lexicon.has_favourites):
            greedy = GreedySearch(self._lexicon.blank)
            for log_probs in self._pending:
                greedy.push(log_probs)
            # No path is more probable than this one.
            if self._lexicon.spells(greedy.best()):
                return greedy.best(start)
        self._advance()
        kept = min(start, len(self._settled.tokens))
        spelling = self._settled.copy(kept)
        self._spell(self._open, self._winner(), spelling)
        return spelling.tokens[start - kept :]

    def settled(self) -> int:
        self._advance()
        self._settle()
        return len(self._settled.tokens)

    def _advance(self) -> None:
        """Follow the frames that have come in."""
        for log_probs in self._pending:
            for frame in log_probs:
                self._follow(np.maximum(frame, _LEAST, dtype=np.float32))
                if len(self._open) >= 2 * self._horizon:
                    self._settle()
                    self._agree()
        self._pending.clear()

    def _follow(self, frame: LogProbs) -> None:
        lexicon, stay = self._lexicon, self._scores
        one = stay.take(lexicon.blank_before)
        two = stay.take(lexicon.character_before)
        gap = _PAUSE if stay[_PAUSE] > stay[_SPACE] else _SPACE
        one[lexicon.firsts] = stay[gap]
        one += lexicon.gain
        two += lexicon.skip
        ended = stay.take(lexicon.ends)
        ended += lexicon.parting
        end = int(ended.argmax())
        two[_SPACE] = ended[end]
        reached = (one > stay).view(np.int8)
        scores = np.maximum(stay, one)
        np.copyto(reached, 2, where=two > scores)
        np.maximum(scores, two, out=scores)
        scores += frame.take(lexicon.labels)
        scores -= scores.max()
        self._scores = scores
        self._open.append(_Frame(frame, reached, gap, int(lexicon.ends[end])))

    def _before(self, frame: _Frame, state: int) -> int:
        """The state that a path had before a frame."""
        step = frame.reached[state]
        if step == 0:
            return state
        if step == 2:
            return frame.end if state == _SPACE else int(self._lexicon.character_before[state])
        return (
            frame.gap if self._lexicon.is_first[state] else int(self._lexicon.blank_before[state])
        )

    def _spell(self, frames: Sequence[_Frame], state: int, spelling: _Spelling) -> None:
        """Add the path through some frames at whose end it has `state`."""
        path = []
        for frame in reversed(frames):
            path.append(state)
            state = self._before(frame, state)
        for state, frame in zip(reversed(path), frames, strict=True):
            spelling.add(state, frame.log_probs)

    def _winner(self) -> int:
        """The state in which a text ends best: not within a word, if there is a path to another."""
        ended = self._scores[self._lexicon.ends] + self._lexicon.parting
        values = np.concatenate([self._scores[[_SPACE, _PAUSE]], ended])
        best = int(values.argmax())
        if values[best] == -np.inf:
            return int(self._scores.argmax())
        return best if best < 2 else int(self._lexicon.ends[best - 2])

    def _settle(self) -> None:
        """Give up what is far less probable than the best, and keep what all others agree on."""
        self._scores[self._scores < -BEAM] = -np.inf
        states = set(np.flatnonzero(self._scores > -np.inf).tolist())
        for count in range(len(self._open), 0, -1):
            if len(states) == 1:
                self._close(count, states.pop())
                return
            states = {self._before(self._open[count - 1], state) for state in states}

    def _close(self, count: int, state: int) -> None:
        """Settle the first open frames, of which the last has a path in `state`."""
        self._spell(self._open[:count], state, self._settled)
        self._open = self._open[count:]

    def _agree(self) -> None:
        """Give up paths that differ from the best in all but the last `horizon` frames."""
        recent = self._open[-self._horizon :]
        states = then = np.flatnonzero(self._scores > -np.inf).tolist()
        for frame in reversed(recent):
            then = [self._before(frame, state) for state in then]
        leader = then[states.index(int(self._scores.argmax()))]
        dissenting = [state for state, was in zip(states, then, strict=True) if was != leader]
        self._scores[dissenting] = -np.inf
        self._close(len(self._open) - len(recent), leader)


@dataclass(frozen=True, slots=True)
class _Frame:
    """How paths came into a frame."""

    log_probs: LogProbs
    reached: npt.NDArray[np.int8]
    """How each state was: 0 as before, 1 from the blank before it, 2 past that."""
    gap: int
    """The state from which words begin."""
    end: int
    """The state from which the space does, past the blank of a word."""


class _Spelling:
    """The tokens of a path, as its frames come in."""

    def __init__(self, lexicon: Lexicon):
        self._lexicon = lexicon
        self._state = _PAUSE
        self.tokens: list[Token] = []
        self.frames = 0

    def copy(self, start: int) -> _Spelling:
        """Without the first `start` tokens."""
        other = _Spelling(self._lexicon)
        other._state, other.tokens, other.frames = self._state, self.tokens[start:], self.frames
        return other

    def add(self, state: int, log_probs: LogProbs) -> None:
        id = int(self._lexicon.labels[state])
        if id != self._lexicon.blank:
            value = float(log_probs[id])
            if state != self._state:
                self.tokens.append(Token(id, self.frames, self.frames, value))
            elif self.tokens:
                token = self.tokens[-1]
                strongest = max(token.log_prob, value)
                self.tokens[-1] = replace(token, last=self.frames, log_prob=strongest)
        self._state = state
        self.frames += 1
