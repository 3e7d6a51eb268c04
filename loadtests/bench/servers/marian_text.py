"""Marian's tokenizer straight from sentencepiece, which is the fastest way to run CTranslate2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

_CODE = re.compile(r"\s*(>>.+?<<)")
_END = "</s>"


class MarianText:
    def __init__(self, checkpoint: Path):
        self._source = sentencepiece.SentencePieceProcessor(
            model_file=str(checkpoint / "source.spm")
        )
        self._target = sentencepiece.SentencePieceProcessor(
            model_file=str(checkpoint / "target.spm")
        )

    def encode(self, text: str) -> list[str]:
        code = _CODE.match(text)
        pieces: list[str] = self._source.encode(text[code.end() :] if code else text, out_type=str)
        return [*([code[1]] if code else []), *pieces, _END]

    def decode(self, pieces: Sequence[str]) -> str:
        text: str = self._target.decode_pieces([piece for piece in pieces if piece != _END])
        return text
