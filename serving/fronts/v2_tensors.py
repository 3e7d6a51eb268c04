"""Tensors as protocol v2 writes them: JSON values, or raw bytes (little-endian, row-major).

Used by both v2 fronts. No function loops in Python over the elements of a numeric tensor.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import orjson

from serving.errors import InvalidRequest, shown
from serving.types import DATATYPES, NUMPY_TYPES, Array

Buffer = bytes | bytearray | memoryview

MAX_RANK = 64  # numpy's own limit
_LENGTH = struct.Struct("<I")


def check_spec(name: str, datatype: object, shape: object) -> tuple[str, tuple[int, ...]]:
    """Check what a caller declares of a tensor. Raises `InvalidRequest` naming the field."""
    if not isinstance(datatype, str) or datatype not in NUMPY_TYPES:
        raise InvalidRequest(
            f"invalid datatype for input {name!r}: expected one of {', '.join(NUMPY_TYPES)},"
            f" got {shown(datatype)}"
        )
    sizes = tuple(shape) if isinstance(shape, Iterable) and not isinstance(shape, str) else None
    if sizes is None or len(sizes) > MAX_RANK or not all(_is_size(size) for size in sizes):
        raise InvalidRequest(
            f"invalid shape for input {name!r}: expected a list of integers of 0 or more,"
            f" got {shown(shape) if sizes is None else _listed(sizes)}"
        )
    if math.prod(max(size, 1) for size in sizes) * NUMPY_TYPES[datatype].itemsize >= 2**63:
        raise InvalidRequest(f"invalid shape for input {name!r}: its byte size overflows")
    return datatype, sizes


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], raw: Buffer) -> Array:
    """A tensor over the bytes it came in, uncopied, except BYTES, whose elements are cut out."""
    if datatype == "BYTES":
        return _byte_strings(name, shape, raw)
    dtype = NUMPY_TYPES[datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise InvalidRequest(
            f"input byte size mismatch for input {name!r}: shape {list(shape)} of {datatype}"
            f" takes {expected} bytes, got {len(raw)}"
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def to_bytes(tensor: Array) -> Buffer:
    """The raw bytes of a tensor, uncopied where its memory is already in order."""
    if tensor.dtype != object:
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
    parts = bytearray()
    for element in tensor.flat:
        value: bytes = element
        parts += _LENGTH.pack(len(value))
        parts += value
    return parts


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Array:
    """A tensor from flat or nested JSON arrays; no value is rounded, wrapped or reinterpreted."""
    if not isinstance(data, list):
        raise InvalidRequest(
            f"data of input {name!r} must be an array, got {_JSON_NAMES[type(data)]}"
        )
    elements = _flattened(name, datatype, shape, data)
    if datatype == "BYTES":
        values = _object_array([element.encode() for element in elements])
    else:
        values = _numbers(name, datatype, elements)
    if values.size != math.prod(shape):
        raise InvalidRequest(
            f"data of input {name!r} has {values.size} elements,"
            f" but shape {list(shape)} takes {math.prod(shape)}"
        )
    return values.reshape(shape)


def to_json(name: str, tensor: Array) -> bytes:
    """The flat JSON array of a tensor's elements. Not-a-number and infinities are bare tokens."""
    flat = np.ascontiguousarray(tensor).reshape(-1)
    if flat.dtype == object:
        try:
            return orjson.dumps([element.decode() for element in flat])
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"output {name!r} holds bytes that are not UTF-8; ask for binary_data"
            ) from None
    if flat.dtype.kind == "f":
        if flat.dtype == np.float16:
            flat = flat.astype(np.float32)
        if not np.isfinite(flat).all():
            return json.dumps(flat.tolist()).encode()
    return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)


def _listed(sizes: tuple[object, ...]) -> str:
    more = ", …" if len(sizes) > 8 else ""
    return f"[{', '.join(map(shown, sizes[:8]))}{more}]"


def _is_size(size: object) -> bool:
    return type(size) is int and size >= 0


def _flattened(name: str, datatype: str, shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    """The innermost elements, all of types that the datatype takes."""
    most = math.prod(max(size, 1) for size in shape)
    kinds = set(map(type, data))
    while list in kinds and len(data) <= most:
        if len(kinds) > 1 or len(set(map(len, data))) > 1:
            raise InvalidRequest(f"data of input {name!r} is not a regular array")
        data = list(chain.from_iterable(data))
        kinds = set(map(type, data))
    if len(data) > most:
        raise InvalidRequest(
            f"data of input {name!r} has {len(data)} elements or more,"
            f" but shape {list(shape)} takes {math.prod(shape)}"
        )
    allowed, expected = _ELEMENTS[NUMPY_TYPES[datatype].kind]
    for wrong in kinds - allowed:
        raise InvalidRequest(
            f"data of input {name!r} must be {expected} for {datatype}, got {_JSON_NAMES[wrong]}"
        )
    return data


def _numbers(name: str, datatype: str, elements: list[Any]) -> Array:
    try:
        with np.errstate(over="ignore"):
            values = np.array(elements, NUMPY_TYPES[datatype])
    except OverflowError:
        raise InvalidRequest(f"data of input {name!r} has values outside {datatype}") from None
    finite = np.isfinite(values)
    # Infinity may be what was sent; it must not be what a large number has become.
    if not (finite.all() or np.array_equal(finite, np.isfinite(np.array(elements, np.float64)))):
        raise InvalidRequest(f"data of input {name!r} has values outside {datatype}")
    return values


def _byte_strings(name: str, shape: tuple[int, ...], raw: Buffer) -> Array:
    expected = math.prod(shape)
    view = memoryview(raw)
    elements: list[bytes] = []
    at = 0
    while at < len(view):
        if at + _LENGTH.size > len(view):
            raise InvalidRequest(f"incomplete string length in the data of input {name!r}")
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if at + length > len(view):
            raise InvalidRequest(
                f"incomplete string data for input {name!r}: element {len(elements)} should have"
                f" {length} bytes, but only {len(view) - at} are left"
            )
        elements.append(bytes(view[at : at + length]))
        at += length
    if len(elements) != expected:
        raise InvalidRequest(
            f"expected {expected} string elements for input {name!r}, got {len(elements)}"
        )
    return _object_array(elements).reshape(shape)


def _object_array(elements: list[bytes]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


# Kind of numpy type -> the JSON types of its elements, and how to call them.
_ELEMENTS: Mapping[str, tuple[set[type], str]] = {
    "b": ({bool}, "true or false"),
    "i": ({int}, "integers"),
    "u": ({int}, "integers"),
    "f": ({float, int}, "numbers"),
    "O": ({str}, "strings"),
}
_JSON_NAMES: Mapping[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a fraction",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def datatype_of(tensor: Array) -> str:
    """The protocol's name for an array's element type."""
    return DATATYPES[tensor.dtype]
