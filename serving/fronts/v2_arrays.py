"""The text of a JSON request, and apart from it its tensors' data, which is most of it.

So the text can be known from an earlier request, or read by itself, and the data needs no object
for each number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

MOST_ARRAYS = 64
"""Of a request that is taken apart."""

_KEY = b'"data"'
_FROM, _TO, _QUOTE = b"[", b"]", b'"'


def cut(body: bytes) -> tuple[list[bytes], list[bytes]]:
    """The arrays that seem to be tensors' data, or each the one row of them, and the pieces of text
    before, between and after them. Without any, it is not so simple: nothing is certain but that
    the pieces and the arrays in turns are the body."""
    pieces: list[bytes] = []
    arrays: list[bytes] = []
    at = 0
    key = body.find(_KEY)
    while key >= 0:
        start = body.find(_FROM, key)
        end = body.find(_TO, start) + 1
        if not 0 < start < end or len(arrays) == MOST_ARRAYS:
            return [body], []
        row = body.rfind(_FROM, start, end)
        if row > start:
            closing = _TO * body.count(_FROM, start, end)
            if body.startswith(closing, end - 1):
                start = row
            else:
                end = body.find(closing, end) + len(closing)
                if end < len(closing):
                    return [body], []
        if body.find(_QUOTE, start, end) > 0:
            # Of strings, which may have brackets, or more than one array.
            return [body], []
        pieces.append(body[at:start])
        arrays.append(body[start:end])
        at = end
        key = body.find(_KEY, at)
    pieces.append(body[at:])
    return pieces, arrays


def without_data(pieces: Sequence[bytes]) -> dict[str, Any] | None:
    """The document that is cut into these pieces, if what was cut out is the data of all its
    inputs, one array each. None if it is not, or may be not."""
    text = b"".join(b"[%d]%b" % numbered for numbered in enumerate(pieces))
    if b"\\" in text:
        return None  # A key may be written in another way, and have an array that was not cut.
    try:
        # No array was cut before the first piece.
        document: dict[str, Any] = orjson.loads(text.removeprefix(b"[0]"))
        found = [_row(tensor["data"]) for tensor in document["inputs"]]
    except (ValueError, LookupError, TypeError):
        return None
    return document if found == [[number] for number in range(1, len(pieces))] else None


def _row(data: object) -> object:
    """What is within arrays of one element."""
    while isinstance(data, list) and len(data) == 1 and isinstance(data[0], list):
        data = data[0]
    return data
