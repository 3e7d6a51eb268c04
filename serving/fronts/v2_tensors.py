"""Tensors as protocol v2 writes them: JSON values, or raw bytes (little-endian, row-major).

Used by both v2 fronts. No function loops in Python over the elements of a numeric tensor.

What breaks the protocol's grammar (a wrong type of JSON value, a wrong number of elements, a
negative dimension) is `Malformed`; what is well formed and does not agree is `InvalidRequest`.
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

from serving.errors import InvalidRequest, Malformed, shown
from serving.types import DATATYPES, DYNAMIC, NUMPY_TYPES, Array, TensorSpec

Buffer = bytes | bytearray | memoryview

MAX_RANK = 64  # numpy's own limit
_FLOATING = "fV"  # kinds of numpy types; BF16 is foreign to numpy, which calls it V
_SMALL_BYTES = 4096
"""What is copied sooner than looked at."""
_LENGTH = struct.Struct("<I")


def check_spec(name: str, datatype: object, shape: object) -> tuple[str, tuple[int, ...]]:
    """Check what a caller declares of a tensor.

    Raises `Malformed` for a datatype that is no string and a shape that is no list of integers of
    0 or more; `InvalidRequest` for an unknown datatype, too many dimensions or too many bytes.
    """
    if not isinstance(datatype, str):
        raise Malformed(
            f"invalid datatype for input {name!r}: expected a string, got {shown(datatype)}"
        )
    if datatype not in NUMPY_TYPES:
        raise InvalidRequest(
            f"invalid datatype for input {name!r}: expected one of {', '.join(NUMPY_TYPES)},"
            f" got {shown(datatype)}"
        )
    if isinstance(shape, str | dict) or not isinstance(shape, Iterable):
        raise Malformed(
            f"invalid shape for input {name!r}: expected a list of integers of 0 or more,"
            f" got {shown(shape)}"
        )
    sizes = tuple(shape)
    if len(sizes) > MAX_RANK:
        raise InvalidRequest(
            f"invalid shape for input {name!r}: expected at most {MAX_RANK} dimensions,"
            f" got {len(sizes)}"
        )
    if not all(_is_size(size) for size in sizes):
        raise Malformed(
            f"invalid shape for input {name!r}: expected a list of integers of 0 or more,"
            f" got {_listed(sizes)}"
        )
    if math.prod(max(size, 1) for size in sizes) * NUMPY_TYPES[datatype].itemsize >= 2**63:
        raise InvalidRequest(f"invalid shape for input {name!r}: its byte size overflows")
    return datatype, sizes


def check_size(name: str, datatype: str, shape: tuple[int, ...], size: int) -> None:
    """Whether a tensor can have been written as so many bytes. Raises `InvalidRequest` if not."""
    count = math.prod(shape)
    if datatype == "BYTES":
        if size < count * _LENGTH.size:
            raise InvalidRequest(
                f"input byte size mismatch for input {name!r}: shape {list(shape)} of BYTES takes"
                f" at least {count * _LENGTH.size} bytes, got {size}"
            )
        return
    expected = count * NUMPY_TYPES[datatype].itemsize
    if size != expected:
        raise InvalidRequest(
            f"input byte size mismatch for input {name!r}: shape {list(shape)} of {datatype}"
            f" takes {expected} bytes, got {size}"
        )


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], raw: Buffer) -> Array:
    """A tensor over the bytes it came in, uncopied, except BYTES, whose elements are cut out.

    Raises `InvalidRequest` for bytes that are not what a tensor of this shape takes.
    """
    if datatype == "BYTES":
        return _byte_strings(name, shape, raw)
    check_size(name, datatype, shape, len(raw))
    return np.frombuffer(raw, NUMPY_TYPES[datatype]).reshape(shape)


def raw_tensor(spec: TensorSpec, body: Buffer, batches: bool) -> Array:
    """The tensor of a raw request: the body is the data, and what it is the model's spec tells.

    With a batch dimension (`batches`) it is a batch of one. One dynamic dimension at most follows
    from the size of the body; of BYTES the body is the one element, without a length before it.

    Raises `InvalidRequest` for a spec that leaves more open, and for a body that does not fit it.
    """
    dims = spec.shape[1:] if batches else spec.shape
    if spec.datatype == "BYTES":
        if dims != (1,):
            raise InvalidRequest(
                f"a raw request needs shape [1] for BYTES input {spec.name!r},"
                f" but the model has {list(dims)}"
            )
        return _object_array([bytes(body)]).reshape(_one_row(dims, batches))
    dynamic = dims.count(DYNAMIC)
    if dynamic > 1:
        raise InvalidRequest(
            f"a raw request needs at most one dynamic dimension, but input {spec.name!r} has shape"
            f" {list(dims)}"
        )
    if dynamic:
        step = math.prod(dims) * DYNAMIC * NUMPY_TYPES[spec.datatype].itemsize
        if step == 0 or len(body) % step:
            raise InvalidRequest(
                f"input byte size mismatch for input {spec.name!r}: shape {list(dims)} of"
                f" {spec.datatype} takes a multiple of {step} bytes, got {len(body)}"
            )
        dims = tuple(len(body) // step if size == DYNAMIC else size for size in dims)
    return from_bytes(spec.name, spec.datatype, _one_row(dims, batches), body)


def to_bytes(tensor: Array) -> Buffer:
    """The raw bytes of a tensor, uncopied if it is large and its memory already in order."""
    if tensor.dtype != object:
        if tensor.nbytes <= _SMALL_BYTES:
            return tensor.tobytes()
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
    parts = bytearray()
    for element in tensor.flat:
        value: bytes = element
        parts += _LENGTH.pack(len(value))
        parts += value
    return parts


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Array:
    """A tensor from flat or nested JSON arrays; no value is wrapped or reinterpreted.

    Raises `Malformed` for anything but regular arrays of the right number of elements of the right
    JSON type; `InvalidRequest` for a value that the datatype does not have.
    """
    if not isinstance(data, list):
        raise Malformed(f"data of input {name!r} must be an array, got {_JSON_NAMES[type(data)]}")
    elements = _flattened(name, datatype, shape, data)
    if datatype == "BYTES":
        values = _object_array([element.encode() for element in elements])
    else:
        values = _numbers(name, datatype, elements)
    if values.size != math.prod(shape):
        raise Malformed(
            f"data of input {name!r} has {values.size} elements,"
            f" but shape {list(shape)} takes {math.prod(shape)}"
        )
    return values.reshape(shape)


def to_json(name: str, tensor: Array) -> bytes:
    """The flat JSON array of a tensor's elements. Not-a-number and infinities are bare tokens.

    Raises `InvalidRequest` for BYTES that are not text.
    """
    flat, kind = tensor.ravel(), tensor.dtype.kind
    if kind in _FLOATING:
        if flat.itemsize == 2:
            # Wide enough for FP16 and BF16 whole, and what orjson can write.
            flat = flat.astype(np.float32)
        text = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
        # Which writes null for what is no number or infinite.
        return text if b"n" not in text else json.dumps(flat.tolist()).encode()
    if kind != "O":
        return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    try:
        return orjson.dumps([element.decode() for element in flat])
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"output {name!r} holds bytes that are not UTF-8; ask for binary_data"
        ) from None


def _listed(sizes: tuple[object, ...]) -> str:
    more = ", …" if len(sizes) > 8 else ""
    return f"[{', '.join(map(shown, sizes[:8]))}{more}]"


def _one_row(dims: tuple[int, ...], batches: bool) -> tuple[int, ...]:
    return (1, *dims) if batches else dims


def _is_size(size: object) -> bool:
    return type(size) is int and size >= 0


def _flattened(name: str, datatype: str, shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    """The innermost elements, all of types that the datatype takes."""
    most = math.prod(max(size, 1) for size in shape)
    kinds = set(map(type, data))
    while list in kinds and len(data) <= most:
        if len(kinds) > 1 or len(set(map(len, data))) > 1:
            raise Malformed(f"data of input {name!r} is not a regular array")
        data = list(chain.from_iterable(data))
        kinds = set(map(type, data))
    if len(data) > most:
        raise Malformed(
            f"data of input {name!r} has {len(data)} elements or more,"
            f" but shape {list(shape)} takes {math.prod(shape)}"
        )
    allowed, expected = _ELEMENTS[NUMPY_TYPES[datatype].kind]
    for wrong in kinds - allowed:
        raise Malformed(
            f"data of input {name!r} must be {expected} for {datatype}, got {_JSON_NAMES[wrong]}"
        )
    return data


def _numbers(name: str, datatype: str, elements: list[Any]) -> Array:
    try:
        with np.errstate(over="ignore"):
            if datatype == "BF16":  # it takes no Python integers
                values = np.array(elements, np.float64).astype(NUMPY_TYPES[datatype])
            else:
                values = np.array(elements, NUMPY_TYPES[datatype])
    except OverflowError:
        raise InvalidRequest(f"data of input {name!r} has values outside {datatype}") from None
    finite = np.isfinite(values)
    # Infinity may be what was sent; it must not be what a large number has become.
    if not (finite.all() or np.array_equal(finite, np.isfinite(np.array(elements, np.float64)))):
        raise InvalidRequest(f"data of input {name!r} has values outside {datatype}")
    return values


def _byte_strings(name: str, shape: tuple[int, ...], raw: Buffer) -> Array:
    check_size(name, "BYTES", shape, len(raw))
    expected = math.prod(shape)
    # A body may hold millions of elements, and everybody waits for this loop: it only cuts, and
    # what does not add up is found out afterwards.
    data, unpack = bytes(raw), _LENGTH.unpack_from
    elements: list[bytes] = []
    start = end = 0
    while end < len(data) and len(elements) < expected:
        if end + 4 > len(data):
            raise InvalidRequest(f"incomplete string length in the data of input {name!r}")
        start = end + 4
        end = start + unpack(data, end)[0]
        elements.append(data[start:end])
    if end > len(data):
        raise InvalidRequest(
            f"incomplete string data for input {name!r}: element {len(elements) - 1} should have"
            f" {end - start} bytes, but only {len(data) - start} are left"
        )
    if end < len(data):
        raise InvalidRequest(
            f"expected {expected} string elements for input {name!r}, but {len(data) - end}"
            " bytes follow the last"
        )
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
    "V": ({float, int}, "numbers"),
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
