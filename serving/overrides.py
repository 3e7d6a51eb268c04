"""What a load call puts in the place of a repository's files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.errors import ModelLoadError, shown
from serving.pbtxt import read_config, read_override
from serving.repository import ModelVersion, Repositories, versions

_LONGEST_NAME = 255  # bytes of one part of a path, on every file system that matters


@dataclass(frozen=True, slots=True)
class Overrides:
    """A config as JSON, and files by "<version>/<name>".

    With any file, none of the repository's is used.
    """

    config: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


class Source:
    """Where a model is read from: the repositories, or what a call has put in their place.

    Its methods touch the disk.
    """

    def __init__(self, repositories: Repositories, name: str, overrides: Overrides | None):
        self._repositories = repositories
        self._name = name
        self._overrides = overrides or Overrides()
        self._scratch: Path | None = None

    def read(self) -> list[ModelVersion]:
        """The versions that are to be served. Raises `OperatorError` or `OSError`."""
        config, files = self._overrides.config, self._overrides.files
        if files and config is None:
            raise ModelLoadError("files can be given only together with a config")
        directory = self._written(files) if files else self._repositories.find(self._name)
        chosen = read_config(directory) if config is None else read_override(config, directory)
        return versions(directory, chosen)

    def close(self) -> None:
        """Remove what was written. A loaded model has no need of it any more."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _written(self, files: Mapping[str, bytes]) -> Path:
        if self._scratch is None:
            contents = {tuple(_parts(name)): content for name, content in files.items()}
            scratch = Path(tempfile.mkdtemp(prefix="slipway-"))
            try:
                for parts, content in contents.items():
                    path = scratch.joinpath(self._name, *parts)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
            self._scratch = scratch
        return self._scratch / self._name


def _parts(name: str) -> list[str]:
    """Raises `ModelLoadError` for a name that is not "<version>/<path>" inside the model."""
    parts = name.split("/")
    plain = all(
        part not in ("", ".", "..") and len(part.encode(errors="replace")) <= _LONGEST_NAME
        for part in parts
    )
    if len(parts) < 2 or not plain or "\0" in name:
        raise ModelLoadError(
            f"file {shown(name)} must be named <version>/<file name>, inside the model"
        )
    return parts
