"""Flat JSON arrays of numbers, for those whose count and type are known before they come.

Only what is plainly right is read here. All else is left to `v2_tensors.from_json`, which can say
what is wrong with it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Literal

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

Reader = Callable[[bytes], Array | None]
"""From a text to its first bracket that closes, to a tensor; to None if that is no plain array."""


def reader(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Reader | None:
    """For tensors of one type and shape; None if they are not read here."""
    letter = _LETTERS.get(DATATYPES[dtype])
    if math.prod(shape) >= MANY:
        return _many(dtype, shape) if dtype.kind in _WIDEST else None
    return None if letter is None else _few(letter, dtype, shape)


def _few(letter: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Reader:
    pack: Callable[..., bytes] = struct.Struct(f"<{math.prod(shape)}{letter}").pack

    def read(text: bytes) -> Array | None:
        # What is true or false is a number to Python, and must not be one here.
        if b"u" in text or b"l" in text:
            return None
        try:
            raw = pack(*orjson.loads(text))
        except (ValueError, OverflowError, struct.error):
            return None
        return np.ndarray(shape, dtype, raw)

    return read


def _many(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Reader:
    letter, widest = _WIDEST[dtype.kind]
    count = math.prod(shape)

    def read(text: bytes) -> Array | None:
        try:
            # A parser of its own: it keeps the memory that the longest text has taken.
            array = simdjson.Parser().parse(text)
            assert isinstance(array, simdjson.Array)
            wide = np.frombuffer(array.as_buffer(of_type=letter), widest)
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
