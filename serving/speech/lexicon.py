"""A recogniser's own words: the most probable path of all that spell nothing else.

Viterbi's algorithm over a tree of all words, spelt by CTC's states (a blank may stand between two
characters, and must where they are alike), with the gap between words as the only way from one to
the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from serving.speech.ctc import GreedySearch, LogProbs, Token

BEAM = 5.0
"""Nats by which a path may be less probable than the best before it is given up."""

_LEAST = -1e4
"""No log-probability counts for less, so that sums stay numbers."""

_SPACE, _PAUSE, _FIRST = 0, 1, 2
"""The states between words, the space and the blank after it, and the first of a word's."""

_MOST_AT_ONCE = 500
"""Elements up to which NumPy keeps the interpreter to itself. To get it back takes far longer than
the operation where a server is busy."""

Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


def _state(node: int, is_blank: int) -> int:
    """That of a node's character, or of the blank after it."""
    return _FIRST + 2 * node + is_blank


def _node(state: int) -> tuple[int, int]:
    """The node of a word's state, and whether it is the blank."""
    return divmod(state - _FIRST, 2)


class Lexicon:
    """Words as a tree of characters, which those that begin alike share.

    `worth` says of words by how many nats they are preferred. Upper and lower case are alike, and a
    word is left out that the vocabulary does not have the characters for.
    """

    def __init__(
        self,
        words: Iterable[str],
        vocabulary: Sequence[str],
        blank: int,
        worth: Mapping[str, float] = MappingProxyType({}),
    ):
        """Raises `ValueError` if the vocabulary has no space, or nothing to spell a word with."""
        classes = {text.casefold(): id for id, text in enumerate(vocabulary) if id != blank}
        if " " not in classes:
            raise ValueError("a lexicon needs a vocabulary with a space")
        known = {word.casefold() for word in (*words, *worth)}
        self._words = {word for word in known if word and classes.keys() >= set(word)}
        if not self._words:
            raise ValueError("a lexicon needs a word that the vocabulary can spell")
        self._vocabulary = vocabulary
        self.blank, self.space = blank, classes[" "]
        self.has_favourites = bool(worth)
        # A node for each beginning of a word; in this order a branch is a range.
        beginnings = sorted({word[:end] for word in self._words for end in range(1, len(word) + 1)})
        node = {beginning: at for at, beginning in enumerate(beginnings)}
        hope = np.zeros(len(beginnings))
        for word in self._words & worth.keys():
            for end in range(1, len(word) + 1):
                hope[node[word[:end]]] = max(hope[node[word[:end]]], worth[word])
        self.classes: Places = np.array([classes[each[-1]] for each in beginnings], np.intp)
        """Of the vocabulary, by node; so are the next four."""
        self.hope: Numbers = hope
        """What a path has earned ahead of its word's end."""
        self.parents: Places = np.array([node.get(each[:-1], -1) for each in beginnings], np.intp)
        """-1 for a word's first character."""
        # A favourite earns as it begins, and what turns out to be another word gives it back.
        self.gain: Numbers = hope - np.where(self.parents < 0, 0.0, hope[self.parents])
        alike = self.classes == self.classes[self.parents]
        self.skip: Numbers = np.where(alike | (self.parents < 0), -np.inf, 0.0)
        """-inf where a character may not follow its parent's without a blank."""
        self.branches = [self._branch(*span) for span in _spans(beginnings)]
        whole = sorted(self._words)
        self.ends: Places = np.array([node[word] for word in whole], np.intp)
        """The nodes at which a word may end; it then gains `parting`."""
        self.parting: Numbers = np.array([worth.get(word, 0.0) for word in whole])
        self.parting -= hope[self.ends]

    def class_of(self, state: int) -> int:
        """What a state hears."""
        if state == _SPACE:
            return self.space
        node, is_blank = _node(state)
        return self.blank if state == _PAUSE or is_blank else int(self.classes[node])

    def spells(self, tokens: Iterable[Token]) -> bool:
        """Whether tokens say nothing but these words."""
        text = "".join(self._vocabulary[token.id] for token in tokens)
        return self._words.issuperset(text.casefold().split())

    def _branch(self, start: int, stop: int) -> _Branch:
        span = slice(start, stop)
        parents = self.parents[span]
        return _Branch(
            span,
            np.maximum(parents - start, 0),
            np.flatnonzero(parents < 0),
            self.classes[span],
            self.gain[span],
            self.skip[span],
        )


@dataclass(frozen=True, slots=True)
class _Branch:
    """All words with some first characters: nodes that only the gap has in common with others."""

    nodes: slice
    parents: Places
    """Counted from the branch's first node; of `firsts`, any."""
    firsts: Places
    classes: Places
    gain: Numbers
    skip: Numbers


