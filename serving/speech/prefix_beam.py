"""Prefix beam search for CTC: the most probable text, which the most probable path may not be.

Many paths say the same text. The search keeps the texts, here called prefixes, that are best so
far, each with the sum over all its paths, those that end in a blank apart from those that end in
its last token (Graves, "Supervised Sequence Labelling", 2012, section 7.5; Hannun et al.,
"First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent DNNs",
2014). Beside the sum it keeps each prefix's most probable single path, for the times of its tokens.
"""

from __future__ import annotations

from heapq import nlargest
from math import exp, inf, log1p
from typing import NamedTuple

import numpy as np

from serving.speech.ctc import LogProbs, Token
from serving.speech.hot_words import HotWords, Match


class _Path(NamedTuple):
    """The tokens of one path, the last first."""

    before: _Path | None
    token: Token


class _Score:
    """Log-probabilities of one prefix: sums over its paths, and the best path of either kind."""

    __slots__ = ("best_blank", "best_token", "blank", "path_blank", "path_token", "token")

    def __init__(self) -> None:
        self.blank = self.token = self.best_blank = self.best_token = -inf
        self.path_blank: _Path | None = None
        self.path_token: _Path | None = None

    @property
    def total(self) -> float:
        return _sum(self.blank, self.token)

    @property
    def path(self) -> tuple[float, _Path | None]:
        if self.best_blank >= self.best_token:
            return self.best_blank, self.path_blank
        return self.best_token, self.path_token


class _Prefix:
    """A text as another with one token more. There is one object only for each text."""

    __slots__ = ("alive", "children", "depth", "id", "match", "parent", "score")

    def __init__(self, parent: _Prefix | None, id: int, match: Match | None):
        self.parent = parent
        self.id = id
        self.depth: int = parent.depth + 1 if parent else 0
        self.children: dict[int, _Prefix] = {}
        self.match = match
        self.score = _Score()
        self.alive = False
        """Whether it is in the beam. Others are there for the sake of longer ones."""


