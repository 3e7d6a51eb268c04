"""Flat JSON arrays of numbers, for those whose count and type are known before they come.

Only what is plainly right is read here. All else is left to `v2_tensors.from_json`, which can say
what is wrong with it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping

import numpy as np
import orjson

from serving.types import DATATYPES, Array

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


class Numbers:
    """Reads tensors of one type and shape."""

    def __init__(self, letter: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]):
        self._count = math.prod(shape)
        self._pack: Callable[..., bytes] = struct.Struct(f"<{self._count}{letter}").pack
        self._dtype = dtype
        self._shape = shape

    @classmethod
    def of(cls, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Numbers | None:
        """None for a type that is not read here."""
        letter = _LETTERS.get(DATATYPES[dtype])
        return None if letter is None else cls(letter, dtype, shape)

    def read(self, text: bytes) -> Array | None:
        """The tensor that an array's text holds; None if that is not plain."""
        # What is true or false is a number to Python, and must not be one here.
        if b"u" in text or b"l" in text:
            return None
        try:
            raw = self._pack(*orjson.loads(text))
        except (ValueError, OverflowError, struct.error):
            return None
        return np.ndarray(self._shape, self._dtype, raw)
