"""Pieces of text, from single bytes up, then Whisper's special tokens, then its times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from training import durable

TOKENIZER_FILE = "tokenizer.json"
SECONDS_PER_TIME = 0.02

END, START, NO_TIMES = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"


class Written(NamedTuple):
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    """When each is said, as far as one can tell."""


@dataclass(frozen=True)
class Vocabulary:
    tokenizer: Tokenizer
    end: int
    start: int
    no_times: int
    first_time: int
    """Also how many tokens there are that tell no time."""
    size: int

    def write(self, said: Sequence[tuple[str, float, float]], *, timed: bool) -> Written:
        """A window's text and what is around it; each utterance with its first and last second.

        A piece is taken to be said at a time that is as far through its utterance as its letters.
        """
        first, last = said[0][1], said[-1][2]
        written = [(self.start, first)] if timed else [(self.start, first), (self.no_times, first)]
        for text, start_s, end_s in said:
            pieces = self.tokenizer.encode(f" {text}")
            span = end_s - start_s
            middles = (sum(ends) / 2 / pieces.offsets[-1][1] for ends in pieces.offsets)
            times = (start_s + span * middle for middle in middles)
            spelled = list(zip(pieces.ids, times, strict=True))
            if timed:
                around = (self.time(start_s), start_s), (self.time(end_s), end_s)
                spelled = [around[0], *spelled, around[1]]
            written += spelled
        tokens, seconds = zip(*written, (self.end, last), strict=True)
        return Written(tokens, seconds)

    def time(self, seconds: float) -> int:
        return self.first_time + round(seconds / SECONDS_PER_TIME)

    def read(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without times."""
        text: str = self.tokenizer.decode([token for token in tokens if token < self.first_time])
        return " ".join(text.split())


def train(texts: Iterable[str], pieces: int, seconds: int) -> Vocabulary:
    """The same texts make the same vocabulary; it can tell the times of so many seconds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f" {text}" for text in texts), trainer)
    tokenizer.add_special_tokens([END, START, NO_TIMES])
    times = round(seconds / SECONDS_PER_TIME)
    tokenizer.add_tokens(
        [
            AddedToken(f"<|{time * SECONDS_PER_TIME:.2f}|>", normalized=False)
            for time in range(times + 1)
        ]
    )
    return _of(tokenizer)


def save(directory: Path, vocabulary: Vocabulary) -> None:
    durable.write(directory / TOKENIZER_FILE, vocabulary.tokenizer.to_str() + "\n")


def load(directory: Path) -> Vocabulary:
    return _of(Tokenizer.from_file(str(directory / TOKENIZER_FILE)))


def _of(tokenizer: Tokenizer) -> Vocabulary:
    numbers = tokenizer.get_vocab()
    end, start, no_times, first = (numbers[token] for token in (END, START, NO_TIMES, "<|0.00|>"))
    return Vocabulary(tokenizer, end, start, no_times, first, len(numbers))
