"""Marian's tokenizer: sentencepiece splits a text, vocab.json numbers the pieces.

Follows transformers' `MarianTokenizer`, for models with one vocabulary for both languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from serving.errors import ModelLoadError
from serving.text.files import CONFIG_FILE, read_config, read_object, special_token

SOURCE_FILE = "source.spm"
TARGET_FILE = "target.spm"
VOCABULARY_FILE = "vocab.json"

_SPACE = "▁"
_LANGUAGE = re.compile(r">>(.+)<<", re.DOTALL)


class Marian:
    """A text may begin with its target language as `>>de<<`."""

    unsettled: frozenset[int] = frozenset()

    def __init__(
        self,
        pieces: SentencePieceProcessor,
        vocabulary: Mapping[str, int],
        special: Iterable[str],
        unknown: str,
        eos: str,
        source_language: str | None = None,
    ):
        """`special` tokens must be in the vocabulary, `unknown` and `eos` among them."""
        self._pieces = pieces
        self._vocabulary = vocabulary
        self._tokens = {number: token for token, number in vocabulary.items()}
        self._names = frozenset(special)
        by_length = sorted(self._names, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, by_length)) + ")").split
        self._unknown = vocabulary[unknown]
        self.eos = vocabulary[eos]
        self.special = frozenset(vocabulary[token] for token in self._names)
        self.languages = tuple(
            match[1] for token in vocabulary if (match := _LANGUAGE.fullmatch(token))
        )
        self.source_language = source_language

    @classmethod
    def load(cls, directory: Path) -> Marian:
        """Read the files of a version directory. Raises `ModelLoadError`."""
        config = read_config(directory)
        if config.get("separate_vocabs"):
            raise ModelLoadError(
                f"{directory / CONFIG_FILE}: separate_vocabs is not supported; expected one"
                " vocabulary for both languages"
            )
        path = directory / VOCABULARY_FILE
        vocabulary = read_object(path)
        if not all(type(number) is int and number >= 0 for number in vocabulary.values()):
            raise ModelLoadError(f"{path}: expected a number of 0 or more for each piece")
        unknown = special_token(config, "unk_token", "<unk>") or "<unk>"
        eos = special_token(config, "eos_token", "</s>") or "</s>"
        pad = special_token(config, "pad_token", "<pad>") or "<pad>"
        for token in (unknown, eos, pad):
            if token not in vocabulary:
                raise ModelLoadError(f"{path}: the special token {token!r} is missing")
        language = config.get("source_lang")
        return cls(
            _load_pieces(directory / SOURCE_FILE),
            vocabulary,
            (unknown, eos, pad),
            unknown,
            eos,
            language if isinstance(language, str) else None,
        )

    def encode(self, text: str) -> list[int]:
        find, unknown = self._vocabulary.get, self._unknown
        tokens: list[int] = []
        for part in self._split(text):
            if part in self._names:
                tokens.append(self._vocabulary[part])
            elif part:
                language, rest = _cut_language(part)
                if language:
                    tokens.append(find(language, unknown))
                pieces: list[str] = self._pieces.encode(rest, out_type=str)
                tokens += [find(piece, unknown) for piece in pieces]
        tokens.append(self.eos)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        known, special = self._tokens, self.special
        # With the pieces of the source, as transformers does where the vocabulary is shared.
        text: str = self._pieces.decode_pieces(
            [known[token] for token in tokens if token not in special and token in known]
        )
        return text.replace(_SPACE, " ").strip()


def _cut_language(text: str) -> tuple[str, str]:
    end = text.find("<<")
    if not text.startswith(">>") or end < 0:
        return "", text
    return text[: end + 2], text[end + 2 :]


def _load_pieces(path: Path) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_proto=path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise ModelLoadError(f"{path}: unusable sentencepiece model: {error}") from error
