"""A U-Net that removes noise from pictures of a class, and the running average of its weights."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from serving.diffusion.settings import NoiseSchedule
from training import durable
from training.checkpoint import Weights
from training.tasks.image_generation.recipe import GROUPS, DiffusionRecipe

UNET_FOLDER = "unet"
SCHEDULER_FOLDER = "scheduler"


class Denoiser(nn.Module):
    """`diffusers`' U-Net. The names of its arguments are those of the graph's inputs."""

    def __init__(self, unet: UNet2DModel):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """What the network tells of noisy pictures, in their shape.

        Takes FP32 [batch, channel, row, column], timesteps of training FP32 [batch], and classes
        INT64 [batch], of which the one after the last is none.
        """
        output: Tensor = self.unet(sample, timestep, class_labels).sample
        return output


class Averaged(nn.Module):
    """Computes with the trained network while training, and with its running average afterwards.

    The average is part of the module, so that a run that continues continues with it, too. It is
    brought up to date before each step, and hence does not know the last one.
    """

    steps: Tensor

    def __init__(self, trained: Denoiser, decay: float):
        super().__init__()
        self.trained = trained
        self.average = copy.deepcopy(trained).requires_grad_(False)
        self.decay = decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """See `Denoiser.forward`."""
        if not self.training:
            return self.average.forward(sample, timestep, class_labels)
        self._follow()
        return self.trained.forward(sample, timestep, class_labels)

    @torch.no_grad()
    def _follow(self) -> None:
        steps = int(self.steps)
        # The first weights mean nothing and are soon forgotten, as by diffusers' EMAModel.
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for average, trained in zip(
            self.average.parameters(), self.trained.parameters(), strict=True
        ):
            average.lerp_(trained, 1.0 - decay)
        self.steps += 1


def build(recipe: DiffusionRecipe, classes: int) -> UNet2DModel:
    """A network that was not trained yet, for pictures as the recipe prepares them."""
    channels, height, width = recipe.shape
    model, stages = recipe.model, len(recipe.model.widths)
    return UNet2DModel(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        layers_per_block=model.layers,
        block_out_channels=model.widths,
        down_block_types=("DownBlock2D",) * stages,
        up_block_types=("UpBlock2D",) * stages,
        norm_num_groups=GROUPS,
        attention_head_dim=2 * GROUPS,
        dropout=model.dropout,
        # One more: none of them.
        num_class_embeds=classes + 1,
    )


def build_scheduler(recipe: DiffusionRecipe) -> DDIMScheduler:
    """How noise is added, and taken back: the cosine schedule of Nichol and Dhariwal, 2021.

    With "trailing", the first step starts from noise alone, as drawing does (Lin et al., 2023);
    whoever predicts the noise has nothing to say there, and begins a little later. What a step
    takes for the picture is not clipped: clipped, and with the noise left as it is, guidance ruins
    pictures, and the more steps there are, the more.
    """
    prediction_type = recipe.diffusion.prediction_type
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        timestep_spacing="leading" if prediction_type == "epsilon" else "trailing",
        clip_sample=False,
    )


def noise_schedule(scheduler: DDIMScheduler) -> NoiseSchedule:
    """What diffusion.json says of a scheduler."""
    config = scheduler.config
    known = {name: config[name] for name in NoiseSchedule.model_fields if name in config}
    return NoiseSchedule(**known)


def halve(weights: Weights) -> Weights:
    """The nearest weights that 16 bits hold, so that a graph may store them in half the bytes."""
    return {name: tensor.half().float() for name, tensor in weights.items()}


def save(directory: Path, unet: UNet2DModel, scheduler: DDIMScheduler) -> None:
    """Write a checkpoint in `diffusers`' layout."""
    with durable.staged_directory(directory.parent) as staged:
        unet.save_pretrained(staged / UNET_FOLDER)
        scheduler.save_pretrained(staged / SCHEDULER_FOLDER)
        shutil.rmtree(directory, ignore_errors=True)
        durable.move_into_place(staged, directory)


def load(directory: Path) -> tuple[Denoiser, DDIMScheduler]:
    """The network of a checkpoint in evaluation mode, and its scheduler."""
    unet = UNet2DModel.from_pretrained(
        directory,
        subfolder=UNET_FOLDER,
        # For which another package would be needed.
        low_cpu_mem_usage=False,
    )
    scheduler = DDIMScheduler.from_pretrained(directory, subfolder=SCHEDULER_FOLDER)
    return Denoiser(unet).eval(), scheduler
