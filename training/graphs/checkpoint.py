"""Hugging Face checkpoint directories that can become graphs.

Everything is read from the directory; nothing in it is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MarianMTModel,
    PreTrainedModel,
    Wav2Vec2ForCTC,
    WhisperForConditionalGeneration,
)

from training.errors import CheckpointError

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json")
WEIGHTS = "*.safetensors"
_PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl")

Model = MarianMTModel | GPT2LMHeadModel | LlamaForCausalLM
"""Those that generate text from text."""


@dataclass(frozen=True)
class Architecture:
    name: str
    """That of its class, as config.json has it."""
    model: type[PreTrainedModel]
    task: str
    tokenizer_files: tuple[str, ...]


_TEXT_GENERATION = "text_generation", ("tokenizer.json",)
_SPEECH_RECOGNITION = "automatic-speech-recognition"

ARCHITECTURES = (
    Architecture(
        "MarianMTModel",
        MarianMTModel,
        "translation",
        ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json"),
    ),
    Architecture("GPT2LMHeadModel", GPT2LMHeadModel, *_TEXT_GENERATION),
    Architecture("LlamaForCausalLM", LlamaForCausalLM, *_TEXT_GENERATION),
    Architecture("Wav2Vec2ForCTC", Wav2Vec2ForCTC, _SPEECH_RECOGNITION, ("vocab.json",)),
    Architecture(
        "WhisperForConditionalGeneration",
        WhisperForConditionalGeneration,
        _SPEECH_RECOGNITION,
        ("tokenizer.json",),
    ),
)

_OPTIONAL_FILES = ("tokenizer_config.json",)

_CONSTANTS = (".attn.masked_bias", ".embeddings.position_ids")
"""Ends of names under which early GPT-2 and CLIP checkpoints keep what is no weight."""

_FOR_TRAINING = (".masked_spec_embed",)
"""Ends of names of weights that have no part in inference, and that many checkpoints lack."""

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Those whose angles depend on the position alone."""


def architecture_of(checkpoint: Path) -> Architecture:
    """Look at a directory's files. Raises `CheckpointError` if it cannot be exported."""
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} is not a directory")
    config = read_object(checkpoint / CONFIG_FILE)
    if (checkpoint / GENERATION_FILE).exists():
        # `transformers` would go on without it.
        read_object(checkpoint / GENERATION_FILE)
    names = config.get("architectures") or []
    names = names if isinstance(names, list) else [names]
    architecture = next((known for known in ARCHITECTURES if [known.name] == names), None)
    if architecture is None:
        found = ", ".join(map(str, names)) or "none"
        raise CheckpointError(
            f"{checkpoint / CONFIG_FILE}: the architecture is {found}, and those that can be"
            f" exported are {', '.join(known.name for known in ARCHITECTURES)}"
        )
    _check_config(checkpoint / CONFIG_FILE, config)
    _check_files(checkpoint, architecture)
    return architecture


def tokenizer_files(checkpoint: Path) -> list[Path]:
    """Those that serving may read."""
    names = (*architecture_of(checkpoint).tokenizer_files, *_OPTIONAL_FILES)
    return [checkpoint / name for name in dict.fromkeys(names) if (checkpoint / name).exists()]


def load_checkpoint(checkpoint: Path) -> Model:
    """A model that generates text from text. Raises `CheckpointError`."""
    model = load_model(checkpoint)
    assert isinstance(model, Model), "whoever asks knows the architecture. This is a bug."
    return model


def load_model(checkpoint: Path) -> PreTrainedModel:
    """The model in FP32, ready to infer. Raises `CheckpointError`."""
    return load_weights(architecture_of(checkpoint).model, checkpoint)


def load_weights(kind: type[PreTrainedModel], directory: Path) -> PreTrainedModel:
    """The same, of a directory whose files were looked at."""
    with reading(directory, "transformers"), quiet():
        loaded: Any = kind.from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            # Told below, by name.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model: PreTrainedModel
    model, found = loaded
    model.requires_grad_(False)
    require_all_weights(directory, found)
    return model


@contextmanager
def reading(directory: Path, library: str) -> Iterator[None]:
    """Raises `CheckpointError` for whatever a library finds wrong with a directory."""
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"{directory}: the weights cannot be read: {error}") from error
    # Whatever a config may hold, libraries find their own ways to fail on it.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{directory}: {library} cannot load it: {reason}") from error


def require_all_weights(directory: Path, found: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` if weights and model were not the same, by what loading tells."""
    missing = {key for key in found["missing_keys"] if not key.endswith(_FOR_TRAINING)}
    unexpected = {key for key in found["unexpected_keys"] if not key.endswith(_CONSTANTS)}
    for keys, problem in (
        (missing, "lack"),
        (unexpected, "have what the model has no place for:"),
        (found["mismatched_keys"], "have another shape than config.json says:"),
    ):
        if keys:
            first = min(str(key[0] if isinstance(key, tuple) else key) for key in keys)
            raise CheckpointError(f"{directory}: the weights {problem} {first}")


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The layer that makes logits."""
    # transformers does not annotate it.
    find: Any = model.get_output_embeddings
    layer: nn.Linear = find()
    return layer


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint. Raises `CheckpointError`."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}: expected a Hugging Face checkpoint"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} cannot be read: expected an object")
    return config


def _check_config(path: Path, config: dict[str, Any]) -> None:
    """Refuse what would be another model than the one that is exported."""
    refused = {
        "quantization_config": "whose weights are not numbers that can be exported",
        "sliding_window": "and every token of the graph attends to all before it",
        "add_cross_attention": "and a text has nothing to attend across to",
    }
    for name, reason in refused.items():
        if config.get(name):
            raise CheckpointError(f"{path}: {name} is set, {reason}")
    if config.get("is_causal") is False:
        raise CheckpointError(f"{path}: is_causal is false, and text is generated forwards only")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = "default"
    if isinstance(rope, dict):
        kind = rope.get("rope_type") or rope.get("type") or kind
    if kind not in _ROPE_TYPES:
        raise CheckpointError(
            f"{path}: the rope type is {kind!r}, and those whose angles depend on the position"
            f" alone are {', '.join(_ROPE_TYPES)}"
        )


def _check_files(checkpoint: Path, architecture: Architecture) -> None:
    if (checkpoint / "adapter_config.json").exists():
        raise CheckpointError(f"{checkpoint} holds an adapter: merge it into its model first")
    require_weights(checkpoint, WEIGHTS_FILES)
    for name in architecture.tokenizer_files:
        if not (checkpoint / name).exists():
            raise CheckpointError(f"{checkpoint} has no {name}, and its tokenizer needs it")


def require_weights(directory: Path, names: Sequence[str]) -> None:
    """Raises `CheckpointError` for a directory with none of these files of weights."""
    if any((directory / name).exists() for name in names):
        return
    pickles = sorted(path.name for kind in _PICKLES for path in directory.glob(kind))
    raise CheckpointError(
        f"{directory}: {pickles[0]} is a pickle, which can run code when it is read:"
        " save the model again, as safetensors"
        if pickles
        else f"{directory} has no {names[0]}"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and remarks; what goes wrong is raised."""
    log: Any = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
