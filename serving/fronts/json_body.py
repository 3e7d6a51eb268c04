"""The JSON that callers send, read with errors that name the field, what was expected and got."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson

from serving.errors import Malformed, shown

T = TypeVar("T")

_TYPES: Mapping[type, str] = {str: "a string", int: "an integer", bool: "true or false"}


def parse(text: bytes | memoryview) -> object:
    """Any JSON, and the bare tokens NaN and Infinity, which the protocol's clients write."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        text = bytes(text)
        if b"NaN" in text or b"Infinity" in text:
            try:
                document: object = json.loads(text)
                # Refuses what orjson would not have read: lone surrogates, huge integers.
                orjson.dumps(document)
                return document
            except (ValueError, TypeError, RecursionError):
                pass
        raise Malformed(f"failed to parse the request JSON buffer: {error}") from None


def parse_object(text: bytes | memoryview) -> dict[str, Any]:
    return as_object("the request", parse(text))


def parse_optional(text: bytes) -> dict[str, Any]:
    """The object in a body that may be left out."""
    return parse_object(text) if text.strip() else {}


def as_object(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{where} must be a JSON object, got {shown(value)}")
    return value


def as_list(where: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise Malformed(f"{where} must be an array, got {shown(value)}")
    return value


def required(where: str, document: Mapping[str, Any], key: str) -> object:
    if key not in document:
        raise Malformed(f"{where} has no {key!r}, which is required")
    return document[key]


def field(where: str, document: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """A required field of exactly that type: true is no integer."""
    value = required(where, document, key)
    if type(value) is not kind:
        raise Malformed(f"{where}.{key} must be {_TYPES[kind]}, got {shown(value)}")
    return value


def optional(where: str, document: Mapping[str, Any], key: str, default: T) -> T:
    """A field of the default's type, or the default."""
    return field(where, document, key, type(default)) if key in document else default
