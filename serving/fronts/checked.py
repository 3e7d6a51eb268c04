"""Fields that a caller sent, held against their schema, and mistakes in them by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from serving.errors import InvalidRequest, shown

if TYPE_CHECKING:
    from pydantic import BaseModel

S = TypeVar("S", bound="BaseModel")


def about(field: str, message: str) -> InvalidRequest:
    """A mistake in a field."""
    error = InvalidRequest(f"{field}: {message}")
    error.field = field
    return error


def checked(schema: type[S], fields: Any, *where: str) -> S:
    """The fields, which are found at `where`. Raises `InvalidRequest` about the first mistake."""
    from pydantic import ValidationError

    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([*where, *map(str, first["loc"])])
        got = "" if first["type"] == "missing" else f", got {shown(first['input'])}"
        raise about(field, first["msg"] + got) from None
