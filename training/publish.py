"""Put an exported model into a model repository as its next version.

A version appears by one rename, complete: no server ever sees a part of it. Publishers that race
get different version numbers.
"""

from __future__ import annotations

import re
import shutil
from importlib.metadata import version
from pathlib import Path

from serving.pbtxt import CONFIG_FILE, read_config
from serving.tasks.image_classification import INPUT, LABELS_FILE, OUTPUT
from serving.types import DYNAMIC, TensorSpec
from training import durable
from training.card import CURVES_FILE, Publication, model_card
from training.checkpoint import CONFIG_FILE as CHECKPOINT_CONFIG_FILE
from training.data import sha256_hex
from training.errors import ParityError, PublishRefused
from training.models.image_classifier import ImageClassifierConfig
from training.recipe import Recipe
from training.record import Record
from training.report import Pictures, Report
from training.runs import FLOAT32, GRAPH_FILE, INT8, PARITY_FILE, RunDirectory, shown
from training.verify import HELD_OUT_ACCURACY, MAX_BATCH_SIZE, ParityReport, hash_files

MANIFEST_FILE = "manifest.json"
CARD_FILE = "README.md"
PACKAGES = (
    "slipway",
    "torch",
    "lightning-fabric",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pillow",
    "safetensors",
    "scikit-learn",
)


class Metrics(Record):
    held_out_accuracy: float
    """Of the published graph, in the engine that serves it."""
    validation_accuracy: float
    baseline_held_out_accuracy: float | None


class Manifest(Record):
    """Where a version comes from, and what its files must hash to."""

    format: int = 1
    task: str
    precision: str
    recipe: Recipe
    seed: int
    data_hash: str
    split_hash: str
    pictures: Pictures
    metrics: Metrics
    packages: dict[str, str]
    sha256: dict[str, str]


def publish(run: RunDirectory, repository: Path, name: str | None, precision: str) -> Path:
    """Publish a run's export; returns the new version directory.

    `name` is the model's, by default the recipe's. Raises `PublishRefused` when the export is not
    proven, was changed since, or does not fit what the model's config.pbtxt promises to callers.
    """
    recipe, origin = run.load()
    export = run.export(precision)
    parity = _proven(run, precision)
    report = Report.load(run.report)
    if report.held_out.accuracy < recipe.acceptance.accuracy:
        raise PublishRefused(
            f"{run.path}: held-out accuracy {report.held_out.accuracy:.4f} is below"
            f" acceptance.accuracy {recipe.acceptance.accuracy}; train a better model"
        )
    name = name or recipe.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise PublishRefused(
            f"{name!r} is no name for a model: expected letters, digits, '-' and '_'"
        )
    publication = Publication(
        name=name,
        precision=precision,
        recipe=recipe,
        report=report,
        parity=parity,
        commands=_commands(run, origin.command, repository, name, precision),
    )
    network = ImageClassifierConfig.load(run.checkpoint / CHECKPOINT_CONFIG_FILE)
    model = repository / name
    model.mkdir(parents=True, exist_ok=True)
    _promise(model, network, export)
    with durable.staged_directory(model) as staged:
        for path in export.iterdir():
            shutil.copyfile(path, staged / path.name)
        shutil.copyfile(run.curves, staged / CURVES_FILE)
        (staged / CARD_FILE).write_text(model_card(publication), encoding="utf-8")
        manifest = Manifest(
            task=recipe.task,
            precision=precision,
            recipe=recipe,
            seed=recipe.seed,
            data_hash=origin.data_hash,
            split_hash=origin.split_hash,
            pictures=report.pictures,
            metrics=Metrics(
                held_out_accuracy=parity.measurements[HELD_OUT_ACCURACY],
                validation_accuracy=report.validation_accuracy,
                baseline_held_out_accuracy=(
                    report.baseline.held_out_accuracy if report.baseline else None
                ),
            ),
            packages={package: version(package) for package in PACKAGES},
            sha256={path.name: sha256_hex(path.read_bytes()) for path in sorted(staged.iterdir())},
        )
        manifest.save(staged / MANIFEST_FILE)
        return take_next_version(model, staged)


