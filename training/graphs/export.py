"""From a checkpoint directory to what a version directory needs to generate text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from serving.steppers.settings import GenerationSettings
from serving.triton_backend import MODEL_FILE, MODEL_TEXT
from training import durable
from training.errors import CheckpointError
from training.graphs.checkpoint import Model, load_checkpoint, tokenizer_files
from training.graphs.graphs import to_onnx
from training.graphs.settings import generation_settings, renormalized
from training.graphs.tokenizers import read_tokenizer

LARGEST_GRAPH = 2**31 - 1
"""Bytes that one protobuf message can have."""


def export_generation(checkpoint: Path, destination: Path) -> None:
    """Write graphs, generation.json, the tokenizer's files and Triton's model.py into a directory.

    Raises `CheckpointError` for a checkpoint that cannot be exported as what it is.
    """
    export_loaded(load_checkpoint(checkpoint), checkpoint, destination)


def export_loaded(model: Model, checkpoint: Path, destination: Path) -> None:
    """The same, of a model that `load_checkpoint` read."""
    settings = checked(generation_settings(model))
    read_tokenizer(checkpoint, model)
    require_room(model, checkpoint)
    destination.mkdir(parents=True, exist_ok=True)
    for name, graph in to_onnx(model, renormalized(model)).items():
        (destination / name).write_bytes(graph.SerializeToString())
    settings.save(destination)
    for path in tokenizer_files(checkpoint):
        shutil.copyfile(path, destination / path.name)
    durable.write(destination / MODEL_FILE, MODEL_TEXT)


def require_room(module: nn.Module, checkpoint: Path) -> None:
    """Raises `CheckpointError` for a module that is larger than a graph can be."""
    size = size_of(module)
    if size > LARGEST_GRAPH:
        raise CheckpointError(
            f"{checkpoint}: the weights are {size / 2**30:.1f} GiB in FP32, and a graph holds 2"
        )


def size_of(module: nn.Module) -> int:
    """Bytes of all weights."""
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def checked(settings: dict[str, Any]) -> GenerationSettings:
    """As serving reads them. Raises `CheckpointError` where a value is out of bounds."""
    try:
        return GenerationSettings.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise CheckpointError(
            f"the checkpoint's generation settings: {field}: {problem['msg']},"
            f" got {problem['input']!r}"
        ) from error
