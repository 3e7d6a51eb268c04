"""The JSON files of a version directory that say what its graphs need to be used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from serving.errors import ModelLoadError, shown

if TYPE_CHECKING:
    from pydantic import BaseModel

S = TypeVar("S", bound="BaseModel")


def read_model_file(schema: type[S], path: Path) -> S:
    """Raises `ModelLoadError`, naming the file and the field."""
    from pydantic import ValidationError

    try:
        return schema.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        reason = first["msg"].removeprefix("Value error, ")
        raise ModelLoadError(f"{path}: {field}: {reason}, got {shown(first['input'])}") from error
