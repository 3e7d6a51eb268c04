"""Pieces of text, from single bytes up, in the files of GPT-2's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training import durable

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

Tokens = npt.NDArray[np.int64]

END = "<|endoftext|>"
END_ID = 0
"""Ends a text, and begins the next."""

LONGEST_TOKEN = 16
"""Bytes; a text has at least as many tokens as its bytes divided by this."""


def train(texts: Iterable[str], size: int) -> Tokenizer:
    """The same texts make the same vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.token_to_id(END) == END_ID, "special tokens are numbered first"
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """Each text's tokens, between two that say where it ends."""
    return [
        np.array([END_ID, *encoding.ids, END_ID]) for encoding in tokenizer.encode_batch_fast(texts)
    ]


def beginning(tokenizer: Tokenizer, text: str, tokens: int) -> str:
    """About so many tokens of a text, and never half a character."""
    offsets = tokenizer.encode(text[: LONGEST_TOKEN * tokens]).offsets
    return text[: offsets[tokens][0]] if len(offsets) > tokens else text


def load(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / TOKENIZER_FILE))


def save(directory: Path, tokenizer: Tokenizer, longest: int) -> None:
    durable.write(directory / TOKENIZER_FILE, tokenizer.to_str() + "\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
    }
    durable.write(directory / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
