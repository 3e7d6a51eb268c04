"""Reading a config's text, and replacing it whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from serving.errors import ConfigError, OperatorError


def read_text_file(path: Path) -> str:
    """Raises `ConfigError`."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; begin with one that says max_batch_size, then tune"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def replace_text_file(path: Path, old: str, new: str) -> None:
    """Put a new text in the place of the old one; who reads meanwhile gets the one or the other.

    Raises `OperatorError` if the file has changed since, or cannot be written.
    """
    path = path.resolve()  # a link stays one
    temporary = None
    try:
        if path.read_bytes() != old.encode():
            raise OperatorError(f"{path}: has changed since tuning began; nothing was written")
        # Beside it, so that it can take its place; hidden, so that no server reads it.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tune-", delete=False) as file:
            temporary = Path(file.name)
            file.write(new.encode())
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, temporary)
        temporary.replace(path)
    except OSError as error:
        raise OperatorError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Raises `OperatorError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"--out {path}: cannot be made: {error.strerror}") from error
