"""The graphs of a pipeline; serving/diffusion/settings.py says what their inputs are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.export import Dim
from transformers import CLIPTextModel

from serving.diffusion.settings import Sample
from training.graphs.trace import trace
from training.pipelines.components import config_of, is_conditional

SAMPLE, TIMESTEP, CLASS_LABELS = "sample", "timestep", "class_labels"
MODEL_OUTPUT = "model_output"
INPUT_IDS, HIDDEN_STATES = "input_ids", "encoder_hidden_states"
LATENTS, IMAGE = "latents", "image"


class Unconditional(nn.Module):
    """What is traced; its arguments' names are those of the graph's inputs. So are the others'."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        predicted: Tensor = self.unet(sample, timestep, return_dict=False)[0]
        return predicted


class OfClass(nn.Module):
    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        predicted: Tensor = self.unet(sample, timestep, class_labels, return_dict=False)[0]
        return predicted


class OfText(nn.Module):
    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        predicted: Tensor = self.unet(
            sample, timestep, encoder_hidden_states=encoder_hidden_states, return_dict=False
        )[0]
        return predicted


class TextEncoder(nn.Module):
    def __init__(self, encoder: CLIPTextModel):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(input_ids=input_ids).last_hidden_state
        return hidden


class ImageDecoder(nn.Module):
    """From latents that were divided by the scaling factor."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        # Its own methods are not known to be there.
        self.vae: Any = vae

    def forward(self, latents: Tensor) -> Tensor:
        image: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return image


def condition_of(unet: nn.Module) -> str | None:
    """The name of what a UNet reads besides a sample and its timestep."""
    if is_conditional(unet):
        return HIDDEN_STATES
    return None if config_of(unet).num_class_embeds is None else CLASS_LABELS


def module_of(unet: nn.Module) -> nn.Module:
    """With the arguments by the names that the graph has for them."""
    if is_conditional(unet):
        return OfText(unet)
    return Unconditional(unet) if condition_of(unet) is None else OfClass(unet)


def unet_to_onnx(unet: nn.Module, sample: Sample, tokens: int) -> ModelProto:
    """For any batch size, and any height and width that the sample allows."""
    size = _size(sample)
    inputs = {SAMPLE: torch.zeros(2, sample.channels, *size), TIMESTEP: torch.ones(2)}
    batch = Dim("batch")
    axes: dict[str, dict[int, Any]] = {
        SAMPLE: {0: batch, **_axes(sample.multiple)},
        TIMESTEP: {0: batch},
    }
    condition = condition_of(unet)
    if condition is not None:
        inputs[condition] = (
            torch.zeros(2, dtype=torch.int64)
            if condition == CLASS_LABELS
            else torch.zeros(2, tokens, config_of(unet).cross_attention_dim)
        )
        axes[condition] = {0: batch}
    return trace(module_of(unet), inputs, list(inputs), [MODEL_OUTPUT], axes)


def text_encoder_to_onnx(encoder: CLIPTextModel, tokens: int) -> ModelProto:
    return trace(
        TextEncoder(encoder),
        {INPUT_IDS: torch.zeros(2, tokens, dtype=torch.int64)},
        [INPUT_IDS],
        [HIDDEN_STATES],
        {INPUT_IDS: {0: Dim("batch")}},
    )


def image_decoder_to_onnx(vae: nn.Module, sample: Sample) -> ModelProto:
    """For any batch size, and any height and width, or only the sample's if it has no others."""
    return trace(
        ImageDecoder(vae),
        {LATENTS: torch.zeros(2, sample.channels, *_size(sample))},
        [LATENTS],
        [IMAGE],
        {LATENTS: {0: Dim("batch"), **_axes(sample.multiple and 1)}},
    )


def _size(sample: Sample) -> Sequence[int]:
    """To trace with: no axis is like another, which it could be taken for."""
    if sample.multiple is None:
        return sample.height, sample.width
    return 2 * sample.multiple, 3 * sample.multiple


def _axes(multiple: int | None) -> dict[int, Any]:
    """Of height and width that may vary."""
    if multiple is None:
        return {}
    return {
        axis: Dim(name, min=1) if multiple == 1 else multiple * Dim(name, min=1)
        for axis, name in ((2, "height"), (3, "width"))
    }
