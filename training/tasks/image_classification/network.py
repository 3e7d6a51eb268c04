"""A small convolutional classifier: from 8×8 greyscale digits to 64×64 colour photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

from training import durable
from training.checkpoint import CONFIG_FILE, WEIGHTS_FILE, Weights
from training.record import Record

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class ImageClassifierConfig(Record):
    """Everything needed to build the network again; saved as the checkpoint's config.json."""

    channels: int
    height: int
    width: int
    classes: int
    mean: tuple[float, ...]
    """Per channel, of pixels in 0 to 1, over the training part."""
    std: tuple[float, ...]
    widths: tuple[int, ...]
    """Feature maps of each stage; between two stages the picture's sides are halved."""
    dropout: Fraction


class ImageClassifier(nn.Module):
    """Stages of two convolutions each, averaged over the picture, then one linear layer.

    Averaging, rather than flattening, keeps the classifier the same for every picture size.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, config: ImageClassifierConfig):
        super().__init__()
        self.config = config
        mean = torch.tensor(config.mean).view(-1, 1, 1)
        std = torch.tensor(config.std).view(-1, 1, 1)
        # (pixel / 255 - mean) / std as one multiplication and one addition. The numbers live in
        # the config, so they are not weights.
        self.register_buffer("scale", 1.0 / (255.0 * std), persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)
        stages: list[nn.Module] = []
        channels = config.channels
        for index, width in enumerate(config.widths):
            if index:
                stages.append(nn.MaxPool2d(2))
            stages += [_convolution(channels, width), _convolution(width, width)]
            channels = width
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(channels, config.classes)

    def forward(self, image: Tensor) -> Tensor:
        """From pixels [batch, channel, row, column], 0 to 255, to logits [batch, class].

        Serving sends uint8; augmentation sends the same range as float32.
        """
        features: Tensor = self.stages(image.float() * self.scale + self.offset)
        logits: Tensor = self.classify(self.dropout(features.mean(dim=(2, 3))))
        return logits


def save_model(directory: Path, config: ImageClassifierConfig, weights: Weights) -> None:
    directory.mkdir(exist_ok=True)
    config.save(directory / CONFIG_FILE)
    durable.write(directory / WEIGHTS_FILE, safetensors.torch.save(weights))


def load_model(directory: Path) -> ImageClassifier:
    """Build the network of a checkpoint, in evaluation mode."""
    model = ImageClassifier(ImageClassifierConfig.load(directory / CONFIG_FILE))
    model.load_state_dict(safetensors.torch.load_file(directory / WEIGHTS_FILE))
    return model.eval()


def _convolution(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
