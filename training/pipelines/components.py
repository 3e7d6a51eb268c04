"""The parts of a pipeline with weights, in FP32 and ready to infer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from diffusers.utils import logging
from torch import nn
from transformers import CLIPTextModel

from training.errors import CheckpointError
from training.graphs.checkpoint import CONFIG_FILE, load_weights, reading, require_all_weights
from training.pipelines.index import TEXT_ENCODER, UNET, VAE, Index


def config_of(module: nn.Module) -> Any:
    """What a part's config.json says, with defaults for what it does not."""
    return module.config


def is_conditional(unet: nn.Module) -> bool:
    """Whether a text encoder's states condition it, and it is no UNet2DModel."""
    return isinstance(unet, UNet2DConditionModel)


def load_unet(index: Index) -> nn.Module:
    """Raises `CheckpointError` for one that predicts or is told what no graph here has."""
    conditional = index.classes[UNET] == "UNet2DConditionModel"
    unet = _load(UNet2DConditionModel if conditional else UNet2DModel, index.directory / UNET)
    config = config_of(unet)
    expected = {
        "time_embedding_type": "positional",
        # With as many again it would predict the variance, too.
        "out_channels": config.in_channels,
        "class_embed_type": None,
    }
    if conditional:
        expected |= {
            "num_class_embeds": None,
            "addition_embed_type": None,
            "encoder_hid_dim": None,
            "encoder_hid_dim_type": None,
            "time_cond_proj_dim": None,
            "attention_type": "default",
        }
    _require(unet, index.directory / UNET, expected)
    match config.sample_size:
        case int() | [int(), int()]:
            pass
        case other:
            raise CheckpointError(
                f"{index.directory / UNET / CONFIG_FILE}: sample_size is {other!r}, and has to be"
                " a number or two"
            )
    return unet


def load_vae(index: Index, latent_channels: int) -> nn.Module:
    """Raises `CheckpointError` for one that does not decode what the UNet makes."""
    vae = _load(AutoencoderKL, index.directory / VAE)
    expected = {
        "latent_channels": latent_channels,
        # Which the pipeline leaves out, and whoever trained it did not.
        "latents_mean": None,
        "latents_std": None,
    }
    _require(vae, index.directory / VAE, expected)
    if shift := config_of(vae).shift_factor:
        raise CheckpointError(
            f"{index.directory / VAE / CONFIG_FILE}: shift_factor is {shift}, which a"
            f" {index.kind.name} does not use"
        )
    return vae


def load_text_encoder(index: Index, width: int) -> CLIPTextModel:
    """Raises `CheckpointError` for one that does not say what the UNet hears."""
    directory = index.directory / TEXT_ENCODER
    encoder = load_weights(CLIPTextModel, directory)
    assert isinstance(encoder, CLIPTextModel), "it is what was asked for"
    _require(encoder, directory, {"hidden_size": width})
    if getattr(encoder.config, "use_attention_mask", None):
        raise CheckpointError(
            f"{directory / CONFIG_FILE}: use_attention_mask is set, and the encoder that is"
            " exported reads the padding, too"
        )
    return encoder


def _load(kind: Any, directory: Path) -> nn.Module:
    with reading(directory, "diffusers"), quiet():
        model, found = kind.from_pretrained(
            directory,
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            # Told below, by name.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    module: nn.Module = model
    module.requires_grad_(False)
    require_all_weights(directory, found)
    return module.eval()


def _require(module: nn.Module, directory: Path, expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        found = getattr(config_of(module), name, None)
        if found != value:
            raise CheckpointError(
                f"{directory / CONFIG_FILE}: {name} is {found!r}, and has to be {value!r}"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Without `diffusers`' progress bars and remarks; what goes wrong is raised."""
    # It does not annotate them.
    log: Any = logging
    verbosity = log.get_verbosity()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        log.enable_progress_bar()
