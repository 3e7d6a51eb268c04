"""Put somebody's checkpoint into a model repository: the same export and the same proof as ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    Model,
    architecture_of,
    load_model,
)
from training.graphs.export import export_loaded
from training.graphs.promise import config_text
from training.graphs.proof import prove
from training.graphs.tokenizers import read_tokenizer
from training.parity import ParityReport
from training.pipelines import proof as pipeline_proof
from training.pipelines.index import MODEL_INDEX_FILE, Index
from training.pipelines.pipeline import Pipeline
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
    """File, in that directory -> sha256 of the checkpoint's weights."""
    packages: dict[str, str]
    sha256: dict[str, str]


class Import(Protocol):
    """A checkpoint whose weights are loaded, as its kind of model is exported.

    All raise `CheckpointError` for what cannot be exported.
    """

    @property
    def remarks(self) -> Sequence[str]:
        """Sentences on what is inside, and what is not."""
        ...

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

    remarks = ()

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
    remarks = ()

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
    remarks = ()

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


class PipelineImport:
    """Of a model that draws."""

    def __init__(self, index: Index):
        self._pipeline = Pipeline.load(index)
        self.remarks = self._pipeline.remarks()

    def config(self, name: str) -> str:
        return self._pipeline.config_text(name)

    def export(self, destination: Path) -> None:
        self._pipeline.export(destination)

    def prove(self, directory: Path) -> ParityReport:
        return pipeline_proof.prove(directory, self._pipeline)


@dataclass(frozen=True)
class Recognized:
    """What a directory holds; `open` reads its weights, in which nothing has looked yet."""

    architecture: str
    task: str
    weights: Sequence[Path]
    packages: tuple[str, ...]
    open: Callable[[], Import]


def recognize(checkpoint: Path) -> Recognized:
    """Look at a directory's files. Raises `CheckpointError` if it cannot be exported."""
    if (checkpoint / MODEL_INDEX_FILE).exists():
        index = Index.load(checkpoint)
        return Recognized(
            index.kind.name,
            index.kind.task,
            index.weights(),
            (*PACKAGES, "diffusers"),
            lambda: PipelineImport(index),
        )
    architecture = architecture_of(checkpoint)
    return Recognized(
        architecture.name,
        architecture.task,
        sorted(checkpoint.glob(WEIGHTS)),
        PACKAGES,
        lambda: _opened(checkpoint, load_model(checkpoint), architecture.task),
    )


def _opened(checkpoint: Path, model: PreTrainedModel, task: str) -> Import:
    if isinstance(model, Wav2Vec2ForCTC):
        return Wav2Vec2Import(checkpoint, model)
    if isinstance(model, WhisperForConditionalGeneration):
        return WhisperImport(checkpoint, model)
    assert isinstance(model, Model), "every architecture has its import. This is a bug."
    return TextImport(checkpoint, model, task)


@dataclass(frozen=True)
class Imported:
    version: Path
    """Its directory."""
    parity: ParityReport
    remarks: Sequence[str]


def import_checkpoint(
    checkpoint: Path, repository: Path, name: str | None, task: str | None
) -> Imported:
    """Export, compare with torch, and publish.

    `name` is the model's, by default the checkpoint directory's; `task` is only checked. Raises
    `CheckpointError` for what cannot be exported, `ParityError` when the graphs do not compute what
    torch does, and `PublishRefused` when callers of the model were promised something else.
    """
    found = recognize(checkpoint)
    if task not in (None, found.task):
        raise CheckpointError(
            f"{checkpoint}: {found.architecture} is for the task {found.task}, not {task}"
        )
    name = name or checkpoint.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise PublishRefused(
            f"{name!r} is no name for a model: expected letters, digits, '-' and '_';"
            " choose one with --name"
        )
    directory = repository / name
    opened = found.open()
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
            _card(name, checkpoint, found, opened.remarks, parity), encoding="utf-8"
        )
        Manifest(
            task=found.task,
            precision=parity.precision,
            architecture=found.architecture,
            checkpoint=checkpoint.resolve().name,
            weights={
                path.relative_to(checkpoint).as_posix(): sha256_hex(path.read_bytes())
                for path in found.weights
            },
            packages={package: version(package) for package in found.packages},
            sha256={path.name: sha256_hex(path.read_bytes()) for path in sorted(staged.iterdir())},
        ).save(staged / MANIFEST_FILE)
        directory.mkdir(exist_ok=True)
        promise(directory, config)
        return Imported(take_next_version(directory, staged), parity, opened.remarks)


def _card(
    name: str, checkpoint: Path, found: Recognized, remarks: Sequence[str], parity: ParityReport
) -> str:
    inside = "".join(f"{remark}\n" for remark in remarks)
    return f"""\
# {name}

{found.architecture}, for the task `{found.task}`, imported from the checkpoint
`{checkpoint.resolve().name}` as it is: what it was trained on and how good it is, its makers know.
{inside}
    slipway import {checkpoint.resolve().name} --name {name} --model-repository DIR

The exported graphs were compared with torch:

{parity_table(parity)}
"""
