"""Files and directories that are there in full or not at all, whenever the process is killed.

Written under a temporary name, flushed to the disk, then renamed: a rename happens or does not.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".writing-"
"""Not a number, so in a model's directory Triton takes it for no version."""


def write(path: Path, content: str | bytes) -> None:
    """Replace one file."""
    temporary = _temporary(path.parent)
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        _flush(temporary)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def write_new(path: Path, content: str) -> bool:
    """Make one file unless it is there; whether we made it. Of several writers one succeeds."""
    temporary = _temporary(path.parent)
    try:
        temporary.write_text(content, encoding="utf-8")
        _flush(temporary)
        # Unlike a rename, a hard link refuses to replace what is there.
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)
    return True


@contextmanager
def staged_directory(parent: Path) -> Iterator[Path]:
    """A directory to fill and then to `move_into_place`; removed when the block fails."""
    temporary = _temporary(parent)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_into_place(staged: Path, path: Path) -> None:
    """Give a staged directory its name. Raises `FileExistsError` if another has the name."""
    for file in staged.rglob("*"):
        _flush(file)
    _flush(staged)
    try:
        # Refused by the system, also in a race, when another directory of that name has files.
        staged.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    _flush(path.parent)


def remove_leftovers(directory: Path) -> None:
    """Remove what a killed process left half written. Only for a directory with one writer."""
    for leftover in directory.glob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _temporary(parent: Path) -> Path:
    return parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
