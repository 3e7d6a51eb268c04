"""Put somebody's checkpoint into a model repository: the same export and the same proof as ours."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, Wav2Vec2ForCTC, WhisperForConditionalGeneration

from serving.pbtxt import CONFIG_FILE
from training import durable
from training.card import parity_table
from training.errors import CheckpointError, PublishRefused
from training.graphs.checkpoint import (
    WEIGHTS,
    Architecture,
    Model,
    architecture_of,
    load_model,
)
from training.graphs.export import export_loaded
from training.graphs.promise import config_text
from training.graphs.proof import prove
from training.graphs.tokenizers import read_tokenizer
from training.parity import ParityReport
from training.promise import keep_promise, promise
from training.publish import CARD_FILE, MANIFEST_FILE, take_next_version
from training.recognizers import wav2vec2, wav2vec2_proof, whisper, whisper_proof
from training.record import Record
from training.runs import PARITY_FILE
from training.split import sha256_hex

PACKAGES = ("slipway", "torch", "transformers", "numpy", "onnx", "onnxruntime", "onnxscript")

_PROMPTS = (
    "A slipway is where a ship leaves the yard for the water.",
    "The next train leaves at a quarter past nine in the morning.",
    "How many of these are there, and what does one cost?",
    "Please send the report to everybody who was at the meeting.",
    "Yes.",
    "In 1969 two people walked on the Moon, and millions watched them do it.",
    "def add(one, other):\n    return one + other",
    "It has rained since Monday; the river is higher than it was last spring.",
)
"""Real text for the proof; random tokens are the rest of it."""


class Manifest(Record):
    """Where a version comes from, and what its files must hash to."""

    format: int = 1
    task: str
    precision: str
    architecture: str
    checkpoint: str
    """The name of its directory."""
    weights: dict[str, str]
    """File name -> sha256 of the checkpoint's weights."""
    packages: dict[str, str]
    sha256: dict[str, str]


class Import(Protocol):
    """A checkpoint whose weights are loaded, as its kind of model is exported.

    All raise `CheckpointError` for what cannot be exported.
    """

    def config(self, name: str) -> str:
        """The config.pbtxt of a model of that name."""
        ...

    def export(self, destination: Path) -> None:
        """Write what a version needs to be served into a directory."""
        ...

    def prove(self, directory: Path) -> ParityReport:
        """Compare what is there with the model."""
        ...


class TextImport:
    """Of a model that generates text from text."""

    def __init__(self, checkpoint: Path, model: Model, task: str):
        self._checkpoint = checkpoint
        self._model = model
        self._task = task
        self._tokenizer = read_tokenizer(checkpoint, model)

    def config(self, name: str) -> str:
        return config_text(name, self._task)

    def export(self, destination: Path) -> None:
        export_loaded(self._model, self._checkpoint, destination)

    def prove(self, directory: Path) -> ParityReport:
        return prove(directory, self._model, [self._tokenizer.encode(text) for text in _PROMPTS])


class Wav2Vec2Import:
    def __init__(self, checkpoint: Path, model: Wav2Vec2ForCTC):
        wav2vec2.check_architecture(checkpoint, model.config)
        self._checkpoint = checkpoint
        self._model = model
        self._preprocessing = wav2vec2.Preprocessing.load(checkpoint)

    def config(self, name: str) -> str:
        return wav2vec2.config_text(name, self._model)

    def export(self, destination: Path) -> None:
        wav2vec2.export(self._model, self._checkpoint, self._preprocessing, destination)

    def prove(self, directory: Path) -> ParityReport:
        return wav2vec2_proof.prove(directory, self._model, self._preprocessing)


class WhisperImport:
    def __init__(self, checkpoint: Path, model: WhisperForConditionalGeneration):
        self._checkpoint = checkpoint
        self._model = model
        self._extractor = whisper.load_extractor(checkpoint, model)
        read_tokenizer(checkpoint, model)

    def config(self, name: str) -> str:
        return whisper.config_text(name, self._model)

    def export(self, destination: Path) -> None:
        whisper.export(self._model, self._checkpoint, self._extractor, destination)

    def prove(self, directory: Path) -> ParityReport:
        return whisper_proof.prove(directory, self._model, self._extractor)


def _opened(checkpoint: Path, model: PreTrainedModel, task: str) -> Import:
    if isinstance(model, Wav2Vec2ForCTC):
        return Wav2Vec2Import(checkpoint, model)
    if isinstance(model, WhisperForConditionalGeneration):
        return WhisperImport(checkpoint, model)
    assert isinstance(model, Model), "every architecture has its import. This is a bug."
    return TextImport(checkpoint, model, task)


def import_checkpoint(
    checkpoint: Path, repository: Path, name: str | None, task: str | None
) -> tuple[Path, ParityReport]:
    """Export, compare with torch, and publish; returns the new version directory and the proof.

    `name` is the model's, by default the checkpoint directory's; `task` is only checked. Raises
    `CheckpointError` for what cannot be exported, `ParityError` when the graphs do not compute what
    torch does, and `PublishRefused` when callers of the model were promised something else.
    """
    architecture = architecture_of(checkpoint)
    if task not in (None, architecture.task):
        raise CheckpointError(
            f"{checkpoint}: {architecture.name} is for the task {architecture.task}, not {task}"
        )
    name = name or checkpoint.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise PublishRefused(
            f"{name!r} is no name for a model: expected letters, digits, '-' and '_';"
            " choose one with --name"
        )
    directory = repository / name
    opened = _opened(checkpoint, load_model(checkpoint), architecture.task)
    config = opened.config(name)
    if (directory / CONFIG_FILE).exists():
        keep_promise(directory, config)
    # In the repository, so that a rename brings it to its place; hidden, so that no server looks.
    with durable.staged_directory(repository) as staged:
        opened.export(staged)
        parity = opened.prove(staged)
        parity.require()
        parity.save(staged / PARITY_FILE)
        (staged / CARD_FILE).write_text(
            _card(name, checkpoint, architecture, parity), encoding="utf-8"
        )
        Manifest(
            task=architecture.task,
            precision=parity.precision,
            architecture=architecture.name,
            checkpoint=checkpoint.resolve().name,
            weights={
                path.name: sha256_hex(path.read_bytes())
                for path in sorted(checkpoint.glob(WEIGHTS))
            },
            packages={package: version(package) for package in PACKAGES},
            sha256={path.name: sha256_hex(path.read_bytes()) for path in sorted(staged.iterdir())},
        ).save(staged / MANIFEST_FILE)
        directory.mkdir(exist_ok=True)
        promise(directory, config)
        return take_next_version(directory, staged), parity


def _card(name: str, checkpoint: Path, architecture: Architecture, parity: ParityReport) -> str:
    return f"""\
# {name}

{architecture.name}, for the task `{architecture.task}`, imported from the checkpoint
`{checkpoint.resolve().name}` as it is: what it was trained on and how good it is, its makers know.

    slipway import {checkpoint.resolve().name} --name {name} --model-repository DIR

The exported graphs were compared with torch:

{parity_table(parity)}
"""
