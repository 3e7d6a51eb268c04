"""A pipeline whose weights are loaded, and the files that it is served from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import nn

from serving.diffusion.settings import (
    IMAGE_DECODER_FILE,
    TEXT_ENCODER_FILE,
    UNET_FILE,
    DiffusionSettings,
)
from serving.triton_backend import MODEL_FILE, MODEL_TEXT
from training import durable
from training.pipelines.components import (
    config_of,
    load_text_encoder,
    load_unet,
    load_vae,
)
from training.pipelines.graphs import write_image_decoder, write_text_encoder, write_unet
from training.pipelines.index import SCHEDULER, TASK, TEXT_ENCODER, Index
from training.pipelines.noise import read_noise
from training.pipelines.settings import diffusion_settings
from training.pipelines.words import Words, load_tokenizer, save_tokenizer

STEPPER = "diffusion"
MAX_BATCH_SIZE = 16

PROMPT, IMAGE = "prompt", "image"


@dataclass(frozen=True)
class Pipeline:
    index: Index
    settings: DiffusionSettings
    unet: nn.Module
    words: Words | None
    vae: nn.Module | None

    @classmethod
    def load(cls, index: Index) -> Self:
        """Raises `CheckpointError` for a pipeline that cannot be exported as what it is."""
        noise = read_noise(index)
        unet = load_unet(index)
        config = config_of(unet)
        words = vae = None
        if TEXT_ENCODER in index.classes:
            encoder = load_text_encoder(index, config.cross_attention_dim)
            words = Words(encoder, load_tokenizer(index, encoder))
            vae = load_vae(index, config.in_channels)
        return cls(index, diffusion_settings(index, noise, unet, words, vae), unet, words, vae)

    def export(self, destination: Path) -> None:
        """Write graphs, diffusion.json, a tokenizer and Triton's model.py into a directory."""
        sample = self.settings.sample
        tokens = self.words.tokens if self.words else 0
        write_unet(self.unet, sample, tokens, destination / UNET_FILE)
        if self.words is not None:
            write_text_encoder(self.words.encoder, tokens, destination / TEXT_ENCODER_FILE)
            save_tokenizer(self.words.tokenizer, destination)
        if self.vae is not None:
            write_image_decoder(self.vae, sample, destination / IMAGE_DECODER_FILE)
        self.settings.save(destination)
        durable.write(destination / MODEL_FILE, MODEL_TEXT)

    def config_text(self, name: str) -> str:
        """config.pbtxt."""
        sample, pixels = self.settings.sample, self.settings.pixels
        sizes = (
            (pixels * sample.height, pixels * sample.width) if sample.multiple is None else (-1, -1)
        )
        dims = ", ".join(map(str, (*sizes, self.settings.image_channels)))
        return f"""\
name: "{name}"
backend: "python"
max_batch_size: {MAX_BATCH_SIZE}
input {{
  name: "{PROMPT}"
  data_type: TYPE_STRING
  dims: [ 1 ]
}}
output {{
  name: "{IMAGE}"
  data_type: TYPE_UINT8
  dims: [ {dims} ]
}}
model_transaction_policy {{
  decoupled: true
}}
parameters {{
  key: "task"
  value {{ string_value: "{TASK}" }}
}}
parameters {{
  key: "stepper"
  value {{ string_value: "{STEPPER}" }}
}}
"""

    def remarks(self) -> tuple[str, ...]:
        """Sentences for the model's card: what is drawn, how, and what was left out."""
        settings, defaults = self.settings, self.settings.defaults
        sample, pixels = settings.sample, settings.pixels
        size = f"{pixels * sample.width}×{pixels * sample.height} pixels"
        if sample.multiple is not None:
            size += f", or any others that are multiples of {pixels * sample.multiple}"
        drawn = "without being told what"
        if settings.classes:
            drawn = f"one of {len(settings.classes)} classes, by number: they have no names here"
        elif settings.text:
            drawn = f"what a prompt of up to {settings.text.tokens} tokens says"
        sentences = [
            f"It draws {drawn}. An image has {size}.",
            f"Unless a request says otherwise, it takes {defaults.num_inference_steps} steps of"
            f" {defaults.scheduler} with a guidance scale of {defaults.guidance_scale:g}.",
        ]
        if settings.classes:
            sentences.append(
                "Whether one of the classes stands for none, its files do not say: nothing guides"
                " it."
            )
        if (scheduler := self.index.classes[SCHEDULER]) == "PNDMScheduler":
            sentences.append(
                f"The checkpoint's own scheduler, {scheduler}, is not served: ddim is in its place."
            )
        sentences += [
            f"The checkpoint's {part} is not part of this"
            + (": no image is held back." if part == "safety_checker" else ".")
            for part in self.index.left_out
        ]
        return tuple(sentences)
