"""Content codings of HTTP: gzip, and deflate, by which HTTP means the zlib format."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

from serving.errors import InvalidRequest, TooLarge, Unsupported, shown

ENCODINGS = ("gzip", "deflate")
"""In the order of preference between equals."""

LEVEL = 1
"""For speed: of tensors as JSON, level 1 packs 70 MB/s to 0.48 of their size, the default level
11 MB/s to 0.43; of raw numbers no level makes less than 0.92. A caller in a hurry asks for none."""

_WINDOW_BITS: Mapping[str, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_ALIASES: Mapping[str, str] = {"x-gzip": "gzip", "": "identity"}
_WEIGHT = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def decompress(encoding: str, body: bytes, limit: int) -> bytes:
    """The body of a request as it was before its `Content-Encoding`, never above `limit` bytes.

    Raises `Unsupported` for an encoding that is none of gzip, deflate and identity; `TooLarge` as
    soon as it passes the limit; `InvalidRequest` for a body that is damaged, cut short, or goes on
    after its end.
    """
    kind = _normal(encoding)
    if kind == "identity":
        if len(body) > limit:
            raise _too_large(limit)
        return body
    if kind not in _WINDOW_BITS:
        raise Unsupported(
            f"Content-Encoding {shown(encoding)} is not supported;"
            f" expected one of {', '.join(ENCODINGS)}"
        )
    unpacker = zlib.decompressobj(_WINDOW_BITS[kind])
    try:
        # One byte more than allowed tells a body that ends at the limit from one that goes on.
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the request body is not {kind} data: {error}") from None
    if len(plain) > limit:
        raise _too_large(limit)
    if not unpacker.eof:
        raise InvalidRequest(f"the request body of {kind} data is cut short")
    if unpacker.unused_data:
        raise InvalidRequest(
            f"{len(unpacker.unused_data)} bytes follow the end of the {kind} data in the request"
            " body"
        )
    return plain


@lru_cache(maxsize=64)
def choose(accept_encoding: str) -> str | None:
    """The coding of `ENCODINGS` that an `Accept-Encoding` header likes best; None for none.

    One that is not named weighs as much as `*`, or is not wanted. A part of the header that cannot
    be read is passed over.
    """
    weights: dict[str, float] = {}
    for part in accept_encoding.split(","):
        coding, *settings = (piece.strip() for piece in part.split(";"))
        weight = _weight(settings)
        if coding and weight is not None:
            weights[_normal(coding)] = weight
    rest = weights.get("*", 0.0)
    # max() keeps the first of equals.
    best = max(ENCODINGS, key=lambda coding: weights.get(coding, rest))
    weight = weights.get(best, rest)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def compress(encoding: str, parts: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """The concatenated parts in a coding that `choose` returned."""
    packer = zlib.compressobj(LEVEL, wbits=_WINDOW_BITS[encoding])
    packed = [packer.compress(part) for part in parts]
    packed.append(packer.flush())
    return b"".join(packed)


def _normal(coding: str) -> str:
    lowered = coding.strip().lower()
    return _ALIASES.get(lowered, lowered)


def _weight(settings: list[str]) -> float | None:
    """None for a weight that is not to be read."""
    if not settings:
        return 1.0
    match = _WEIGHT.fullmatch(settings[0].replace(" ", "")) if len(settings) == 1 else None
    return float(match[1]) if match else None


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the decompressed request body is over the limit of {limit} bytes")
