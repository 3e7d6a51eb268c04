"""Words that a caller expects to hear: a search prefers texts that have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Node:
    """A beginning of hot words."""

    children: dict[str, _Node] = field(default_factory=dict)
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """How a text stands to the hot words: what it has earned, and what it may be about to say."""

    kept: float
    begun: tuple[tuple[_Node, float], ...]
    """Beginnings of hot words with which the text ends, and what each is worth so far."""

    @property
    def bonus(self) -> float:
        """In nats, while the text goes on."""
        return self.kept + max((worth for _, worth in self.begun), default=0.0)

    @property
    def final_bonus(self) -> float:
        """In nats, if the text ends here: a hot word only begun is worth nothing."""
        return self.kept + max((worth for node, worth in self.begun if node.ends), default=0.0)


class HotWords:
    """Words and phrases, each of which is worth `weight` nats for every character.

    A word earns as it is spelt, or a narrow beam would have lost it before its end; a word that
    turns out to be another gives back what it earned. Upper and lower case are alike.
    """

    def __init__(self, phrases: Iterable[str], weight: float, vocabulary: Sequence[str]):
        self._root = _Node()
        self._weight = weight
        self._texts = [text.casefold() for text in vocabulary]
        for phrase in phrases:
            node = self._root
            for character in " ".join(phrase.casefold().split()):
                node = node.children.setdefault(character, _Node())
            node.ends = node is not self._root

    def begin(self) -> Match:
        """Of the empty text."""
        return Match(0.0, ((self._root, 0.0),))

    def advance(self, match: Match, id: int) -> Match:
        """Of the text with one token more."""
        for character in self._texts[id]:
            match = self._spelt(match, character)
        return match

    def _spelt(self, match: Match, character: str) -> Match:
        follows = tuple(
            (node.children[character], worth + self._weight)
            for node, worth in match.begun
            if character in node.children
        )
        if not character.isspace():
            return Match(match.kept, follows)
        return Match(match.final_bonus, (*follows, (self._root, 0.0)))
