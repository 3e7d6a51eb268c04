"""The text that every Python brings along: the sources of its own modules."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LARGEST = 128 * 1024
"""Bytes of a file that is taken; larger ones would outweigh the others, and some are tables."""

_SKIPPED_DIRECTORIES = {
    # Installed beside it, or carried inside.
    *("site-packages", "dist-packages", "ensurepip"),
    *("test", "tests", "idlelib", "lib2to3", "turtledemo", "__phello__"),
    # Tables rather than text.
    *("encodings", "pydoc_data"),
}
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata")
"""Of files and directories that say how this very Python was built."""


def python_version() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"


def read_standard_library() -> Iterator[str]:
    """In the order of their names."""
    for path in _paths(standard_library_directory()):
        content = path.read_bytes()
        if not content.strip() or len(content) > LARGEST:
            continue
        try:
            yield content.decode()
        except UnicodeDecodeError:
            # Says in its first line which other encoding it has.
            continue


def standard_library_directory() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _paths(directory: Path) -> list[Path]:
    return sorted(
        path
        for path in directory.rglob("*.py")
        if not any(
            part in _SKIPPED_DIRECTORIES or part.startswith(_SKIPPED_PREFIXES)
            for part in path.relative_to(directory).parts
        )
    )
