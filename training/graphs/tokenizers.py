"""Enough of a checkpoint's tokenizer to check it and to make prompts of real text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer

from training.errors import CheckpointError
from training.graphs.checkpoint import Model

Encode = Callable[[str], list[int]]

_END, _UNKNOWN = "</s>", "<unk>"


def read_tokenizer(checkpoint: Path, model: Model) -> Encode:
    """From text to the tokens that the model reads.

    Raises `CheckpointError` when a file is unusable or has tokens that the model does not.
    """
    if model.config.is_encoder_decoder:
        return _marian(checkpoint, model.config.vocab_size)
    path = checkpoint / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    # The library raises bare exceptions.
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    _check(path, tokenizer.get_vocab().values(), model.config.vocab_size)
    return lambda text: list(tokenizer.encode(text).ids)


def _marian(checkpoint: Path, tokens: int) -> Encode:
    if (checkpoint / "target_vocab.json").exists():
        raise CheckpointError(
            f"{checkpoint / 'target_vocab.json'}: the target language has a vocabulary of its own,"
            " and vocab.json has to be that of both"
        )
    path = checkpoint / "vocab.json"
    try:
        vocabulary: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        end, unknown = vocabulary[_END], vocabulary[_UNKNOWN]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"{path} has no token {error.args[0]}") from error
    _check(path, vocabulary.values(), tokens)
    source, _ = (_pieces(checkpoint / name) for name in ("source.spm", "target.spm"))

    def encode(text: str) -> list[int]:
        pieces: list[str] = source.encode(text, out_type=str)
        return [*(vocabulary.get(piece, unknown) for piece in pieces), end]

    return encode


def _pieces(path: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no sentencepiece model") from error


def _check(path: Path, found: Iterable[int], tokens: int) -> None:
    largest = max(found, default=-1)
    if largest >= tokens:
        raise CheckpointError(f"{path} has token {largest}, and the model has {tokens} tokens")
