"""The files of a model directory that its configuration names, and no others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from serving.errors import ConfigError, shown
from serving.pbtxt.source import Source
from serving.types import NUMPY_TYPES

MAX_LABEL_BYTES = 10_000_000
MAX_TENSOR_BYTES = (1 << 31) - 1
"""What a protobuf message could carry, and so as large as a tensor of any caller."""


def version_directories(directory: Path) -> list[Path]:
    """The directories of a model's versions. Raises `ConfigError` if they cannot be listed."""
    try:
        return [
            child
            for child in directory.iterdir()
            if child.name.isascii()
            and child.name.isdecimal()
            and not child.name.startswith("0")
            and child.is_dir()
        ]
    except OSError as error:
        raise ConfigError(
            f"the directory of model {directory.name!r} cannot be read: {error.strerror}"
        ) from error


def check_model_filename(source: Source, name: str, directory: Path, filename: str) -> None:
    """Raises `ConfigError` for a file that is not inside each version, or at least the model."""
    _check_relative(source, name, filename)
    for version in version_directories(directory):
        try:
            path = (version / filename).resolve()
            inside = any(path.is_relative_to(root.resolve()) for root in (version, directory))
        except (OSError, ValueError, RuntimeError) as error:
            raise source.error(name, f"cannot be followed: {shown(filename)}") from error
        if not inside:
            raise _escapes(source, name, filename)


def read_labels(source: Source, name: str, directory: Path, filename: str) -> tuple[str, ...]:
    """The lines of a label file.

    Raises `ConfigError` if it is outside of `directory`, missing, too long or not UTF-8.
    """
    content = _read(source, name, directory, "", filename, MAX_LABEL_BYTES + 1)
    if len(content) > MAX_LABEL_BYTES:
        raise source.error(name, f"is longer than {MAX_LABEL_BYTES} bytes: {shown(filename)}")
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise source.error(name, f"is not UTF-8: {shown(filename)}") from error
    if not lines[-1]:
        lines.pop()
    return tuple(line.removesuffix("\r") for line in lines)


def read_tensor(
    source: Source,
    name: str,
    directory: Path,
    folder: str,
    filename: str,
    datatype: str,
    shape: Sequence[int],
) -> bytes:
    """A tensor's raw bytes, from `folder` of the model directory.

    What a file has beyond them is of no account, as in Triton. Raises `ConfigError` if the file is
    outside of `directory` or missing, or has less than the shape asks for.
    """
    elements = math.prod(shape)
    if datatype == "BYTES":
        content = _read(source, name, directory, folder, filename, MAX_TENSOR_BYTES)
        if _strings(content) != elements:
            raise source.error(
                name,
                f"must hold {elements} strings, each after its length in 4 bytes:"
                f" {shown(filename)} does not",
            )
        return content
    size = elements * NUMPY_TYPES[datatype].itemsize
    content = _read(source, name, directory, folder, filename, size)
    if len(content) < size:
        raise source.error(
            name, f"must hold {size} bytes: {shown(filename)} has {len(content)} bytes"
        )
    return content


def check_tensor_size(
    source: Source, name: str, datatype: str, shape: Sequence[int], rows: int = 1
) -> None:
    """Raises `ConfigError` for a tensor that no caller could send either."""
    itemsize = 4 if datatype == "BYTES" else NUMPY_TYPES[datatype].itemsize
    size = math.prod(shape) * rows * itemsize
    if size > MAX_TENSOR_BYTES:
        raise source.error(
            name, f"must make a tensor of at most {MAX_TENSOR_BYTES} bytes, got {size}"
        )


def _read(
    source: Source, name: str, directory: Path, folder: str, filename: str, limit: int
) -> bytes:
    _check_relative(source, name, filename)
    try:
        path = (directory / folder / filename).resolve(strict=True)
        inside = path.is_relative_to(directory.resolve())
        if inside and path.is_file():
            with path.open("rb") as file:
                return file.read(limit)
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "it is no path"
        raise source.error(name, f"cannot be read: {shown(filename)}: {reason}") from error
    if not inside:
        raise _escapes(source, name, filename)
    raise source.error(name, f"must be a file: {shown(filename)} is none")


def _check_relative(source: Source, name: str, filename: str) -> None:
    path = PurePosixPath(filename)
    if not filename or "\0" in filename or ".." in path.parts or path.is_absolute():
        raise _escapes(source, name, filename)


def _escapes(source: Source, name: str, filename: str) -> ConfigError:
    return source.error(name, f"must stay inside the model directory, got {shown(filename)}")


def _strings(content: bytes) -> int:
    """How many strings there are, each after its length; -1 if the last one is incomplete."""
    count = position = 0
    while position < len(content):
        position += 4 + int.from_bytes(content[position : position + 4], "little")
        count += 1
    return count if position == len(content) else -1
