"""diffusion.json of a version directory: the facts of a model that draws."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from serving.diffusion.parameters import MAX_STEPS, DiffusionParameters
from serving.model_file import read_model_file

DIFFUSION_FILE = "diffusion.json"
UNET_FILE = "unet.onnx"
TEXT_ENCODER_FILE = "text_encoder.onnx"
IMAGE_DECODER_FILE = "vae_decoder.onnx"

_Id = Annotated[int, Field(ge=0)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class NoiseSchedule(_Settings):
    """How noise was added in training, and which of its steps are taken back.

    Names and meanings are those of `diffusers`' scheduler_config.json, which all its schedulers
    share.
    """

    num_train_timesteps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: PositiveFloat = 0.0001
    beta_end: PositiveFloat = 0.02
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: Annotated[int, Field(ge=0)] = 0
    clip_sample: bool = True
    clip_sample_range: PositiveFloat = 1.0
    set_alpha_to_one: bool = True
    variance_type: Literal["fixed_small", "fixed_large"] = "fixed_small"


class Sample(_Settings):
    """What is denoised, [channels, height, width]: pixels, or latents of a `decoder`."""

    channels: PositiveInt
    height: PositiveInt
    width: PositiveInt
    multiple: PositiveInt | None = None
    """Of which other heights and widths are multiples; None if there are no others."""


class Text(_Settings):
    """A text encoder of prompts, with a tokenizer in the same directory."""

    tokens: PositiveInt
    """That it reads: shorter prompts are padded at their end, longer ones are refused."""
    pad_token_id: _Id


class Decoder(_Settings):
    """From latents to pixels."""

    scaling_factor: PositiveFloat
    shift_factor: float = 0.0
    pixels: PositiveInt
    """Along either side, for each of the latents."""
    channels: PositiveInt = 3


class DiffusionSettings(_Settings):
    """Of a model that draws without being told what, one of some `classes`, or what a `text` says.

    `classes` are the names of each class, of which the first is shown; with
    `unconditional_class` the model was trained for when it is told none, which guidance needs.

    The graphs are unet.onnx with the inputs `sample` FP32 [batch, channels, height, width],
    `timestep` FP32 [batch] and, if there are classes, `class_labels` INT64 [batch] or, if there is
    a text, `encoder_hidden_states` FP32 [batch, tokens, width], and the output `model_output` of
    the sample's shape; text_encoder.onnx from `input_ids` INT64 [batch, tokens] to
    `encoder_hidden_states`; and vae_decoder.onnx from `latents` to `image`, FP32 [batch, channels,
    height, width] from -1 to 1.
    """

    noise: NoiseSchedule
    sample: Sample
    classes: tuple[tuple[str, ...], ...] = ()
    unconditional_class: _Id | None = None
    text: Text | None = None
    decoder: Decoder | None = None
    defaults: DiffusionParameters = DiffusionParameters()

    @classmethod
    def load(cls, directory: Path) -> DiffusionSettings:
        """Read the settings of a version directory. Raises `ModelLoadError`, naming the field."""
        return read_model_file(cls, directory / DIFFUSION_FILE)

    def save(self, directory: Path) -> None:
        text = self.model_dump_json(indent=2, exclude_none=True)
        (directory / DIFFUSION_FILE).write_text(text + "\n", encoding="utf-8")

    @property
    def image_channels(self) -> int:
        return self.decoder.channels if self.decoder else self.sample.channels

    @property
    def pixels(self) -> int:
        """Along either side, for each element of the sample."""
        return self.decoder.pixels if self.decoder else 1

    @property
    def can_guide(self) -> bool:
        return self.text is not None or self.unconditional_class is not None

    @model_validator(mode="after")
    def _agree(self) -> DiffusionSettings:
        if self.text and self.classes:
            raise ValueError("a model that reads a text has no classes")
        names = [name.casefold() for names in self.classes for name in names]
        if not all(self.classes) or len(set(names)) != len(names):
            raise ValueError("every class has names, and no other class has the same")
        if self.unconditional_class is not None and not self.classes:
            raise ValueError("unconditional_class needs classes")
        if self.image_channels not in (1, 3):
            raise ValueError(
                f"an image has 1 or 3 channels, and this one would have {self.image_channels}"
            )
        if self.defaults.num_inference_steps > self.noise.num_train_timesteps:
            raise ValueError(
                "defaults.num_inference_steps is more than noise.num_train_timesteps,"
                f" {self.noise.num_train_timesteps}"
            )
        return self