class PrefixBeamSearch:
    """Keeps `width` prefixes and one that stands in for the most probable path.

    That one, the guard, goes on by the most probable class of every frame, so the best prefix is
    never less probable than the path that `GreedySearch` follows, however narrow the beam. A token
    is not tried in frames where its log-probability is below `floor`, unless it is the most
    probable. `hot_words` change which prefix is better, not how probable it is.

    The closest call of a long recording would stay open until its end, with every other call made
    twice. So every `horizon` frames, if given, the prefixes are dropped that differ from the best
    in what was said before the last `horizon` frames.
    """

    def __init__(
        self,
        blank: int,
        width: int,
        *,
        hot_words: HotWords | None = None,
        floor: float = -inf,
        horizon: int | None = None,
    ):
        self._blank = blank
        self._width = width
        self._floor = floor
        self._horizon = horizon
        self._depth_then = 0
        self._hot_words = hot_words
        root = _Prefix(None, blank, hot_words.begin() if hot_words else None)
        root.score.blank = root.score.best_blank = 0.0
        root.alive = True
        self._beam = [root]
        self._guard, self._guard_class = root, blank
        self._frames = 0

    def push(self, log_probs: LogProbs) -> None:
        strongest = log_probs.argmax(axis=1)
        for frame, id in zip(log_probs, strongest, strict=True):
            tried = np.flatnonzero(frame >= min(self._floor, frame[id]))
            self._step(frame.tolist(), tried.tolist(), int(id))

    def best(self, start: int = 0) -> list[Token]:
        """The tokens of the best prefix, with the times of its most probable path."""
        leader = max(self._beam, key=_final_rank)
        _, path = leader.score.path
        tokens = []
        for _ in range(leader.depth - start):
            assert path is not None
            tokens.append(path.token)
            path = path.before
        return tokens[::-1]

    def prefixes(self) -> list[tuple[tuple[int, ...], float]]:
        """The texts in the beam as token ids with their log-probabilities, best first."""
        ranked = sorted(self._beam, key=_final_rank, reverse=True)
        return [(_ids(prefix), prefix.score.total) for prefix in ranked]

    def settled(self) -> int:
        common = self._beam[0]
        for other in self._beam[1:]:
            common = _beginning(common, other.depth)
            other = _beginning(other, common.depth)
            while common is not other:
                assert common.parent is not None
                assert other.parent is not None
                common, other = common.parent, other.parent
        return common.depth

    def _step(self, frame: list[float], tried: list[int], strongest: int) -> None:
        scores: dict[_Prefix, _Score] = {}
        for prefix in self._beam:
            self._stay(prefix, frame, scores)
            self._extend(prefix, frame, tried, scores)
        for prefix in self._beam:
            prefix.alive = False
        for prefix, score in scores.items():
            prefix.score = score
        kept = nlargest(self._width, scores, key=_rank)
        self._move_guard(strongest, kept[0])
        if self._guard not in kept:
            kept.append(self._guard)
        for prefix in kept:
            prefix.alive = True
        for prefix in scores:
            _drop(prefix)
        self._beam = kept
        self._frames += 1
        if self._horizon and self._frames % self._horizon == 0:
            self._settle(kept[0])

    def _stay(self, prefix: _Prefix, frame: list[float], scores: dict[_Prefix, _Score]) -> None:
        """The prefix as it is, one frame later: by a blank, or by its last token once more."""
        now = prefix.score
        best, path = now.path
        then = scores.setdefault(prefix, _Score())
        then.blank = now.total + frame[self._blank]
        then.best_blank, then.path_blank = best + frame[self._blank], path
        if now.path_token is None:
            return
        value = frame[prefix.id]
        then.token = _sum(then.token, now.token + value)
        if now.best_token + value > then.best_token:
            before, token = now.path_token
            strongest = max(token.log_prob, value)
            longer = Token(token.id, token.first, self._frames, strongest)
            then.best_token, then.path_token = now.best_token + value, _Path(before, longer)

    def _extend(
        self, prefix: _Prefix, frame: list[float], tried: list[int], scores: dict[_Prefix, _Score]
    ) -> None:
        """The prefix with each of the tokens that this frame may begin."""
        now = prefix.score
        after_any = (now.total, *now.path)
        # Without a blank between them, two of the same token would be one.
        after_blank = (now.blank, now.best_blank, now.path_blank)
        for id in tried:
            total, best, path = after_blank if id == prefix.id else after_any
            if id == self._blank or total == -inf:
                continue
            value = frame[id]
            then = scores.setdefault(self._child(prefix, id), _Score())
            then.token = _sum(then.token, total + value)
            if best + value > then.best_token:
                token = Token(id, self._frames, self._frames, value)
                then.best_token, then.path_token = best + value, _Path(path, token)

    def _move_guard(self, strongest: int, leader: _Prefix) -> None:
        """Let the guard follow a frame, or take the leader's place once that is as good.

        The sum over the guard's paths that end in `_guard_class` grows by the greatest probability
        of every frame. What is as great in the leader will grow so, too.
        """
        if strongest not in (self._blank, self._guard_class):
            self._guard = self._child(self._guard, strongest)
        self._guard_class = strongest
        score = self._guard.score
        guarded = score.blank if strongest == self._blank else score.token
        if max(leader.score.blank, leader.score.token) + _bonus(leader) >= guarded + _bonus(
            self._guard
        ):
            in_blank = leader.score.blank >= leader.score.token
            self._guard, self._guard_class = leader, self._blank if in_blank else leader.id

    def _settle(self, leader: _Prefix) -> None:
        """Keep what agrees with the leader in all but its end."""
        agreed = _beginning(leader, min(leader.depth, self._depth_then))
        if _beginning(self._guard, agreed.depth) is agreed:
            dropped = [p for p in self._beam if _beginning(p, agreed.depth) is not agreed]
            self._beam = [p for p in self._beam if _beginning(p, agreed.depth) is agreed]
            for prefix in dropped:
                prefix.alive = False
            for prefix in dropped:
                _drop(prefix)
        self._depth_then = leader.depth

    def _child(self, prefix: _Prefix, id: int) -> _Prefix:
        child = prefix.children.get(id)
        if child is None:
            match = prefix.match
            if self._hot_words is not None and match is not None:
                match = self._hot_words.advance(match, id)
            child = prefix.children[id] = _Prefix(prefix, id, match)
        return child


def _bonus(prefix: _Prefix) -> float:
    return prefix.match.bonus if prefix.match else 0.0


def _rank(prefix: _Prefix) -> float:
    return prefix.score.total + _bonus(prefix)


def _final_rank(prefix: _Prefix) -> float:
    return prefix.score.total + (prefix.match.final_bonus if prefix.match else 0.0)


def _beginning(prefix: _Prefix, depth: int) -> _Prefix:
    """The first `depth` tokens of a prefix, or the prefix if it has no more."""
    while prefix.depth > depth:
        assert prefix.parent is not None
        prefix = prefix.parent
    return prefix


def _ids(prefix: _Prefix) -> tuple[int, ...]:
    ids = []
    while prefix.parent is not None:
        ids.append(prefix.id)
        prefix = prefix.parent
    return tuple(ids[::-1])


def _drop(prefix: _Prefix) -> None:
    """Forget a prefix that has left the beam, and those that were there for its sake only."""
    while prefix.parent is not None and not prefix.alive and not prefix.children:
        prefix.parent.children.pop(prefix.id, None)
        prefix = prefix.parent


def _sum(a: float, b: float) -> float:
    """log(e^a + e^b)"""
    if a < b:
        a, b = b, a
    return a if b == -inf else a + log1p(exp(b - a))
