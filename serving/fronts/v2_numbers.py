"""JSON arrays of numbers, flat or nested as their shape, which is known before they are read.

Only what is plainly right is read here. All else is left to `v2_tensors.from_json`, which can say
what is wrong with it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, chain
from operator import mul
from typing import Any, Literal

import numpy as np
import orjson
import simdjson

from serving.types import DATATYPES, Array

MANY = 64
"""Elements from which on simdjson, which makes no Python object of each, is faster."""

# Datatype -> its letter in the module `struct`, which takes no number that the type does not have.
_LETTERS: Mapping[str, str] = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
# Kind of numpy type -> how simdjson names the widest of the kind, and numpy does.
_WIDEST: Mapping[str, tuple[Literal["d", "i", "u"], type[np.generic]]] = {
    "u": ("u", np.uint64),
    "i": ("i", np.int64),
    "f": ("d", np.float64),
    "V": ("d", np.float64),  # BF16, to numpy
}

_OF_NUMBERS = b"0123456789+-.eE \t\n\r"
"""Characters of numbers, and between them."""

_PARSER = simdjson.Parser()
"""Keeps its memory, some ten times the longest text: to ask the system for as much again and again
takes longer than to parse."""

_KEPT_BYTES = 1 << 20
"""Longer texts are not worth that."""

Reader = Callable[[bytes], Array | None]
"""From any text to a tensor; to None if it is not plainly the array of one."""


def reader(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Reader | None:
    """For tensors of one type and shape; None if they are not read here."""
    count = math.prod(shape)
    letter = _LETTERS.get(DATATYPES[dtype])
    if count >= MANY:
        return _many(dtype, shape) if dtype.kind in _WIDEST else None
    return _few(letter, dtype, shape) if letter is not None and count else None


def is_nested_as(shape: tuple[int, ...], text: bytes) -> bool:
    """Whether an array's text, all of whose elements are numbers, has the brackets and the commas
    of a tensor of this shape."""
    brackets = 2 * sum(accumulate(shape[:-1], mul, initial=1))
    if not shape or brackets + math.prod(shape) - 1 > len(text):
        return False
    nested = b""
    for size in reversed(shape):
        nested = b"[" + (nested + b",") * (size - 1) + nested + b"]" if size else b"[]"
    return text.translate(None, _OF_NUMBERS) == nested


def _is_flat(text: bytes) -> bool:
    return text.find(b"[", 1) < 0


def _few(letter: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Reader:
    pack: Callable[..., bytes] = struct.Struct(f"<{math.prod(shape)}{letter}").pack

    def flattened(numbers: Iterable[Any], text: bytes) -> Iterable[Any]:
        if not is_nested_as(shape, text):
            raise ValueError
        for _ in shape[1:]:
            numbers = chain.from_iterable(numbers)
        return numbers

    def read(text: bytes) -> Array | None:
        # What is true or false is a number to Python, and must not be one here.
        if b"u" in text or b"l" in text:
            return None
        try:
            numbers = orjson.loads(text)
            raw = pack(*(numbers if _is_flat(text) else flattened(numbers, text)))
        except (ValueError, TypeError, OverflowError, struct.error):
            return None
        return np.ndarray(shape, dtype, raw)

    return read


def _many(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Reader:
    letter, widest = _WIDEST[dtype.kind]
    count = math.prod(shape)

    def read(text: bytes) -> Array | None:
        if not (_is_flat(text) or is_nested_as(shape, text)):
            return None
        parser = _PARSER if len(text) <= _KEPT_BYTES else simdjson.Parser()
        try:
            array = parser.parse(text)
            if not isinstance(array, simdjson.Array):
                return None
            # Which takes no notice of arrays within arrays.
            wide = np.frombuffer(array.as_buffer(of_type=letter), widest)
            # A parser parses nothing more while there is something of what it parsed.
            del array
        except (ValueError, TypeError, RuntimeError):
            return None
        if len(wide) != count:
            return None
        with np.errstate(over="ignore"):
            values = wide.astype(dtype, copy=False)
        # A number that the type does not have has become infinite, or another.
        is_right = np.isfinite(values).all() if letter == "d" else (values == wide).all()
        return values.reshape(shape) if is_right else None

    return read
