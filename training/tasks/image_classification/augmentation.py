"""Random views of a batch of pictures, computed for the whole batch at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.tasks.image_classification.recipe import Augmentation


def augment(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """One random view of each picture.

    Takes uint8 [batch, channel, row, column] and returns float32 of the same shape and range.
    All randomness comes from `generator`, which lives on the images' device.
    """
    views = _move(images.float(), settings, generator)
    per_picture = (len(images), 1, 1, 1)
    contrast = 1.0 + settings.contrast * _uniform(per_picture, generator)
    noise = torch.randn(views.shape, generator=generator, device=views.device)
    return (views * contrast + 255.0 * settings.noise * noise).clamp(0.0, 255.0)


def _move(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Turn, scale and shift."""
    batch, _, height, width = images.shape
    angle = math.radians(settings.rotation_degrees) * _uniform((batch,), generator)
    smallest, largest = math.log(settings.smallest), math.log(settings.largest)
    middle, reach = (largest + smallest) / 2, (largest - smallest) / 2
    scale = torch.exp(middle + reach * _uniform((batch,), generator))
    # Grid coordinates run from -1 to 1, so a shift by the whole side is 2.
    shift = 2.0 * settings.shift * _uniform((batch, 2), generator)
    # The grid says for each pixel of the view where in the picture it comes from: the inverse.
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    aspect = width / height
    rows = [
        torch.stack([cos, -sin / aspect, shift[:, 0]], dim=1),
        torch.stack([sin * aspect, cos, shift[:, 1]], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    outside = {"black": "zeros", "edge": "border"}[settings.outside]
    return functional.grid_sample(images, grid, padding_mode=outside, align_corners=False)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform in -1 to 1."""
    return 2.0 * torch.rand(shape, generator=generator, device=generator.device) - 1.0
