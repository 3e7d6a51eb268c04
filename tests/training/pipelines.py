"""Small random `diffusers` pipelines that can be imported, as directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.training.checkpoints import randomize

# It does not annotate what its classes are made with.
library: Any = diffusers

TOKENS = 16
CLASSES = 3

_START, _END = "<|startoftext|>", "<|endoftext|>"
_MERGES = ("c a", "ca t</w>", "d o", "do g</w>", "t h", "th e</w>", "w a", "wa t", "e r</w>")


def ddpm(
    directory: Path, seed: int = 0, *, unet: dict[str, Any] | None = None, **scheduler: Any
) -> Any:
    """Draws 8×8 pixels without being told what; `scheduler` are settings of DDPMScheduler."""
    pipeline = library.DDPMPipeline(
        _pixel_unet(seed, **unet or {}), library.DDPMScheduler(**scheduler)
    )
    pipeline.save_pretrained(directory)
    return pipeline


def ddim_by_class(directory: Path, seed: int = 0, **scheduler: Any) -> Any:
    """Draws one of three classes, in grey."""
    unet = _pixel_unet(seed, num_class_embeds=CLASSES, in_channels=1, out_channels=1)
    pipeline = library.DDIMPipeline(unet, library.DDIMScheduler(**scheduler))
    pipeline.save_pretrained(directory)
    return pipeline


def stable_diffusion(directory: Path, seed: int = 0, *, scheduler: Any = None) -> Any:
    """Draws what a prompt of up to 16 tokens says, 16×16 pixels if it is not told otherwise."""
    torch.manual_seed(seed)
    tokenizer = _save_tokenizer(directory / "tokenizer")
    # transformers does not annotate it.
    words: Any = tokenizer
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
            initializer_range=0.3,
        )
    )
    unet = library.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    vae = library.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        sample_size=16,
    )
    for part in (encoder, unet, vae):
        randomize(part)
    pipeline = library.StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler
        or library.PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(directory)
    # As published ones have them.
    (directory / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    _save_tokenizer(directory / "tokenizer")
    return pipeline


def tokenizer(directory: Path) -> Any:
    """That of a pipeline, by transformers."""
    return CLIPTokenizer.from_pretrained(directory / "tokenizer")


def _pixel_unet(seed: int, **settings: Any) -> Any:
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "sample_size": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    unet = library.UNet2DModel(**config | settings)
    randomize(unet)
    return unet


def _save_tokenizer(directory: Path) -> CLIPTokenizer:
    """Every byte, alone and at the end of a word, and some words."""
    directory.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    tokens += [merge.replace(" ", "") for merge in _MERGES]
    tokens += [_START, _END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("\n".join(("#version: 0.2", *_MERGES, "")))
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
        "model_max_length": TOKENS,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(directory)
    return tokenizer
