"""model_index.json: which parts a `diffusers` pipeline has, and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.errors import CheckpointError
from training.graphs.checkpoint import CONFIG_FILE, WEIGHTS_FILES, read_object, require_weights

MODEL_INDEX_FILE = "model_index.json"
TASK = "text_to_image"

UNET, SCHEDULER = "unet", "scheduler"
VAE, TEXT_ENCODER, TOKENIZER = "vae", "text_encoder", "tokenizer"

SCHEDULERS: Mapping[str, Literal["ddpm", "ddim", "euler", "dpmsolver++"]] = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    # Its multistep method is not served; where it came to be used, DDIM was its forerunner.
    "PNDMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmsolver++",
}
"""Class -> the name of the solver that is the default."""

# DDPMPipeline does not scale what Euler's method needs scaled.
_WITHOUT_SCALING = tuple(name for name in SCHEDULERS if name != "EulerDiscreteScheduler")

_WEIGHTS_OF_DIFFUSERS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
_WEIGHTS_FILES = {
    UNET: _WEIGHTS_OF_DIFFUSERS,
    VAE: _WEIGHTS_OF_DIFFUSERS,
    TEXT_ENCODER: WEIGHTS_FILES,
}

_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts without which a text becomes the same image."""


@dataclass(frozen=True)
class PipelineKind:
    name: str
    """That of its class, as model_index.json has it."""
    classes: Mapping[str, tuple[str, ...]]
    """Part -> the classes it may have."""
    num_inference_steps: int
    guidance_scale: float
    task: str = TASK


KINDS = (
    PipelineKind("DDPMPipeline", {UNET: ("UNet2DModel",), SCHEDULER: _WITHOUT_SCALING}, 1000, 1.0),
    PipelineKind("DDIMPipeline", {UNET: ("UNet2DModel",), SCHEDULER: tuple(SCHEDULERS)}, 50, 1.0),
    PipelineKind(
        "StableDiffusionPipeline",
        {
            UNET: ("UNet2DConditionModel",),
            SCHEDULER: tuple(SCHEDULERS),
            VAE: ("AutoencoderKL",),
            TEXT_ENCODER: ("CLIPTextModel",),
            TOKENIZER: ("CLIPTokenizer", "CLIPTokenizerFast"),
        },
        50,
        7.5,
    ),
)


@dataclass(frozen=True)
class Index:
    """A pipeline's parts, all of which are there."""

    directory: Path
    kind: PipelineKind
    classes: Mapping[str, str]
    """Part -> its class."""
    left_out: tuple[str, ...]
    """Parts that the directory has and the graphs do not."""

    @classmethod
    def load(cls, directory: Path) -> Index:
        """Look at a directory's files. Raises `CheckpointError` if it cannot be exported."""
        path = directory / MODEL_INDEX_FILE
        config = read_object(path)
        kind = next((kind for kind in KINDS if kind.name == config.get("_class_name")), None)
        if kind is None:
            raise CheckpointError(
                f"{path}: _class_name is {config.get('_class_name')!r}, and the pipelines that can"
                f" be exported are {', '.join(kind.name for kind in KINDS)}"
            )
        classes = {part: _class_of(path, config, part) for part in kind.classes}
        for part, allowed in kind.classes.items():
            if classes[part] not in allowed:
                raise CheckpointError(
                    f"{path}: {part} is {classes[part] or 'missing'}, and those that can be"
                    f" exported are {', '.join(allowed)}"
                )
            if not (directory / part).is_dir():
                raise CheckpointError(f"{directory} has no {part}, which {path.name} speaks of")
        others = {name for name, value in config.items() if isinstance(value, list)} - {*classes}
        others = {name for name in others if config[name] != [None, None]}
        if unknown := others.difference(_LEFT_OUT):
            raise CheckpointError(
                f"{path}: {min(unknown)} is set, and a {kind.name} that is exported has none"
            )
        for part in _WEIGHTS_FILES.keys() & classes.keys():
            _check_part(directory / part, part, classes[part])
        return cls(directory, kind, classes, tuple(name for name in _LEFT_OUT if name in others))

    def weights(self) -> list[Path]:
        """The files of weights of all parts that are exported."""
        return [
            path
            for part in sorted(_WEIGHTS_FILES.keys() & self.classes.keys())
            for path in sorted((self.directory / part).glob("*.safetensors"))
        ]


def _class_of(path: Path, config: Mapping[str, Any], part: str) -> str:
    """Empty if there is none. A part of another library would be the checkpoint's own code."""
    match config.get(part):
        case ["diffusers" | "transformers", str(name)]:
            return name
        case None | [None, None]:
            return ""
        case other:
            raise CheckpointError(
                f"{path}: {part} is {other!r}; expected a class of diffusers or transformers"
            )


def _check_part(directory: Path, part: str, class_name: str) -> None:
    config = read_object(directory / CONFIG_FILE)
    named = config.get("_class_name", class_name)
    if named != class_name:
        raise CheckpointError(
            f"{directory / CONFIG_FILE}: _class_name is {named!r}, and {MODEL_INDEX_FILE} says"
            f" {class_name}"
        )
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{directory / CONFIG_FILE}: quantization_config is set, whose weights are not numbers"
            " that can be exported"
        )
    require_weights(directory, _WEIGHTS_FILES[part])
