"""Attention over caches that the host owns, each row to its own length.

ONNX Runtime's operator GroupQueryAttention
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md) writes the new keys
and values into the cache at each row's own length and attends to as many as the row has. Bound to
the same buffers as its inputs, its outputs are the cache, updated in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.cache_utils import Cache

NAME = "slipway_cached"
"""Under which `transformers` finds `attend`. It has no masks: the operator needs none."""

_MULTIPLE = 8
"""Of which the operator wants the dimensions of a head."""

KeysAndValues = tuple[Tensor, Tensor]
"""Two of [batch, key-value head, position, dimension], the dimensions padded by `pad_heads`."""


def padded_head(head_dim: int) -> int:
    return -(-head_dim // _MULTIPLE) * _MULTIPLE


def pad_heads(states: Tensor) -> Tensor:
    """Zeros in keys and queries change no product, and in values none that is read."""
    missing = padded_head(states.shape[-1]) - states.shape[-1]
    return nn.functional.pad(states, (0, missing)) if missing else states


@dataclass
class Attended:
    """The caches of one run of a decoder, and what they have become, layer by layer."""

    lengths: Tensor
    """INT32 [batch]: positions of each row that are cached after this run."""
    past: Sequence[KeysAndValues]
    source_lengths: Tensor | None = None
    """INT32 [batch]: positions of each row's source text, for cross attention."""
    last: Sequence[KeysAndValues] = ()
    """The keys and values of the source's last position: [batch, head, 1, dimension]."""
    present: list[KeysAndValues] = field(default_factory=list)
    present_cross: list[KeysAndValues] = field(default_factory=list)

    def to_itself(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        attended, *present = _group_query_attention(
            pad_heads(query),
            pad_heads(key),
            pad_heads(value),
            self.past[layer],
            self.lengths,
            scale,
        )
        self.present.append((present[0], present[1]))
        return attended

    def to_source(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Cross attention of one token per row.

        The operator always writes one position: it is given the last one again, as it is.
        """
        assert self.source_lengths is not None, "only a decoder with an encoder attends across"
        attended, *present = _group_query_attention(
            pad_heads(query),
            *self.last[len(self.present_cross)],
            (key, value),
            self.source_lengths,
            scale,
        )
        self.present_cross.append((present[0], present[1]))
        return attended


class NewTokens(Cache):
    """The cache that a layer asks for the keys to attend to: only those of this run's tokens."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> KeysAndValues:
        return key_states, value_states


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    attended: Attended,
    **_: Any,
) -> tuple[Tensor, None]:
    """What `transformers` calls for each layer. Returns [batch, token, head, head dimension]."""
    if module.is_causal:
        layer = module.layer_idx
        assert isinstance(layer, int)
        output = attended.to_itself(layer, query, key, value, scaling)
    else:
        output = attended.to_source(query, key, value, scaling)
    head_dim = query.shape[3]
    return output.view(*output.shape[:2], -1, padded_head(head_dim))[..., :head_dim], None


AttentionInterface.register(NAME, attend)


@contextmanager
def attention_of(config: PretrainedConfig, implementation: str) -> Iterator[None]:
    """Let the models of this configuration attend by another function for a while."""
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def _group_query_attention(
    query: Tensor, key: Tensor, value: Tensor, past: KeysAndValues, lengths: Tensor, scale: float
) -> Sequence[Tensor]:
    """[batch, token, head × head dimension], and the cache."""
    total = lengths.max()
    tokens = query.shape[2]
    if tokens != 1:
        # A prompt may be padded to more than the longest of the batch.
        total = total.maximum(torch.full((), tokens, dtype=torch.int32))
    inputs = [tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value)]
    return torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [*inputs, *past, lengths - 1, total],
        attrs={"num_heads": query.shape[1], "kv_num_heads": key.shape[1], "scale": scale},
        dtypes=(torch.float32,) * 3,
        shapes=(inputs[0].shape, past[0].shape, past[1].shape),
        version=1,
    )
