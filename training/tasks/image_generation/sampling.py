"""From noise to pictures, by the network as torch computes it and `diffusers`' DDIM."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from tqdm import tqdm

from training.tasks.image_classification.images import Images
from training.tasks.image_generation.recipe import Sampling

CPU = torch.device("cpu")
BATCH = 50
"""Pictures that are drawn together."""

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A network; see `Denoiser.forward`."""
Classes = npt.NDArray[np.int64]


@torch.no_grad()
def draw(
    predict: Predict,
    scheduler: DDIMScheduler,
    classes: Classes,
    shape: tuple[int, int, int],
    settings: Sampling,
    *,
    unconditional: int,
    seed: int,
    device: torch.device = CPU,
) -> Images:
    """One picture of each of the classes, [picture, channel, row, column]; `shape` is of one.

    Each begins with noise by a seed of its own, the first with `seed`, as served; `device` is where
    the network is. Guidance is that of Ho and Salimans, 2022, with `diffusers`' scale: 1 is
    without.
    """
    noise = torch.stack(
        [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed + number))
            for number in range(len(classes))
        ]
    )
    starts = range(0, len(classes), BATCH)
    drawn = []
    for start in tqdm(starts, f"drawing in {settings.num_inference_steps} steps", leave=False):
        labels = torch.from_numpy(classes[start : start + BATCH]).to(device)
        ask = guided(predict, labels, unconditional, settings.guidance_scale)
        scheduler.set_timesteps(settings.num_inference_steps)
        sample = noise[start : start + BATCH].to(device)
        for timestep in scheduler.timesteps:
            output = ask(sample, timestep.to(device).float().expand(len(sample)))
            sample = scheduler.step(output, timestep, sample).prev_sample
        drawn.append(to_pixels(sample.cpu()))
    return np.concatenate(drawn)


def from_pixels(images: Images) -> Tensor:
    """From 0 to 255 to what is denoised, -1 to 1."""
    return torch.from_numpy(images).float() / 127.5 - 1.0


def to_pixels(sample: Tensor) -> Images:
    """The inverse of `from_pixels`, with what is outside clipped."""
    scaled = (sample + 1.0) * 127.5
    return scaled.round().clamp(0.0, 255.0).to(torch.uint8).numpy()


def guided(
    predict: Predict, labels: Tensor, unconditional: int, scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network's output of samples and timesteps, by `scale` towards `labels`."""
    if scale == 1.0:
        return lambda sample, timesteps: predict(sample, timesteps, labels)
    both = torch.cat([torch.full_like(labels, unconditional), labels])

    def ask(sample: Tensor, timesteps: Tensor) -> Tensor:
        outputs = predict(torch.cat([sample] * 2), torch.cat([timesteps] * 2), both)
        without, of_class = outputs.chunk(2)
        return without + scale * (of_class - without)

    return ask