def _spans(beginnings: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Ranges of nodes: as many first characters as there may be at once."""
    start = stop = 0
    for _, branch in groupby(beginnings, key=lambda beginning: beginning[0]):
        size = len(list(branch))
        if stop > start and stop + size - start > _MOST_AT_ONCE:
            yield start, stop
            start = stop
        stop += size
    if stop > start:
        yield start, stop


@dataclass(slots=True)
class _Scores:
    """How probable the best path to each state is."""

    space: float
    pause: float
    characters: Numbers
    """By node, and so are the `blanks` after them."""
    blanks: Numbers

    def get(self, state: int) -> float:
        if state < _FIRST:
            return self.space if state == _SPACE else self.pause
        node, is_blank = _node(state)
        return float((self.blanks if is_blank else self.characters)[node])

    def give_up(self, state: int) -> None:
        if state == _SPACE:
            self.space = -np.inf
        elif state == _PAUSE:
            self.pause = -np.inf
        else:
            node, is_blank = _node(state)
            (self.blanks if is_blank else self.characters)[node] = -np.inf

    def alive(self, lexicon: Lexicon, least: float) -> list[int]:
        """The states with as much as `least` or more. The others are given up."""
        states = []
        for state, score in ((_SPACE, self.space), (_PAUSE, self.pause)):
            if score >= least:
                states.append(state)
            else:
                self.give_up(state)
        for branch in lexicon.branches:
            for is_blank, every in enumerate((self.characters, self.blanks)):
                scores = every[branch.nodes]
                scores[scores < least] = -np.inf
                kept = np.flatnonzero(scores >= least) + branch.nodes.start
                states += [_state(node, is_blank) for node in kept.tolist()]
        return states

    def leader(self, lexicon: Lexicon) -> tuple[float, int]:
        """The best score without what is earned ahead, by which all others are measured: who has
        only begun a favourite shall drive nobody out. And its state."""
        ways = [(self.space, _SPACE), (self.pause, _PAUSE)]
        for branch in lexicon.branches:
            for is_blank, every in enumerate((self.characters, self.blanks)):
                sure = every[branch.nodes] - lexicon.hope[branch.nodes]
                at = int(sure.argmax())
                state = _state(branch.nodes.start + at, is_blank)
                ways.append((float(sure[at]), state))
        return max(ways)

    def best_end(self, lexicon: Lexicon) -> tuple[float, int]:
        """Of the paths that may leave a word: the score, what parting gains included, and state."""
        characters = self.characters.take(lexicon.ends) + lexicon.parting
        blanks = self.blanks.take(lexicon.ends) + lexicon.parting
        by_character, by_blank = int(characters.argmax()), int(blanks.argmax())
        if characters[by_character] >= blanks[by_blank]:
            return float(characters[by_character]), _state(int(lexicon.ends[by_character]), 0)
        return float(blanks[by_blank]), _state(int(lexicon.ends[by_blank]), 1)


class LexiconSearch:
    """Follows the most probable path through a lexicon's words.

    Where text is asked for that is certain, and every twice `horizon` frames, paths are given up
    that are less probable by more than `BEAM`; and those that differ from the best in what was said
    more than `horizon` frames ago, so that the closest call of a long recording does not stay open
    until its end.
    """

    def __init__(self, lexicon: Lexicon, horizon: int):
        self._lexicon = lexicon
        self._horizon = horizon
        self._pending: list[LogProbs] = []
        nodes = len(lexicon.classes)
        unreached = (np.full(nodes, -np.inf) for _ in range(2))
        self._scores = _Scores(-np.inf, 0.0, *unreached)
        self._open: list[_Frame] = []
        """Frames whose state is not settled."""
        self._settled = _Spelling(lexicon)

    def push(self, log_probs: LogProbs) -> None:
        self._pending.append(log_probs)

    def best(self, start: int = 0) -> list[Token]:
        if self._open or self._settled.frames or self._lexicon.has_favourites:
            return self._found(start)
        greedy = GreedySearch(self._lexicon.blank)
        for log_probs in self._pending:
            greedy.push(log_probs)
        tokens = greedy.best()
        # If it spells words only, no path is more probable.
        return (tokens if self._lexicon.spells(tokens) else self._mended(tokens))[start:]

    def _found(self, start: int) -> list[Token]:
        self._advance()
        kept = min(start, len(self._settled.tokens))
        spelling = self._settled.copy(kept)
        self._spell(self._open, self._winner(), spelling)
        return spelling.tokens[start - kept :]

    def _mended(self, tokens: Sequence[Token]) -> list[Token]:
        """The greedy path, but for its misspelt words and their neighbours, which are sought anew.

        To search all frames took twice as long, and found the same.
        """
        frames = np.concatenate(self._pending)
        runs = groupby(tokens, key=lambda token: token.id == self._lexicon.space)
        pieces = [(is_space, list(run)) for is_space, run in runs]
        words = [piece for is_space, piece in pieces if not is_space]
        spaces = [piece for is_space, piece in pieces if is_space]
        if not pieces[0][0]:
            spaces.insert(0, [])
        known = [True, *map(self._lexicon.spells, words), True]
        mended: list[Token] = []
        at = 0
        while at < len(words):
            mended += spaces[at]
            if all(known[at : at + 3]):
                mended += words[at]
                at += 1
                continue
            start = spaces[at][-1].last + 1 if spaces[at] else 0
            while at < len(words) and not all(known[at : at + 3]):
                at += 1
            stop = spaces[at][0].first if at < len(words) else len(frames)
            search = LexiconSearch(self._lexicon, self._horizon)
            search.push(frames[start:stop])
            mended += [
                replace(token, first=start + token.first, last=start + token.last)
                for token in search._found(0)
            ]
        return mended

    def settled(self) -> int:
        self._advance()
        self._settle()
        return len(self._settled.tokens)

    def _advance(self) -> None:
        """Follow the frames that have come in."""
        for log_probs in self._pending:
            for frame in log_probs:
                self._follow(np.maximum(frame, _LEAST, dtype=np.float64))
                if len(self._open) >= 2 * self._horizon:
                    self._settle()
                    self._agree()
        self._pending.clear()

    def _follow(self, frame: Numbers) -> None:
        lexicon, before = self._lexicon, self._scores
        gap = max(before.space, before.pause)
        characters, blanks = np.empty_like(before.characters), np.empty_like(before.blanks)
        for branch in lexicon.branches:
            stay, blank = before.characters[branch.nodes], before.blanks[branch.nodes]
            come = blank.take(branch.parents)
            skip = stay.take(branch.parents)
            skip += branch.skip
            np.maximum(come, skip, out=come)
            come[branch.firsts] = gap
            come += branch.gain
            np.maximum(come, stay, out=come)
            come += frame.take(branch.classes)
            characters[branch.nodes] = come
            np.maximum(blank, stay, out=come)
            come += frame[lexicon.blank]
            blanks[branch.nodes] = come
        ended, _ = before.best_end(lexicon)
        self._scores = _Scores(
            max(gap, ended) + float(frame[lexicon.space]),
            gap + float(frame[lexicon.blank]),
            characters,
            blanks,
        )
        self._open.append(_Frame(frame, before))

    def _before(self, frame: _Frame, state: int) -> int:
        """The state that the best path to a state of a frame had before it."""
        lexicon, scores = self._lexicon, frame.before
        node, is_blank = _node(state)
        ways = [(scores.get(state), state)]
        if state < _FIRST or (not is_blank and lexicon.parents[node] < 0):
            gain = 0.0 if state < _FIRST else float(lexicon.gain[node])
            ways += [(scores.space + gain, _SPACE), (scores.pause + gain, _PAUSE)]
            if state == _SPACE:
                ways.append(scores.best_end(lexicon))
        elif is_blank:
            ways.append((scores.get(state - 1), state - 1))
        else:
            parent = _state(int(lexicon.parents[node]), 0)
            gain, skip = float(lexicon.gain[node]), float(lexicon.skip[node])
            ways.append((scores.get(parent + 1) + gain, parent + 1))
            ways.append((scores.get(parent) + skip + gain, parent))
        # The first of equals is the state itself.
        return max(ways, key=lambda way: way[0])[1]

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
        scores = self._scores
        ways = [scores.best_end(self._lexicon), (scores.space, _SPACE), (scores.pause, _PAUSE)]
        best, state = max(ways, key=lambda way: way[0])
        return state if best > -np.inf else scores.leader(self._lexicon)[1]

    def _settle(self) -> None:
        """Give up what is far less probable than the best, and keep what all others agree on."""
        best, _ = self._scores.leader(self._lexicon)
        states = set(self._scores.alive(self._lexicon, best - BEAM))
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
        scores = self._scores
        best, leader = scores.leader(self._lexicon)
        states = scores.alive(self._lexicon, best - BEAM)
        then = states
        for frame in reversed(recent):
            then = [self._before(frame, state) for state in then]
        agreed = then[states.index(leader)]
        for state, was in zip(states, then, strict=True):
            if was != agreed:
                scores.give_up(state)
        self._close(len(self._open) - len(recent), agreed)


@dataclass(frozen=True, slots=True)
class _Frame:
    log_probs: Numbers
    before: _Scores


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
        id = self._lexicon.class_of(state)
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
