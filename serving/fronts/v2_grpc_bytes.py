"""The plain ModelInferResponse as bytes, without an object for each of its parts.

Tensors go from the engine's memory to the message at once, and what is the same in many messages,
all but their values and ids, is written once.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from serving.fronts.v2_tensors import Buffer, to_bytes
from serving.types import DATATYPES, InferResponse

_SMALL_BYTES = 4096
"""A copy costs less than a view then."""

# Tags: the number of a field, and that its length follows.
_MODEL_NAME, _MODEL_VERSION, _ID, _OUTPUTS, _RAW = (
    bytes([number << 3 | 2]) for number in (1, 2, 3, 5, 6)
)
_NAME, _DATATYPE, _SHAPE = (bytes([number << 3 | 2]) for number in (1, 2, 3))


def response_bytes(response: InferResponse) -> bytes:
    """What `render_infer` makes of a response without parameters, as it travels."""
    parts: list[Buffer] = [_head(response.model_name, response.model_version)]
    if response.id:
        parts.append(_field(_ID, response.id.encode()))
    raws: list[Buffer] = []
    for name, tensor in response.outputs.items():
        output, before = _output(name, tensor.dtype, tensor.shape)
        parts.append(output)
        if before:
            raws += (
                before,
                tensor.tobytes() if tensor.nbytes <= _SMALL_BYTES else to_bytes(tensor),
            )
        else:
            raw = to_bytes(tensor)
            raws += (_RAW, varint(len(raw)), raw)
    return b"".join(parts + raws)


@lru_cache(512)
def _head(model_name: str, model_version: str) -> bytes:
    fields = (_MODEL_NAME, model_name), (_MODEL_VERSION, model_version)
    return b"".join(_field(tag, text.encode()) for tag, text in fields if text)


@lru_cache(4096)
def _output(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    """What a tensor is, and what stands before its bytes; nothing, if their number depends on what
    is in it."""
    tensor = _field(_NAME, name.encode()) if name else b""
    tensor += _field(_DATATYPE, DATATYPES[dtype].encode())
    if shape:
        tensor += _field(_SHAPE, b"".join(map(varint, shape)))
    before = b"" if dtype.hasobject else _RAW + varint(prod(shape) * dtype.itemsize)
    return _field(_OUTPUTS, tensor), before


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


def varint(number: int) -> bytes:
    """A number of 0 or more as protobuf writes it: seven bits a byte, the lowest first."""
    if number < 128:
        return _DIGITS[number]
    digits = bytearray()
    while number >= 128:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


_DIGITS = [bytes([number]) for number in range(128)]
