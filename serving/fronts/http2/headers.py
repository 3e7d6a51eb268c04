"""Blocks of headers: reading them, by `hpack`, and writing them.

A client that calls the same method again and again sends the same few bytes each time, once its
table holds what they stand for. What such a block says is remembered as long as the table stays as
it is, for to read one takes longer than all else that is done for a small request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Generic, TypeVar

from hpack import Decoder, HPACKError, OversizedHeaderListError

from serving.fronts.http2.frames import Code, ConnectionFault

Headers = Sequence[tuple[bytes, bytes]]
Head = TypeVar("Head")

MAX_DECODED_BYTES = 64 * 1024
"""Of the headers of one block, with 32 more for each. Beyond, the connection ends."""
_MOST_KNOWN = 64
_LONGEST_KNOWN = 1024


class BlockReader(Generic[Head]):
    """Reads the blocks of one connection; `understand` makes of headers what the reader returns."""

    def __init__(self, understand: Callable[[Headers], Head]):
        self._understand = understand
        self._decoder = Decoder(MAX_DECODED_BYTES)
        self.known: dict[bytes, Head] = {}
        """What blocks say that leave the table as it is."""

    def read(self, block: bytes) -> Head:
        """A block that is not `known`.

        Raises `ConnectionFault`, after which nothing more can be read, and as `understand`.
        """
        table = self._decoder.header_table
        before = (table.maxsize, len(table.dynamic_entries))
        newest = table.dynamic_entries[0] if table.dynamic_entries else None
        try:
            headers: Headers = list(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError:
            raise ConnectionFault(
                Code.ENHANCE_YOUR_CALM, f"headers have more than {MAX_DECODED_BYTES} bytes"
            ) from None
        except (HPACKError, IndexError):
            # Their messages repeat what came, which may be long.
            raise ConnectionFault(
                Code.COMPRESSION_ERROR, "a block of headers cannot be read"
            ) from None
        # Every entry is an object of its own, so a new one is told from an old one that is equal.
        is_same = (
            before == (table.maxsize, len(table.dynamic_entries))
            and (table.dynamic_entries[0] if table.dynamic_entries else None) is newest
        )
        if not is_same:
            self.known.clear()
        understood = self._understand(headers)
        if is_same and len(block) <= _LONGEST_KNOWN:
            if len(self.known) >= _MOST_KNOWN:
                self.known.clear()
            self.known[block] = understood
        return understood


NO_TABLE = b"\x20"
"""At the beginning of the first block that is sent: the peer need keep no table for us. It may
make its table smaller at any time, and need not be told that we know."""


def write_block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block that neither needs a table nor changes it."""
    return b"".join(
        [part for name, value in headers for part in (_named(name), _length(len(value)), value)]
    )


def text_field(name: str, value: str) -> bytes:
    """A block, or the rest of one, with one header."""
    text = value.encode()
    return _named(name) + _length(len(text)) + text


@lru_cache(256)
def _named(name: bytes | str) -> bytes:
    raw = name.encode() if isinstance(name, str) else name
    return b"\0" + _length(len(raw)) + raw


def _length(number: int) -> bytes:
    """Of a text that is not compressed (RFC 7541, 5.1, with a prefix of 7 bits)."""
    if number < 127:
        return _SHORT[number]
    rest = number - 127
    digits = bytearray(b"\x7f")
    while rest >= 128:
        digits.append(rest & 127 | 128)
        rest >>= 7
    digits.append(rest)
    return bytes(digits)


_SHORT = [bytes([number]) for number in range(127)]
