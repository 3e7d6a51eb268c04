"""The layers between the convolutions and the classes: what tells a sound by those around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2EncoderStableLayerNorm


class BothWays(nn.Module):
    """Layers of two GRUs each, one of which reads every row from its own end.

    The rows of a batch end at different frames, which a bidirectional `nn.GRU` does not know of.
    """

    def __init__(self, width: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        widths = [width] + [2 * hidden] * (layers - 1)
        self.forwards = nn.ModuleList(nn.GRU(size, hidden, batch_first=True) for size in widths)
        self.backwards = nn.ModuleList(nn.GRU(size, hidden, batch_first=True) for size in widths)
        self.dropout = nn.Dropout(dropout)
        self.width = 2 * hidden

    def forward(self, framed: Tensor, frames: Tensor) -> Tensor:
        """[batch, frame, width] and [batch] to [batch, frame, 2 × hidden]."""
        places = torch.arange(framed.shape[1], device=framed.device)
        # Its own inverse; padding stays where it is.
        mirrored = torch.where(
            places < frames[:, None], frames[:, None] - 1 - places, places
        ).unsqueeze(2)
        heard = framed
        for number, (onwards, back) in enumerate(zip(self.forwards, self.backwards, strict=True)):
            if number:
                heard = self.dropout(heard)
            after, _ = onwards(heard)
            before, _ = back(_mirror(heard, mirrored))
            heard = torch.cat([after, _mirror(before, mirrored)], dim=2)
        return heard


class Forwards(nn.Module):
    """GRUs one above the other, which know only what came before."""

    def __init__(self, width: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        widths = [width] + [hidden] * (layers - 1)
        self.layers = nn.ModuleList(nn.GRU(size, hidden, batch_first=True) for size in widths)
        self.dropout = nn.Dropout(dropout)
        self.width = hidden

    def forward(self, framed: Tensor, frames: Tensor) -> Tensor:
        """[batch, frame, width] to [batch, frame, hidden]; padding comes after what counts."""
        for number, layer in enumerate(self.layers):
            framed, _ = layer(self.dropout(framed) if number else framed)
        return framed

    def step(self, framed: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk; `states` [batch, layer, hidden] are those before it and, returned, after."""
        # One after the other in memory, for the exporter takes no state with gaps inside.
        before = states.transpose(0, 1).contiguous()
        after = []
        for number, layer in enumerate(self.layers):
            framed, state = layer(framed, before[number : number + 1])
            after.append(state.squeeze(0))
        return framed, torch.stack(after, dim=1)


class SelfAttention(nn.Module):
    """The encoder of wav2vec 2.0 (Baevski et al., 2020), from transformers, on our convolutions."""

    def __init__(self, width: int, hidden: int, layers: int, heads: int, dropout: float):
        super().__init__()
        config = Wav2Vec2Config(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=hidden,
            num_conv_pos_embeddings=31,
            num_conv_pos_embedding_groups=4,
            hidden_dropout=dropout,
            attention_dropout=dropout,
            activation_dropout=dropout,
            layerdrop=0.0,
        )
        config._attn_implementation = "eager"
        self.encoder = Wav2Vec2EncoderStableLayerNorm(config)  # type: ignore[no-untyped-call]
        self.width = width

    def forward(self, framed: Tensor, frames: Tensor) -> Tensor:
        """[batch, frame, width] and [batch] to [batch, frame, width]."""
        places = torch.arange(framed.shape[1], device=framed.device)
        inside = places < frames[:, None]
        # A copy, for the encoder zeroes the padding in place.
        framed = framed.masked_fill(~inside[:, :, None], 0.0)
        heard: Tensor = self.encoder(framed, attention_mask=inside)[0]
        return heard


def _mirror(framed: Tensor, mirrored: Tensor) -> Tensor:
    return framed.gather(1, mirrored.expand(-1, -1, framed.shape[2]))
