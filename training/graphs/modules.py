"""The modules that are traced. The names of their arguments are the names of the graph's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MarianMTModel,
    WhisperForConditionalGeneration,
)
from transformers.cache_utils import EncoderDecoderCache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from training.graphs.attention import Attended, KeysAndValues, NewTokens, pad_heads
from training.graphs.checkpoint import output_layer

EncoderDecoder = MarianMTModel | WhisperForConditionalGeneration


class LanguageModelDecoder(nn.Module):
    """Some tokens of each row: a step of one, or a whole prompt padded at its end."""

    def __init__(self, model: GPT2LMHeadModel | LlamaForCausalLM, never: Sequence[int]):
        super().__init__()
        self.decoder = model.base_model
        self.head = _Head(model, never)

    def forward(
        self, input_ids: Tensor, positions: Tensor, lengths: Tensor, past: Sequence[KeysAndValues]
    ) -> tuple[Tensor, Tensor, list[KeysAndValues]]:
        attended = Attended(lengths, past)
        hidden = self.decoder(
            input_ids=input_ids,
            position_ids=positions,
            cache=NewTokens(),
            use_cache=True,
            attended=attended,
        ).last_hidden_state
        last = lengths.long() - 1 - positions[:, 0]
        hidden = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
        return *self.head(hidden), attended.present


class Rotary(nn.Module):
    """Llama's rotary embedding, rounded the same however many rows there are.

    Cosines are computed in vectors of up to sixteen numbers and what is left over one by one, with
    another last bit; so each row is made of whole vectors.
    """

    def __init__(self, original: LlamaRotaryEmbedding):
        super().__init__()
        frequencies = original.inv_freq
        self.width = len(frequencies)
        self.scaling: float = original.attention_scaling
        self.frequencies = nn.functional.pad(frequencies, (0, -self.width % 16))

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].float() * self.frequencies

        def both_halves(values: Tensor) -> Tensor:
            half = values[..., : self.width] * self.scaling
            return torch.cat((half, half), dim=-1)

        return both_halves(angles.cos()), both_halves(angles.sin())


class MarianEncoder(nn.Module):
    """Source texts to what the decoder's layers need of them, computed once."""

    def __init__(self, model: MarianMTModel):
        super().__init__()
        self.encoder = model.model.encoder
        self.source = Source(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> list[KeysAndValues]:
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        keys_and_values: list[KeysAndValues] = self.source(encoded.last_hidden_state)
        return keys_and_values


class Source(nn.Module):
    """From what an encoder has made to the keys and values of each layer of the decoder."""

    def __init__(self, model: EncoderDecoder):
        super().__init__()
        attentions: list[Any] = [layer.encoder_attn for layer in model.model.decoder.layers]
        self.keys = nn.ModuleList(attention.k_proj for attention in attentions)
        self.values = nn.ModuleList(attention.v_proj for attention in attentions)
        self.head_dim: int = attentions[0].head_dim

    def forward(self, hidden: Tensor) -> list[KeysAndValues]:
        shape = (*hidden.shape[:2], -1, self.head_dim)

        def heads(project: nn.Module) -> Tensor:
            return pad_heads(project(hidden).view(shape).transpose(1, 2))

        return [
            (heads(keys), heads(values))
            for keys, values in zip(self.keys, self.values, strict=True)
        ]


class SourceDecoder(nn.Module):
    """One token of each row, by a decoder that attends to a source."""

    def __init__(self, model: EncoderDecoder, never: Sequence[int]):
        super().__init__()
        self.decoder = model.model.decoder
        self.head = _Head(model, never)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        lengths: Tensor,
        source_lengths: Tensor,
        past: Sequence[KeysAndValues],
        cross: Sequence[KeysAndValues],
        last: Sequence[KeysAndValues],
    ) -> tuple[Tensor, Tensor, list[KeysAndValues], list[KeysAndValues]]:
        attended = Attended(lengths, past, source_lengths, last)
        hidden = self.decoder(
            input_ids=input_ids,
            # Masks and the encoder's states are asked for and not used: lengths and `cross` are.
            attention_mask=positions,
            encoder_hidden_states=cross[0][0],
            # Whisper's decoder takes positions, Marian's asks its cache for them.
            position_ids=positions,
            cache=_SourceCache(positions, cross),
            use_cache=True,
            attended=attended,
        ).last_hidden_state
        return *self.head(hidden[:, 0]), attended.present, attended.present_cross


class _Head(nn.Module):
    """Logits of hidden states, and the token of the largest, or -1 if they are not finite.

    The logits of the tokens in `never` are minus infinity.
    """

    def __init__(
        self, model: EncoderDecoder | GPT2LMHeadModel | LlamaForCausalLM, never: Sequence[int]
    ):
        super().__init__()
        self.head = output_layer(model)
        self.bias = getattr(model, "final_logits_bias", None)
        if never:
            bias = torch.zeros(1, self.head.out_features) if self.bias is None else self.bias
            self.bias = bias.clone().index_fill(1, torch.tensor(never), -torch.inf)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = self.head(hidden)
        if self.bias is not None:
            logits = logits + self.bias
        best, largest = _argmax(logits)
        # ONNX leaves open what the largest of some numbers is of which one is NaN.
        is_finite = torch.isfinite(largest + 0 * hidden.sum(1))
        return logits, torch.where(is_finite, best, -1)


def _argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Where the largest of each row is, the first of equals, and what it is.

    By blocks, of which only the best is searched: ONNX Runtime finds a maximum three times as fast
    as its place.
    """
    size = logits.shape[1]
    blocks = next((count for count in range(32, 15, -1) if size % count == 0), 24)
    missing = -size % blocks
    if missing:
        logits = nn.functional.pad(logits, (0, missing), value=-torch.inf)
    width = logits.shape[1] // blocks
    in_blocks = logits.view(-1, blocks, width)
    largest = in_blocks.amax(2)
    block = largest.argmax(1, keepdim=True)
    found = in_blocks.gather(1, block[:, :, None].expand(-1, 1, width)).squeeze(1)
    return block.squeeze(1) * width + found.argmax(1), largest.amax(1)


class _SourceCache(EncoderDecoderCache):
    """Holds every layer's keys and values of the source text."""

    def __init__(self, positions: Tensor, cross: Sequence[KeysAndValues]):
        self.self_attention_cache: Any = NewTokens()
        self.cross_attention_cache: Any = SimpleNamespace(
            layers=[SimpleNamespace(keys=keys, values=values) for keys, values in cross]
        )
        self.is_updated = dict.fromkeys(range(len(cross)), True)
        self._positions = positions

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """What the decoder adds to 0, 1, … to make the tokens' positions."""
        return self._positions - torch.arange(self._positions.shape[1])
