"""The JSON files of a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving.errors import ModelLoadError

CONFIG_FILE = "tokenizer_config.json"


def read_object(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object. Raises `ModelLoadError`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ModelLoadError(f"{path}: expected a JSON object")
    return document


def read_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, which may be missing."""
    path = directory / CONFIG_FILE
    return read_object(path) if path.exists() else {}


def special_token(config: dict[str, Any], name: str, default: str | None = None) -> str | None:
    """A token of tokenizer_config.json, which writes it as a string or as an object."""
    token = config.get(name, default)
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
