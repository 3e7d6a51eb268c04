"""A model repository on disk, in Triton's layout.

<repository>/<model>/config.pbtxt
<repository>/<model>/<version>/model.onnx, and what the model's task needs beside it
<repository>/<model>/<version>/manifest.json   sha256 of each file, when Slipway published it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.config import ModelConfig
from serving.errors import ConfigError, ModelLoadError, OperatorError
from serving.pbtxt import CONFIG_FILE, read_config

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class ModelVersion:
    """One version directory that is to be served."""

    config: ModelConfig
    version: int
    directory: Path


@dataclass(frozen=True)
class BrokenModel:
    """A model directory that cannot be served, and why."""

    name: str
    error: OperatorError


def scan(root: Path) -> list[ModelVersion | BrokenModel]:
    """Every model of a repository, in the order of names, with the versions its policy chooses.

    Raises `OperatorError` when there is no repository at `root`. A broken model does not raise.
    """
    if not root.is_dir():
        raise OperatorError(f"{root}: no such directory, and a model repository is expected there")
    found: list[ModelVersion | BrokenModel] = []
    for directory in sorted(root.iterdir()):
        if directory.is_dir() and not directory.name.startswith("."):
            try:
                found.extend(_versions(directory))
            except OperatorError as error:
                found.append(BrokenModel(directory.name, error))
            except OSError as error:
                reason = f"{directory}: cannot be read: {error.strerror}"
                found.append(BrokenModel(directory.name, ModelLoadError(reason)))
    return found


def verify_checksums(directory: Path) -> None:
    """Compare a version's files with its manifest, if it has one.

    Raises `ModelLoadError` naming the first file that is missing or differs.
    """
    manifest = directory / MANIFEST_FILE
    if not manifest.exists():
        return
    try:
        recorded: dict[str, str] = json.loads(manifest.read_text())["sha256"]
        entries = sorted((directory / name, str(digest)) for name, digest in recorded.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{manifest}: unusable manifest: {error!r}") from error
    for path, expected in entries:
        try:
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{path}: the manifest lists it: {error}") from error
        if actual != expected:
            raise ModelLoadError(
                f"{path}: damaged or changed since it was published:"
                f" sha256 is {actual[:12]}…, {MANIFEST_FILE} says {expected[:12]}…"
            )


def _versions(directory: Path) -> Iterator[ModelVersion]:
    path = directory / CONFIG_FILE
    if not path.exists():
        raise ConfigError(f"{path}: no such file, and every model needs one")
    config = read_config(path)
    for name in config.label_files.values():
        if not (directory / name).is_file():
            raise ConfigError(f"{path}: label_filename {name!r} does not exist")
    available = [
        int(child.name)
        for child in directory.iterdir()
        if child.is_dir() and child.name.isdecimal() and not child.name.startswith("0")
    ]
    chosen = config.version_policy.choose(available)
    if not chosen:
        raise ModelLoadError(f"{directory}: no version directory; expected one named 1, 2, …")
    for version in chosen:
        if version not in available:
            raise ConfigError(f"{path}: version_policy asks for version {version}, which is absent")
        yield ModelVersion(config, version, directory / str(version))
