"""From what a socket gives to whole frames, and to the data of frames in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from serving.fronts.http2 import frames
from serving.fronts.http2.frames import Code, ConnectionFault, StreamFault

MAX_FRAME_BYTES = 1 << 18
MAX_BLOCK_BYTES = 32 * 1024
"""Of a block of headers as it comes, and of any other frame but DATA."""
_MOST_PARTS = 32
"""Of a block."""
_OF_HEADERS = frames.END_HEADERS | frames.PADDED | frames.HAS_PRIORITY

S = TypeVar("S")
"""A stream."""


class Incoming(ABC, Generic[S]):
    """Bytes go in, the methods below are called.

    Blocks of headers are put together first; data without padding is handed on as it comes, so that
    nobody waits for the end of a frame.
    """

    def __init__(self) -> None:
        self._has_begun = False
        self._rest = bytearray()
        self._needed = 0
        self._data_left = 0
        """Bytes of a frame that are to come."""
        self._data_stream: S | None = None
        """Whose they are; None if there is no such stream any more."""
        self._data_ends = False
        self._block: list[bytes] = []
        self._block_stream = 0
        self._block_ends = False

    @abstractmethod
    def begin(self) -> None:
        """The preface was there."""

    @abstractmethod
    def begin_data(self, id: int, length: int, padding: int = 0) -> S | None:
        """So many bytes come, padding and all. Returns whoever wants them."""

    @abstractmethod
    def take_data(self, stream: S, data: bytes, at: int, size: int, *, ends: bool) -> None:
        """A part of `data` is a piece of what was begun; `ends` says that nothing comes after."""

    @abstractmethod
    def take_headers(self, id: int, block: bytes, ends: bool) -> None:
        """A whole block; `ends` says that nothing more comes on its stream."""

    @abstractmethod
    def take_window_update(self, id: int, size: int) -> None:
        """The peer takes so many bytes more, by a stream or (0) by all."""

    @abstractmethod
    def take_frame(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        """Any other frame."""

    @abstractmethod
    def fail_stream(self, id: int, fault: StreamFault) -> None:
        """A frame was wrong for its stream only."""

    def feed(self, data: bytes) -> None:
        """Raises `ConnectionFault`, after which nothing may follow."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        at, end = 0, len(data)
        if not self._has_begun:
            at = self._read_preface(data)
        while at < end:
            if self._data_left:
                at = self._take_piece(data, at, end)
                continue
            begin = at + frames.HEAD_BYTES
            if begin > end:
                self._keep(data, at, frames.HEAD_BYTES)
                return
            word, flags, id = frames.HEAD.unpack_from(data, at)
            id &= frames.LARGEST_STREAM_ID
            length, kind = word >> 8, word & 0xFF
            if self._block and (kind != frames.CONTINUATION or id != self._block_stream):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a block of headers is not complete")
            at = begin + length
            try:
                if kind == frames.DATA and not flags & frames.PADDED:
                    _check_length(length, MAX_FRAME_BYTES)
                    ends = flags & frames.END_STREAM == frames.END_STREAM
                    stream = self.begin_data(id, length)
                    if at > end:
                        self._data_stream, self._data_ends = stream, ends
                        self._data_left, at = length, begin
                    elif stream is not None:
                        self.take_data(stream, data, begin, length, ends=ends)
                elif at > end:
                    _check_length(
                        length, MAX_FRAME_BYTES if kind == frames.DATA else MAX_BLOCK_BYTES
                    )
                    self._keep(data, begin - frames.HEAD_BYTES, frames.HEAD_BYTES + length)
                    return
                elif kind == frames.HEADERS and flags & _OF_HEADERS == frames.END_HEADERS:
                    _check_length(length, MAX_BLOCK_BYTES)
                    ends = flags & frames.END_STREAM == frames.END_STREAM
                    self.take_headers(id, data[begin:at], ends)
                elif kind == frames.WINDOW_UPDATE:
                    size = frames.number(data[begin:at], "WINDOW_UPDATE") & frames.LARGEST_WINDOW
                    self.take_window_update(id, size)
                else:
                    self._take(kind, flags, id, data[begin:at])
            except StreamFault as fault:
                self.fail_stream(id, fault)

    def _take_piece(self, data: bytes, at: int, end: int) -> int:
        """Of a frame that did not come whole. Returns where it ends."""
        size = min(self._data_left, end - at)
        self._data_left -= size
        stream = self._data_stream
        if not self._data_left:
            self._data_stream = None
        if stream is not None:
            ends = self._data_ends and not self._data_left
            self.take_data(stream, data, at, size, ends=ends)
        return at + size

    def _read_preface(self, data: bytes) -> int:
        """How much of the data it was."""
        preface = frames.PREFACE
        if not data.startswith(preface):
            if not preface.startswith(data):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "this port speaks gRPC, over HTTP/2")
            self._keep(data, 0, len(preface))
            return len(data)
        self._has_begun = True
        self.begin()
        return len(preface)

    def _keep(self, data: bytes, at: int, needed: int) -> None:
        self._rest += memoryview(data)[at:]
        self._needed = needed

    def _take(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        if kind == frames.HEADERS:
            block = frames.without_priority(flags, frames.without_padding(flags, payload))
            ends = bool(flags & frames.END_STREAM)
            if flags & frames.END_HEADERS:
                _check_length(len(block), MAX_BLOCK_BYTES)
                self.take_headers(id, block, ends)
            else:
                self._block_stream, self._block_ends, self._block = id, ends, [block]
        elif kind == frames.DATA:
            data = frames.without_padding(flags, payload)
            stream = self.begin_data(id, len(payload), len(payload) - len(data))
            if stream is not None:
                ends = flags & frames.END_STREAM == frames.END_STREAM
                self.take_data(stream, data, 0, len(data), ends=ends)
        elif kind == frames.CONTINUATION:
            self._continue(id, flags, payload)
        else:
            self.take_frame(kind, flags, id, payload)

    def _continue(self, id: int, flags: int, payload: bytes) -> None:
        if not self._block:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._block.append(payload)
        _check_length(sum(map(len, self._block)), MAX_BLOCK_BYTES)
        _check_length(len(self._block), _MOST_PARTS)
        if flags & frames.END_HEADERS:
            block, self._block = b"".join(self._block), []
            self.take_headers(id, block, self._block_ends)


def _check_length(length: int, most: int) -> None:
    if length > most:
        raise ConnectionFault(
            Code.FRAME_SIZE_ERROR if most == MAX_FRAME_BYTES else Code.ENHANCE_YOUR_CALM,
            f"a frame or a block of headers is longer than {most}: {length}",
        )
