"""A loaded model's graphs, with the names and axes that serving expects of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from onnx import ModelProto
from torch.export import Dim
from transformers import (
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MarianMTModel,
    WhisperForConditionalGeneration,
)

from training.graphs.attention import NAME, KeysAndValues, attention_of, padded_head
from training.graphs.checkpoint import Model
from training.graphs.modules import (
    EncoderDecoder,
    LanguageModelDecoder,
    MarianEncoder,
    Rotary,
    SourceDecoder,
)
from training.graphs.names import BEST, DECODER_FILE, ENCODER_FILE, LOGITS
from training.graphs.trace import trace

# Sizes to trace with: none is 1, which would be taken for a constant, and no two are the same.
_BATCH, _TOKENS, _SOURCE, _CAPACITY = 2, 3, 5, 7


def to_onnx(model: Model, never: Sequence[int] = ()) -> dict[str, ModelProto]:
    """The graphs by file name; the logits of the tokens in `never` are minus infinity."""
    if isinstance(model, MarianMTModel):
        return {ENCODER_FILE: _marian_encoder(model), DECODER_FILE: source_decoder(model, never)}
    return {DECODER_FILE: _language_model(model, never)}


def cache_shape(model: Model | WhisperForConditionalGeneration) -> tuple[int, int, int]:
    """Layers that have a cache, key-value heads of each, and dimensions of each head."""
    config = model.config
    if isinstance(model, EncoderDecoder):
        heads = config.decoder_attention_heads
        return config.decoder_layers, heads, padded_head(config.d_model // heads)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", config.hidden_size // heads)
    return (
        config.num_hidden_layers,
        getattr(config, "num_key_value_heads", heads),
        padded_head(head_dim),
    )


def _marian_encoder(model: MarianMTModel) -> ModelProto:
    shape = _BATCH, _SOURCE
    axes = {0: Dim("batch"), 1: Dim("source")}
    # The encoder sees all of the source, so its attention is the architecture's own.
    with attention_of(model.config, "eager"):
        return trace(
            MarianEncoder(model),
            {
                "input_ids": torch.zeros(shape, dtype=torch.long),
                "attention_mask": torch.ones(shape, dtype=torch.long),
            },
            ["input_ids", "attention_mask"],
            cache_names("cross", model.config.decoder_layers),
            {"input_ids": axes, "attention_mask": axes},
        )


def source_decoder(model: EncoderDecoder, never: Sequence[int]) -> ModelProto:
    """A step of one token for each row, by a decoder that attends to a source."""
    config = model.config
    layers, heads, head_dim = cache_shape(model)
    batch, capacity, source = Dim("batch"), Dim("capacity"), Dim("source")
    inputs = {
        **_tokens(1),
        "source_lengths": torch.full((_BATCH,), _SOURCE, dtype=torch.int32),
        "past": _caches(layers, heads, _CAPACITY, head_dim),
        "cross": _caches(layers, heads, _SOURCE, head_dim),
        "last": _caches(layers, heads, 1, head_dim),
    }
    with attention_of(config, NAME):
        return trace(
            SourceDecoder(model, never),
            inputs,
            [
                *_TOKENS_OF_ROWS,
                "source_lengths",
                *(name for kind in ("past", "cross", "last") for name in cache_names(kind, layers)),
            ],
            [*_CHOICE, *cache_names("present", layers), *cache_names("present_cross", layers)],
            {
                "input_ids": {0: batch},
                "positions": {0: batch},
                "lengths": {0: batch},
                "source_lengths": {0: batch},
                "past": [({0: batch, 2: capacity},) * 2] * layers,
                "cross": [({0: batch, 2: source},) * 2] * layers,
                "last": [({0: batch},) * 2] * layers,
            },
        )


def _language_model(model: GPT2LMHeadModel | LlamaForCausalLM, never: Sequence[int]) -> ModelProto:
    config = model.config
    layers, heads, head_dim = cache_shape(model)
    batch, tokens, capacity = Dim("batch"), Dim("tokens"), Dim("capacity")
    with attention_of(config, NAME), _steady_rotary(model):
        return trace(
            LanguageModelDecoder(model, never),
            {**_tokens(_TOKENS), "past": _caches(layers, heads, _CAPACITY, head_dim)},
            [*_TOKENS_OF_ROWS, *cache_names("past", layers)],
            [*_CHOICE, *cache_names("present", layers)],
            {
                "input_ids": {0: batch, 1: tokens},
                "positions": {0: batch, 1: tokens},
                "lengths": {0: batch},
                "past": [({0: batch, 2: capacity},) * 2] * layers,
            },
        )


@contextmanager
def _steady_rotary(model: Model) -> Iterator[None]:
    if not isinstance(model, LlamaForCausalLM):
        yield
        return
    original = model.model.rotary_emb
    model.model.rotary_emb = Rotary(original)
    try:
        yield
    finally:
        model.model.rotary_emb = original


_TOKENS_OF_ROWS = ("input_ids", "positions", "lengths")
_CHOICE = (LOGITS, BEST)


def _tokens(tokens: int) -> dict[str, Any]:
    return {
        "input_ids": torch.zeros(_BATCH, tokens, dtype=torch.long),
        "positions": torch.arange(tokens).repeat(_BATCH, 1),
        "lengths": torch.full((_BATCH,), tokens, dtype=torch.int32),
    }


def _caches(layers: int, heads: int, positions: int, head_dim: int) -> list[KeysAndValues]:
    return [
        (
            torch.zeros(_BATCH, heads, positions, head_dim),
            torch.zeros(_BATCH, heads, positions, head_dim),
        )
        for _ in range(layers)
    ]


def cache_names(prefix: str, layers: int) -> list[str]:
    """Of the tensors that hold each layer's keys and values."""
    return [f"{prefix}_{kind}_{layer}" for layer in range(layers) for kind in ("key", "value")]
