"""Text as it grows, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from serving.text import Tokenizer

_SHORT = 6
_LONG = 16
"""A window longer than this is cut to the shorter size."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MOST_HELD = 3
"""No more bytes than this can be missing a fourth, and each is shown as a replacement."""


class TextStream:
    """The parts, joined, are exactly what the tokenizer makes of all tokens at once, or of those
    before a stop string. Where the text continues a `prompt`, they are what the tokens add to it.

    Decodes only the last few tokens for each new one: they fix what the new one adds.
    """

    __slots__ = ("_limit", "_shown", "_stops", "_tokenizer", "_window", "stopped")

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), prompt: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._window = [token for token in prompt[-_LONG:] if token not in tokenizer.special]
        self._limit = _LONG
        text = tokenizer.decode(self._window) if self._window else ""
        self._shown = len(text) - _held(text)
        """How much of the window's text was passed on."""
        self._stops = StopStrings(stop) if stop else None
        self.stopped = False
        """A stop string came: nothing will follow."""

    def push(self, tokens: Iterable[int]) -> str:
        """The text that is certain now: no half characters, and nothing that may begin a stop
        string."""
        if self.stopped:
            return ""
        special = self._tokenizer.special
        window = self._window
        window += [token for token in tokens if token not in special]
        if not window or window[-1] in self._tokenizer.unsettled:
            return ""
        text = self._tokenizer.decode(window)
        return self._until_stop(self._grown(text, len(text) - _held(text)))

    def finish(self) -> str:
        """The rest, when no token follows."""
        if self.stopped:
            return ""
        text = self._tokenizer.decode(self._window)
        rest = self._until_stop(text[self._shown :])
        if self._stops is not None and not self.stopped:
            rest += self._stops.held
        self.stopped = True
        return rest

    def _grown(self, text: str, certain: int) -> str:
        grown = text[self._shown : certain]
        self._shown = max(self._shown, certain)
        if len(self._window) > self._limit:
            self._shorten(text)
        return grown

    def _shorten(self, text: str) -> None:
        """Forget the window's first tokens, if the others end their text in the same way."""
        window = self._window[-_SHORT:]
        short = self._tokenizer.decode(window)
        # More than the longest character, so what the cut may have broken lies before it.
        if len(short) > _MOST_HELD + 1 and text.endswith(short[-_MOST_HELD - 1 :]):
            self._shown += len(short) - len(text)
            self._window = window
            self._limit = _LONG
        else:
            self._limit *= 2

    def _until_stop(self, text: str) -> str:
        if self._stops is None:
            return text
        text = self._stops.push(text)
        self.stopped = self._stops.found
        return text


class StopStrings:
    """Lets text through up to the first stop string to be complete."""

    __slots__ = ("_beginnings", "_stops", "found", "held")

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._beginnings: dict[str, list[str]] = {}
        """By their last character, the longest first."""
        beginnings = {stop[:size] for stop in stops for size in range(1, len(stop))}
        for beginning in sorted(beginnings, key=len, reverse=True):
            self._beginnings.setdefault(beginning[-1], []).append(beginning)
        self.held = ""
        """May be the beginning of a stop string."""
        self.found = False

    def push(self, text: str) -> str:
        """What of the text so far can be told; after `found`, that was all."""
        if not text:
            return ""
        text = self.held + text
        # The first to end, and of these the longest, so that it does not matter how text is cut.
        ends = [
            (start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0
        ]
        if ends:
            self.found = True
            self.held = ""
            return text[: min(ends)[1]]
        self.held = next(filter(text.endswith, self._beginnings.get(text[-1], ())), "")
        return text[: len(text) - len(self.held)]


def _held(text: str) -> int:
    """How many characters at the end may still change."""
    tail = text[-_MOST_HELD:]
    return len(tail) - len(tail.rstrip(_REPLACEMENT))
