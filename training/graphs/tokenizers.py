"""A checkpoint's tokenizer, read as serving will read it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer as HuggingFaceTokenizer
from transformers import MarianMTModel, WhisperForConditionalGeneration

from serving.text import Tokenizer, load_tokenizer
from training.errors import CheckpointError
from training.graphs.checkpoint import Model


def read_tokenizer(checkpoint: Path, model: Model | WhisperForConditionalGeneration) -> Tokenizer:
    """Raises `CheckpointError` or `ModelLoadError` for one that is unusable with this model."""
    separate = checkpoint / "target_vocab.json"
    if separate.exists():
        raise CheckpointError(
            f"{separate}: the target language has a vocabulary of its own, and vocab.json has to"
            " be that of both"
        )
    tokenizer = load_tokenizer(checkpoint)
    if isinstance(model, MarianMTModel):
        path = checkpoint / "vocab.json"
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
    else:
        path = checkpoint / "tokenizer.json"
        vocabulary = HuggingFaceTokenizer.from_file(str(path)).get_vocab()
    largest, tokens = max(vocabulary.values()), model.config.vocab_size
    if largest >= tokens:
        raise CheckpointError(f"{path} has token {largest}, and the model has {tokens} tokens")
    return tokenizer
