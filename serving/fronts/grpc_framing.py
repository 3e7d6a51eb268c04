"""Messages as gRPC puts them into a stream: a flag, a length, and the bytes."""

from __future__ import annotations

from struct import Struct

import grpc

from serving.errors import InvalidRequest, TooLarge
from serving.fronts.compression import decompress
from serving.fronts.grpc_blocks import IDENTITY

PREFIX = Struct(">BL")
"""Whether it is compressed, and its length."""
PREFIX_BYTES = PREFIX.size
_MOST_PIECES = 64
"""Each is an object of its own, which may be larger than what it holds."""

Message = tuple[bool, bytes]
"""Whether it is compressed, and what it is."""


class Aborted(Exception):
    """A call ends with this status."""

    def __init__(self, code: grpc.StatusCode, details: str):
        super().__init__(code, details)
        self.code = code
        self.details = details


class MessageReader:
    """Pieces go in, whole messages come out."""

    def __init__(self, limit: int):
        self._limit = limit
        self._pieces: list[bytes | memoryview] = []
        self._joined = bytearray()
        """Pieces that were too many to be kept as they came."""
        self._needed = PREFIX_BYTES
        self.held = 0
        """Bytes that have come of what is not whole yet."""

    def feed(self, piece: bytes | memoryview) -> list[Message]:
        """Raises `Aborted` for what is too long, or is no message."""
        self._pieces.append(piece)
        self.held += len(piece)
        if self.held < self._needed:
            if len(self._pieces) == _MOST_PIECES:
                self._joined += b"".join(self._pieces)
                self._pieces.clear()
            return []
        data = b"".join((self._joined, *self._pieces))
        self._joined.clear()
        self._pieces.clear()
        messages: list[Message] = []
        at = 0
        while len(data) - at >= PREFIX_BYTES:
            flag, length = PREFIX.unpack_from(data, at)
            if flag > 1:
                raise Aborted(grpc.StatusCode.INTERNAL, "what was sent is no message of gRPC")
            if length > self._limit:
                raise too_large(length, self._limit)
            end = at + PREFIX_BYTES + length
            if end > len(data):
                break
            messages.append((bool(flag), data[at + PREFIX_BYTES : end]))
            at = end
        self.held = len(data) - at
        self._needed = PREFIX_BYTES
        if self.held:
            self._pieces.append(data[at:])
            if self.held >= PREFIX_BYTES:
                self._needed += length
        return messages


def too_large(length: int, limit: int) -> Aborted:
    return Aborted(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"Received message larger than max ({length} vs. {limit})",
    )


def unpack(encoding: str, data: bytes, limit: int) -> bytes:
    """A compressed message. Raises `Aborted`."""
    if encoding == IDENTITY:
        raise Aborted(grpc.StatusCode.INTERNAL, "a message is compressed, without a grpc-encoding")
    try:
        return decompress(encoding, data, limit)
    except TooLarge as error:
        raise Aborted(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from None
    except InvalidRequest as error:
        raise Aborted(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
