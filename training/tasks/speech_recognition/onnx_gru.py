"""GRUs in both directions as ONNX has them: one operator, which knows where each row ends.

The exporter writes a GRU whose number of frames is an input's; ours follows from the number of
samples, and it fails. So the operator is written by hand, from the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.tasks.speech_recognition.middle import BothWays


class OnnxBothWays(nn.Module):
    """Takes the place of `BothWays` while it is exported; it cannot be computed with."""

    def __init__(self, middle: BothWays):
        super().__init__()
        self.width = middle.width
        self.layers = nn.ModuleList(
            _OnnxLayer(onwards, back)
            for onwards, back in zip(middle.forwards, middle.backwards, strict=True)
        )

    def forward(self, framed: Tensor, frames: Tensor) -> Tensor:
        """[batch, frame, width] and [batch] to [batch, frame, 2 × hidden]."""
        lengths = frames.to(torch.int32)
        for layer in self.layers:
            framed = layer(framed, lengths)
        return framed


class _OnnxLayer(nn.Module):
    weights: Tensor
    recurrence: Tensor
    biases: Tensor

    def __init__(self, *directions: nn.Module):
        super().__init__()
        for name, parts in (
            ("weights", ["weight_ih_l0"]),
            ("recurrence", ["weight_hh_l0"]),
            ("biases", ["bias_ih_l0", "bias_hh_l0"]),
        ):
            tensors = [
                torch.cat([_reordered(gru.get_parameter(part)) for part in parts])
                for gru in directions
            ]
            self.register_buffer(name, torch.stack(tensors))

    def forward(self, framed: Tensor, lengths: Tensor) -> Tensor:
        hidden = self.recurrence.shape[2]
        batch, frames, _ = framed.shape
        both = torch.onnx.ops.symbolic(
            "GRU",
            (framed.transpose(0, 1), self.weights, self.recurrence, self.biases, lengths),
            # torch multiplies by the reset gate after the product, and so does linear_before_reset.
            {"direction": "bidirectional", "hidden_size": hidden, "linear_before_reset": 1},
            dtype=torch.float32,
            shape=(frames, 2, batch, hidden),
        )
        return both.permute(2, 0, 1, 3).flatten(2)


def _reordered(tensor: Tensor) -> Tensor:
    """torch has the gates reset, update, new; ONNX has update, reset, new."""
    reset, update, new = tensor.detach().chunk(3)
    return torch.cat([update, reset, new])
