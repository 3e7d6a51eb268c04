"""Put an exported model into a model repository as its next version.

A version appears by one rename, complete: no server ever sees a part of it. Publishers that race
get different version numbers.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from pydantic import SerializeAsAny

from training import durable
from training.errors import ParityError, PublishRefused
from training.parity import ParityReport, hash_files
from training.recipe import Recipe
from training.record import Record
from training.runs import CURVES_FILE, FLOAT32, INT8, PARITY_FILE, RunDirectory, shown
from training.split import sha256_hex
from training.tasks import find_task
from training.workload import Examples, Report

MANIFEST_FILE = "manifest.json"
CARD_FILE = "README.md"
PACKAGES = (
    *("slipway", "torch", "lightning-fabric", "numpy", "onnx", "onnxruntime", "onnxscript"),
    "safetensors",
)


class Publication(Protocol):
    """A finished run, as its task publishes it."""

    @property
    def report(self) -> Report: ...

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """For the manifest."""
        ...

    @property
    def packages(self) -> tuple[str, ...]:
        """Those whose versions the manifest names, besides `PACKAGES`."""
        ...

    def require_quality(self) -> None:
        """Raises `PublishRefused` when the model is below what its recipe accepts."""
        ...

    def promise(self, model: Path) -> None:
        """Write the model's config.pbtxt if this is its first version; otherwise keep its promise.

        Callers know a model by its interface, whatever version answers. Raises `PublishRefused`
        when this version has another.
        """
        ...

    def card(self, name: str, commands: Sequence[str]) -> str:
        """Markdown; `commands` are what makes this version again."""
        ...


class Manifest(Record):
    """Where a version comes from, and what its files must hash to."""

    format: int = 2
    task: str
    precision: str
    recipe: SerializeAsAny[Recipe]
    seed: int
    data_hash: str
    split_hash: str
    examples: Examples
    metrics: dict[str, float | None]
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
    publication = find_task(recipe.task).publication(run, recipe, precision, parity)
    publication.require_quality()
    name = name or recipe.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise PublishRefused(
            f"{name!r} is no name for a model: expected letters, digits, '-' and '_'"
        )
    commands = _commands(run, origin.command, repository, name, precision)
    model = repository / name
    model.mkdir(parents=True, exist_ok=True)
    publication.promise(model)
    with durable.staged_directory(model) as staged:
        for path in export.iterdir():
            shutil.copyfile(path, staged / path.name)
        shutil.copyfile(run.curves, staged / CURVES_FILE)
        (staged / CARD_FILE).write_text(publication.card(name, commands), encoding="utf-8")
        manifest = Manifest(
            task=recipe.task,
            precision=precision,
            recipe=recipe,
            seed=recipe.seed,
            data_hash=origin.data_hash,
            split_hash=origin.split_hash,
            examples=publication.report.examples,
            metrics=dict(publication.metrics),
            packages={package: version(package) for package in (*PACKAGES, *publication.packages)},
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
