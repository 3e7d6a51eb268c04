"""A pipeline whose weights are loaded, and the files that it is served from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from serving.diffusion.parameters import DiffusionParameters
from serving.diffusion.settings import (
    IMAGE_DECODER_FILE,
    TEXT_ENCODER_FILE,
    UNET_FILE,
    Decoder,
    DiffusionSettings,
    Sample,
    Text,
)
from serving.triton_backend import MODEL_FILE, MODEL_TEXT
from training import durable
from training.errors import CheckpointError
from training.graphs.export import require_room
from training.pipelines.components import (
    config_of,
    is_conditional,
    load_text_encoder,
    load_unet,
    load_vae,
)
from training.pipelines.graphs import image_decoder_to_onnx, text_encoder_to_onnx, unet_to_onnx
from training.pipelines.index import SCHEDULER, TASK, TEXT_ENCODER, UNET, VAE, Index
from training.pipelines.noise import read_noise
from training.pipelines.tokenizer import load_tokenizer, save_tokenizer

STEPPER = "diffusion"
MAX_BATCH_SIZE = 16

PROMPT, IMAGE = "prompt", "image"


@dataclass(frozen=True)
class Words:
    """What reads a prompt."""

    encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    @property
    def tokens(self) -> int:
        # transformers does not annotate it.
        tokenizer: Any = self.tokenizer
        return int(tokenizer.model_max_length)


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
        # It takes no time, and the weights do.
        read_noise(index)
        unet = load_unet(index)
        config = config_of(unet)
        words = vae = None
        if TEXT_ENCODER in index.classes:
            encoder = load_text_encoder(index, config.cross_attention_dim)
            words = Words(encoder, load_tokenizer(index, encoder))
            vae = load_vae(index, config.in_channels)
        return cls(index, _settings(index, unet, words, vae), unet, words, vae)

    def export(self, destination: Path) -> None:
        """Write graphs, diffusion.json, a tokenizer and Triton's model.py into a directory.

        Raises `CheckpointError`.
        """
        directory, sample = self.index.directory, self.settings.sample
        require_room(self.unet, directory / UNET)
        if self.vae is not None:
            require_room(self.vae, directory / VAE)
        if self.words is not None:
            require_room(self.words.encoder, directory / TEXT_ENCODER)
        destination.mkdir(parents=True, exist_ok=True)
        tokens = self.words.tokens if self.words else 0
        graphs = {UNET_FILE: unet_to_onnx(self.unet, sample, tokens)}
        if self.words is not None:
            graphs[TEXT_ENCODER_FILE] = text_encoder_to_onnx(self.words.encoder, tokens)
            save_tokenizer(self.words.tokenizer, destination)
        if self.vae is not None:
            graphs[IMAGE_DECODER_FILE] = image_decoder_to_onnx(self.vae, sample)
        for name, graph in graphs.items():
            (destination / name).write_bytes(graph.SerializeToString())
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
        size = f"{settings.pixels * settings.sample.width}×"
        size += f"{settings.pixels * settings.sample.height} pixels"
        said = "without being told what"
        if settings.classes:
            said = f"one of {len(settings.classes)} classes, by number: they have no names here"
        elif settings.text:
            said = f"what a prompt of up to {settings.text.tokens} tokens says"
        sentences = [
            f"It draws {said}. An image has {size}"
            + (
                f", or any others that are multiples of"
                f" {settings.pixels * settings.sample.multiple}."
                if settings.sample.multiple
                else "."
            ),
            f"Unless a request says otherwise, it takes {defaults.num_inference_steps} steps of"
            f" {defaults.scheduler} with a guidance scale of {defaults.guidance_scale:g}.",
        ]
        if settings.classes:
            sentences.append("It was not trained without a class, and so nothing guides it.")
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


def _settings(
    index: Index, unet: nn.Module, words: Words | None, vae: nn.Module | None
) -> DiffusionSettings:
    """diffusion.json. Raises `CheckpointError` for what it cannot say."""
    noise, solver = read_noise(index)
    config = config_of(unet)
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    # Each halves the sample, and what is odd then is not what it was when it is doubled again.
    multiple = 2 ** (len(config.block_out_channels) - 1) if is_conditional(unet) else None
    if multiple is not None and (height % multiple or width % multiple):
        multiple = None
    steps = min(index.kind.num_inference_steps, noise.num_train_timesteps)
    classes = config.num_class_embeds or 0
    try:
        return DiffusionSettings(
            noise=noise,
            sample=Sample(
                channels=config.in_channels, height=height, width=width, multiple=multiple
            ),
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
