"""Any tokenizer that Hugging Face's library reads from one tokenizer.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from serving.errors import ModelLoadError
from serving.text.files import read_config, read_object, special_token

TOKENIZER_FILE = "tokenizer.json"

_BYTE = re.compile("<0x[0-9A-F]{2}>")
_STREAMABLE = {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"}
"""Decoders whose text only grows with more tokens."""


class HuggingFace:
    """GPT-2's, Llama's and their like."""

    languages: tuple[str, ...] = ()
    source_language: str | None = None

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos: int | None, has_byte_tokens: bool):
        self._tokenizer = tokenizer
        # These are settings of the training that wrote the file; transformers drops them, too.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.eos = eos
        self.special = frozenset(
            number
            for number, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self.unsettled = frozenset(
            number
            for token, number in tokenizer.get_vocab().items()
            if has_byte_tokens and _BYTE.fullmatch(token)
        )

    @classmethod
    def load(cls, directory: Path) -> HuggingFace:
        """Read the files of a version directory. Raises `ModelLoadError`."""
        path = directory / TOKENIZER_FILE
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more special
            raise ModelLoadError(f"{path}: unusable tokenizer: {error}") from error
        decoders = _decoders(read_object(path).get("decoder"))
        if not decoders <= _STREAMABLE:
            raise ModelLoadError(
                f"{path}: the decoder {min(decoders - _STREAMABLE)!r} is not supported;"
                f" expected any of {', '.join(sorted(_STREAMABLE))}"
            )
        eos = special_token(read_config(directory), "eos_token")
        return cls(
            tokenizer,
            None if eos is None else tokenizer.token_to_id(eos),
            "ByteFallback" in decoders,
        )

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)


def _decoders(decoder: Mapping[str, Any] | None) -> set[str]:
    """The types of a decoder's parts."""
    if decoder is None:
        return set()
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return {str(part["type"]) for part in parts}