def _proven(run: RunDirectory, precision: str) -> ParityReport:
    """The parity report of an export, if it passed and speaks of the files that are there."""
    directory = run.export(precision)
    command = f"slipway {'export' if precision == FLOAT32 else 'quantize'} {run.path}"
    if not (directory / PARITY_FILE).exists():
        raise PublishRefused(
            f"{run.path} has no {precision} export with a parity report: run {command} first"
        )
    parity = ParityReport.load(directory / PARITY_FILE)
    try:
        parity.require()
    except ParityError as error:
        raise PublishRefused(f"{run.path}: {error}") from None
    there = hash_files(directory)
    for file in sorted(parity.files.keys() | there.keys()):
        if parity.files.get(file) != there.get(file):
            raise PublishRefused(
                f"{directory / file} is not what the parity report speaks of: run {command} again"
            )
    return parity


def _commands(
    run: RunDirectory, train: str, repository: Path, name: str, precision: str
) -> tuple[str, ...]:
    """What makes this version again, in order."""
    path = shown(run.path)
    return (
        train,
        f"slipway export {path}",
        *([f"slipway quantize {path}"] if precision == INT8 else []),
        f"slipway publish {path} --model-repository {shown(repository)}"
        f" --name {name} --precision {precision}",
    )


def _promise(model: Path, network: ImageClassifierConfig, export: Path) -> None:
    """Write the model's config.pbtxt if this is its first version; otherwise keep its promise.

    Callers know a model by its inputs, outputs and labels, whatever version answers.
    """
    labels = (export / LABELS_FILE).read_text(encoding="utf-8")
    config_path = model / CONFIG_FILE
    if not config_path.exists():
        # Labels first: a config must not name a file that is not there yet.
        durable.write_new(model / LABELS_FILE, labels)
        durable.write_new(config_path, _config_text(model.name, network))
    # Also after writing: another first publisher may have been faster, with another model.
    config = read_config(model)
    _check_tensors(config_path, "input", config.inputs, _input(network))
    _check_tensors(config_path, "output", config.outputs, _output(network))
    if config.backend != "onnxruntime":
        raise PublishRefused(
            f"{config_path}: backend is {config.backend!r}, and this version needs 'onnxruntime'"
        )
    if config.model_filename != GRAPH_FILE:
        raise PublishRefused(
            f"{config_path}: default_model_filename is {config.model_filename!r},"
            f" and this version has {GRAPH_FILE!r}"
        )
    if config.max_batch_size > MAX_BATCH_SIZE:
        raise PublishRefused(
            f"{config_path}: max_batch_size is {config.max_batch_size},"
            f" and the export is proven up to {MAX_BATCH_SIZE}"
        )
    for output, promised in config.labels.items():
        if promised != tuple(labels.splitlines()):
            raise PublishRefused(
                f"{config_path}: the labels of {output!r} are others than this version's:"
                " publish it as another model with --name"
            )


def _check_tensors(
    path: Path, kind: str, promised: tuple[TensorSpec, ...], offered: TensorSpec
) -> None:
    if promised != (offered,):
        raise PublishRefused(
            f"{path} promises the {kind} {_describe(*promised)} and this version has"
            f" {_describe(offered)}: publish it as another model with --name"
        )


def _describe(*tensors: TensorSpec) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in tensors)


def _input(network: ImageClassifierConfig) -> TensorSpec:
    return TensorSpec(INPUT, "UINT8", (DYNAMIC, network.channels, network.height, network.width))


def _output(network: ImageClassifierConfig) -> TensorSpec:
    return TensorSpec(OUTPUT, "FP32", (DYNAMIC, network.classes))


def _config_text(name: str, network: ImageClassifierConfig) -> str:
    return f"""\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH_SIZE}
input {{
  name: "{INPUT}"
  data_type: TYPE_UINT8
  dims: [ {network.channels}, {network.height}, {network.width} ]
}}
output {{
  name: "{OUTPUT}"
  data_type: TYPE_FP32
  dims: [ {network.classes} ]
  label_filename: "{LABELS_FILE}"
}}
dynamic_batching {{
  max_queue_delay_microseconds: 2000
}}
parameters {{
  key: "task"
  value {{ string_value: "image_classification" }}
}}
"""


def take_next_version(model: Path, staged: Path) -> Path:
    """Move a complete version to the first free number after the highest one."""
    while True:
        versions = [int(path.name) for path in model.iterdir() if path.name.isdecimal()]
        directory = model / str(max(versions, default=0) + 1)
        try:
            durable.move_into_place(staged, directory)
        except FileExistsError:
            continue  # another publisher took this number
        return directory
