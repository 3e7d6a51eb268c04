"""Model repositories on disk, in Triton's layout.

<repository>/<model>/config.pbtxt
<repository>/<model>/<version>/model.onnx, and what the model's task needs beside it
<repository>/<model>/<version>/manifest.json   sha256 of each file, when Slipway published it
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.config import ModelConfig
from serving.errors import ConfigError, ModelLoadError, OperatorError
from serving.pbtxt import read_config

MANIFEST_FILE = "manifest.json"
_LAST_VERSION = 2**63 - 1  # what the protocol and config.pbtxt can name

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Path, inode, size and time of change of everything under a directory."""


class NotThere(ModelLoadError):
    """No model repository has a directory of that name."""


@dataclass(frozen=True)
class ModelVersion:
    """One version directory that is to be served. Equal to another if nothing has changed."""

    config: ModelConfig
    version: int
    directory: Path
    files: Fingerprint


class Repositories:
    """The model directories below one or several roots."""

    def __init__(self, roots: Sequence[Path]):
        self.roots = [root.resolve() for root in roots]

    def check(self) -> None:
        """Raises `OperatorError` for a root that is no directory."""
        for root in self.roots:
            if not root.is_dir():
                raise OperatorError(
                    f"{root}: no such directory, and a model repository is expected there"
                )

    def names(self) -> list[str]:
        """Every model there is, loadable or not, in order. Raises `OSError`."""
        return sorted(set(self._list()))

    def contains(self, name: str) -> bool:
        """Whether there is a directory of that name, loadable or not."""
        return bool(self._directories(name))

    def find(self, name: str) -> Path:
        """A model's directory. Raises `NotThere`, or `ModelLoadError` if there is more than one."""
        found = self._directories(name)
        if not found:
            raise NotThere(f"model {name!r} is in no model repository")
        if len(found) > 1:
            raise ModelLoadError(
                f"model {name!r} is in several model repositories: {', '.join(map(str, found))}"
            )
        return found[0]

    def read(self, name: str) -> list[ModelVersion]:
        """The versions of a model that are to be served. Raises `OperatorError` or `OSError`."""
        directory = self.find(name)
        return versions(directory, read_config(directory))

    def fingerprints(self) -> dict[str, Fingerprint]:
        """What every model's directories hold at this moment. Raises `OSError`."""
        return {
            name: tuple(item for path in self._directories(name) for item in fingerprint(path))
            for name in self.names()
        }

    def _list(self) -> Iterator[str]:
        for root in self.roots:
            with os.scandir(root) as entries:
                # Hidden ones are on their way in or out, and no caller could name the others.
                yield from (
                    entry.name
                    for entry in entries
                    if entry.is_dir() and not entry.name.startswith(".") and _is_text(entry.name)
                )

    def _directories(self, name: str) -> list[Path]:
        return [root / name for root in self.roots if os.path.isdir(root / name)]


def versions(directory: Path, config: ModelConfig) -> list[ModelVersion]:
    """The versions that a model's policy chooses.

    Raises `OperatorError` if there is none, or one that the config asks for is absent.
    """
    available = [
        int(child.name)
        for child in directory.iterdir()
        if child.is_dir()
        and child.name.isascii()
        and child.name.isdecimal()
        and not child.name.startswith("0")
        and int(child.name) <= _LAST_VERSION
    ]
    chosen = config.version_policy.choose(available)
    if not chosen:
        ensemble = "; an ensemble needs one too, which may be empty" if config.steps else ""
        raise ModelLoadError(f"{directory}: no version directory, such as 1{ensemble}")
    for version in chosen:
        if version not in available:
            raise ConfigError(
                f"{directory}/config.pbtxt: version_policy asks for version {version},"
                " which is absent"
            )
    return [
        ModelVersion(
            config, version, directory / str(version), fingerprint(directory / str(version))
        )
        for version in chosen
    ]


def fingerprint(directory: Path) -> Fingerprint:
    """What would differ if anything below `directory` had been added, replaced or changed."""
    found = []
    seen = set()
    for path, directories, files in os.walk(directory, followlinks=True):
        for name in (*directories, *files):
            try:
                status = os.stat(os.path.join(path, name))
            except OSError:  # gone since it was listed, or a link to nothing
                continue
            relative = os.path.relpath(os.path.join(path, name), directory)
            # A directory's own size and time also change with files that do not count.
            is_file = name not in directories
            change = (status.st_size, status.st_mtime_ns) if is_file else (0, 0)
            found.append((relative, status.st_ino, *change))
            if not is_file and (status.st_dev, status.st_ino) in seen:
                directories.remove(name)  # links may go round in circles
            seen.add((status.st_dev, status.st_ino))
    return tuple(sorted(found))


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


def _is_text(name: str) -> bool:
    """Whether a file name is UTF-8; bytes that are not are lone surrogates in Python."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
