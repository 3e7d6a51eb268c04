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
_SMALL_BYTES = 1024
"""Pieces of less are put together: each is an object of its own, which may be larger than what it
holds."""

Message = tuple[bool, bytes]
"""Whether it is compressed, and what it is."""


class Aborted(Exception):
    """A call ends with this status."""

    def __init__(self, code: grpc.StatusCode, details: str):
        super().__init__(code, details)
        self.code = code
        self.details = details


class MessageReader:
    """Pieces go in, whole messages come out, of which each byte is copied once."""

    def __init__(self, limit: int):
        self._limit = limit
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._is_compressed: bool | None = None
        """The message that has begun; None before its prefix is there."""
        self._needed = PREFIX_BYTES
        """Bytes of the pieces that make the next prefix, or the message after it."""
        self._got = 0
        """Bytes of the pieces."""

    @property
    def held(self) -> int:
        """Bytes that have come of what is not whole yet."""
        return self._got if self._is_compressed is None else self._got + PREFIX_BYTES

    def feed(self, piece: bytes | memoryview) -> list[Message]:
        """Raises `Aborted` for what is too long, or is no message."""
        self._got += len(piece)
        if self._got < self._needed:
            self._keep(piece)
            return []
        data: bytes | memoryview = piece
        if self._pieces:
            data = b"".join((*self._pieces, piece))
            self._pieces.clear()
        messages: list[Message] = []
        at = 0
        while self._got >= self._needed:
            end = at + self._needed
            self._got -= self._needed
            if self._is_compressed is None:
                self._needed = self._begin(data, at)
            else:
                messages.append((self._is_compressed, bytes(data[at:end])))
                self._is_compressed, self._needed = None, PREFIX_BYTES
            at = end
        if self._got:
            # A view saves a copy, and keeps all of what it is of.
            is_most = self._got >= _SMALL_BYTES and 2 * self._got >= len(data)
            self._keep(memoryview(data)[at:] if is_most else bytes(data[at:]))
        return messages

    def _begin(self, data: bytes | memoryview, at: int) -> int:
        """How many bytes come after a prefix."""
        flag, length = PREFIX.unpack_from(data, at)
        if flag > 1:
            raise Aborted(grpc.StatusCode.INTERNAL, "what was sent is no message of gRPC")
        if length > self._limit:
            raise too_large(length, self._limit)
        self._is_compressed = bool(flag)
        return int(length)

    def _keep(self, piece: bytes | memoryview) -> None:
        if len(piece) >= _SMALL_BYTES:
            self._pieces.append(piece)
        elif self._pieces and isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += piece
        else:
            self._pieces.append(bytearray(piece))


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
