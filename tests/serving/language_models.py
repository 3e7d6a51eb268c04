"""Tiny random language models of transformers, and our way to make text with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MarianConfig, MarianMTModel

from serving.steppers.advance import Decoding
from serving.steppers.processors import Scores
from serving.steppers.settings import GenerationSettings

VOCABULARY = 60

TRANSLATOR = GenerationSettings(
    max_length=64,
    max_source=64,
    vocab_size=VOCABULARY,
    decoder_start_token_id=1,
    eos_token_ids=(0,),
    pad_token_id=1,
    suppressed_token_ids=(1,),
)
WRITER = GenerationSettings(
    max_length=64, vocab_size=VOCABULARY, eos_token_ids=(2, 3), pad_token_id=2
)


def tiny_marian(seed: int) -> Any:
    torch.manual_seed(seed)
    config = MarianConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        init_std=0.5,
        pad_token_id=1,
        eos_token_id=0,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
    )
    return MarianMTModel(config).eval()  # type: ignore[no-untyped-call]


def tiny_gpt2(seed: int) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=2,
    )
    return GPT2LMHeadModel(config).eval()  # type: ignore[no-untyped-call]


def logits_of(model: Any, source: Sequence[int]) -> Callable[[list[list[int]]], Scores]:
    """From the decoder's tokens of each row to the logits of the next.

    `source` is what an encoder reads; a decoder-only model has none.
    """

    def logits(rows: list[list[int]]) -> Scores:
        tokens = torch.tensor(rows)
        with torch.no_grad():
            if source:
                encoded = torch.tensor([list(source)] * len(rows))
                output = model(input_ids=encoded, decoder_input_ids=tokens)
            else:
                output = model(input_ids=tokens)
        last: Scores = output.logits[:, -1].float().numpy()
        return last

    return logits


def run(
    decoding: Decoding, prompt: Sequence[int], logits: Callable[[list[list[int]]], Scores]
) -> tuple[list[int], str]:
    """All that a decoding emits, and why it ended; the cache is the rows' tokens."""
    rows = [list(prompt)]
    emitted: list[int] = []
    while True:
        step = np.asarray(logits(rows))
        before = step.copy()
        advance = decoding.advance(step)
        assert (step == before).all()
        emitted += advance.emitted
        if advance.finished:
            assert not advance.tokens
            return emitted, advance.finished
        assert len(advance.tokens) == decoding.rows
        sources = advance.sources or range(decoding.rows)
        rows = [
            [*rows[source], token] for source, token in zip(sources, advance.tokens, strict=True)
        ]


def generate(model: Any, input_ids: Sequence[int], **options: Any) -> list[int]:
    """What transformers makes of it: the new tokens, without those that end a text."""
    inputs = torch.tensor([list(input_ids)])
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), **options)
    tokens: list[int] = output[0].tolist()
    return tokens[1:] if model.config.is_encoder_decoder else tokens[len(input_ids) :]
