"""CLIP's tokenizer, as serving reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CLIPTextModel, CLIPTokenizer

from serving.text.hugging_face import TOKENIZER_FILE
from training.errors import CheckpointError
from training.pipelines.index import TOKENIZER, Index

_VOCABULARIES = (("vocab.json", "merges.txt"), (TOKENIZER_FILE,))


def load_tokenizer(index: Index, encoder: CLIPTextModel) -> CLIPTokenizer:
    """Raises `CheckpointError` for one that is unusable with this encoder."""
    directory = index.directory / TOKENIZER
    if not any(all((directory / name).exists() for name in names) for names in _VOCABULARIES):
        missing = next(name for name in _VOCABULARIES[0] if not (directory / name).exists())
        raise CheckpointError(f"{directory} has no {missing}")
    try:
        # transformers does not annotate it.
        tokenizer: Any = CLIPTokenizer.from_pretrained(directory, local_files_only=True)
        largest = max(tokenizer.get_vocab().values())
    except Exception as error:  # a path of its own for every mistake
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{directory}: transformers cannot load it: {reason}") from error
    for problem, found, limit in (
        ("token", largest, encoder.config.vocab_size - 1),
        ("model_max_length", tokenizer.model_max_length, encoder.config.max_position_embeddings),
    ):
        if found > limit:
            raise CheckpointError(
                f"{directory}: {problem} {found} is more than the text encoder's largest, {limit}"
            )
    if tokenizer.pad_token_id is None or tokenizer.padding_side != "right":
        raise CheckpointError(
            f"{directory}: pad_token and padding_side are {tokenizer.pad_token!r} and"
            f" {tokenizer.padding_side!r}: a prompt is padded at its end"
        )
    loaded: CLIPTokenizer = tokenizer
    return loaded


def save_tokenizer(tokenizer: CLIPTokenizer, destination: Path) -> None:
    """As one file without what decodes: prompts are only encoded."""
    # transformers does not annotate it.
    fast: Any = tokenizer
    parts = json.loads(fast.backend_tokenizer.to_str())
    parts["decoder"] = None
    (destination / TOKENIZER_FILE).write_text(
        json.dumps(parts, ensure_ascii=False), encoding="utf-8"
    )
