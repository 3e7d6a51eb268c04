"""diffusion.json of a pipeline."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from torch import nn

from serving.diffusion.parameters import DiffusionParameters
from serving.diffusion.settings import Decoder, DiffusionSettings, Sample, Text
from training.errors import CheckpointError
from training.pipelines.components import config_of, is_conditional
from training.pipelines.index import Index
from training.pipelines.noise import Noise
from training.pipelines.words import Words


def diffusion_settings(
    index: Index, noise: Noise, unet: nn.Module, words: Words | None, vae: nn.Module | None
) -> DiffusionSettings:
    """What diffusion.json holds. Raises `CheckpointError` for what it cannot say."""
    schedule, solver = noise
    config = config_of(unet)
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    # Each halves the sample, and what is odd then is not what it was when it is doubled again.
    multiple = 2 ** (len(config.block_out_channels) - 1) if is_conditional(unet) else None
    if multiple is not None and (height % multiple or width % multiple):
        multiple = None
    steps = min(index.kind.num_inference_steps, schedule.num_train_timesteps)
    classes = config.num_class_embeds or 0
    try:
        return DiffusionSettings(
            noise=schedule,
            sample=Sample(
                channels=config.in_channels, height=height, width=width, multiple=multiple
            ),
            # None of them is unconditional: no file could say so, and guidance by a class that
            # means something would draw away from it.
            classes=tuple((str(number),) for number in range(classes)),
            text=_text(words) if words else None,
            decoder=_decoder(vae) if vae else None,
            defaults=DiffusionParameters(
                num_inference_steps=steps,
                guidance_scale=index.kind.guidance_scale,
                scheduler=solver,
            ),
        )
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        reason = problem["msg"].removeprefix("Value error, ")
        raise CheckpointError(
            f"{index.directory}: {field + ': ' if field else ''}{reason}"
        ) from error


def _text(words: Words) -> Text:
    tokenizer: Any = words.tokenizer
    return Text(tokens=words.tokens, pad_token_id=tokenizer.pad_token_id)


def _decoder(vae: nn.Module) -> Decoder:
    config = config_of(vae)
    return Decoder(
        scaling_factor=config.scaling_factor,
        pixels=2 ** (len(config.block_out_channels) - 1),
        channels=config.out_channels,
    )
