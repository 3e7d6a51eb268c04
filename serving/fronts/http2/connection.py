"""One connection: what frames do, and the bounds of what a peer may ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any, Protocol

from serving.fronts.http2 import frames
from serving.fronts.http2.backlog import Backlog
from serving.fronts.http2.credit import MOST_IDLE, Credit
from serving.fronts.http2.frames import Code, ConnectionFault, StreamFault, frame
from serving.fronts.http2.headers import BlockReader, Headers
from serving.fronts.http2.incoming import MAX_FRAME_BYTES, Incoming
from serving.fronts.http2.outgoing import Outgoing
from serving.fronts.http2.stream import WINDOW, Stream

MAX_STREAMS = 1024
"""At the same time, on one connection."""
MAX_LIST_BYTES = 16 * 1024
"""Of headers: what peers are told."""
MAX_SETTINGS_BYTES = 32 * 6
"""Of one frame."""
CONNECTION_WINDOW = 1 << 26
"""What nobody reads is kept back stream by stream, so it need not be small."""
BRIEF_S = 0.05
"""Who takes a request back after that has waited for it, which is no flood."""
_SETTINGS_COST = 10
"""In frames that get nothing done: each may concern all streams."""
PREFACE_S = 10.0
"""For a peer to say that it speaks HTTP/2."""
LINGER_S = 1.0
"""For a peer to read why its connection ends, or to say that it has heard that it will."""
_LAST_PING = b"last one"
_GOAWAY = Struct(">LL")


class Application(Protocol):
    """What is served over the connections."""

    most_held: int
    """Bytes of messages of which the end has not come, on one connection; see `Backlog`."""
    most_owed: int
    """Bytes of what is being answered and of answers, on one connection; see `Outgoing`."""

    def understand(self, headers: Headers) -> Any:
        """What headers say. It is kept for those that come again, so nothing may change it.

        Raises `StreamFault` for headers that cannot be.
        """

    def open(self, connection: Connection, id: int, head: Any, peer_is_done: bool) -> Stream:
        """A new stream, of what `understand` has made of its headers."""


class Connection(Incoming[Stream], Outgoing):
    """`came` is called when there is a peer, and `left` when there is none any more."""

    def __init__(
        self,
        application: Application,
        came: Callable[[Connection], None],
        left: Callable[[Connection], None],
    ):
        Incoming.__init__(self)
        Outgoing.__init__(self, application.most_owed)
        self.streams: dict[int, Stream] = {}
        self.held = 0
        """Bytes that wait on its streams for somebody to read them."""
        self.backlog = Backlog(application.most_held)
        self._application = application
        self._came = came
        self._left = left
        self._reader: BlockReader[Any] = BlockReader(application.understand)
        self._window_in = CONNECTION_WINDOW
        self._late = 0
        """Bytes that may still come for streams that we have ended."""
        self._credit = Credit()
        self._last_id = 0
        self._takes_more = True
        self._is_draining = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        settings: Mapping[int, int] = {
            frames.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            frames.INITIAL_WINDOW_SIZE: WINDOW,
            frames.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            frames.MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES,
        }
        more = frames.NUMBER.pack(CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
        self.write(frames.settings_frame(settings) + frame(frames.WINDOW_UPDATE, 0, 0, more))
        self._timer = self.loop.call_later(PREFACE_S, self.transport.abort)
        self._came(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_ending = True
        if self._timer is not None:
            self._timer.cancel()
        self._lose_streams()
        self._left(self)

    def data_received(self, data: bytes) -> None:
        if self.is_ending:
            return
        try:
            self.feed(data)
        except ConnectionFault as fault:
            self._fail(fault)

    # What streams tell.

    def ended(self, stream: Stream) -> None:
        """Its last frame has been written."""
        if not stream.peer_is_done:
            # What the peer still wants to send is of no use any more; some is on its way.
            self.write(_reset(stream.id, Code.NO_ERROR))
            self._late = min(self._late + stream.window_in, CONNECTION_WINDOW)
        if not self.is_paused:
            self.earn()
        self._forget(stream.id)

    def earn(self) -> None:
        """Something got done for the peer."""
        if self._credit.spent:
            self._credit.earn()

    def reset(self, id: int, code: Code) -> None:
        self.write(_reset(id, code))
        self._forget(id)

    # How it ends.

    def drain(self) -> None:
        """Take no more streams, tell the peer so, and end when those that are there have ended.

        It hears of it twice: what it has sent before it heard the first word is still answered.
        """
        if self.is_ending or self._is_draining:
            return
        self._is_draining = True
        self.write(_goaway(frames.LARGEST_STREAM_ID, Code.NO_ERROR))
        self.write(frame(frames.PING, 0, 0, _LAST_PING))
        self._set_timer(LINGER_S, self._take_no_more)

    def _take_no_more(self) -> None:
        if self._takes_more:
            self._takes_more = False
            self.write(_goaway(self._last_id, Code.NO_ERROR))
            self._end_if_done()

    def _end_if_done(self) -> None:
        if not self.streams and not self.is_ending:
            self.is_ending = True
            self.transport.close()
            self._set_timer(LINGER_S, self.transport.abort)

    def _fail(self, fault: ConnectionFault) -> None:
        self.write(_goaway(self._last_id, fault.code, str(fault)))
        self.is_ending = True
        self._lose_streams()
        # Closed at once, with something unread, the connection would take the message with it.
        self.transport.pause_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._set_timer(LINGER_S, self.transport.abort)

    def _lose_streams(self) -> None:
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.lose()

    def _set_timer(self, seconds: float, callback: Callable[[], object]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, callback)

    def _forget(self, id: int) -> None:
        self.streams.pop(id, None)
        if not self._takes_more:
            self._end_if_done()

    def _charge(self, cost: int = 1) -> None:
        """The peer has sent what gets nothing done. Raises `ConnectionFault` at last."""
        self._credit.spent += cost
        if self._credit.spent > MOST_IDLE:
            # Who does not even read what we answer is forgiven nothing.
            self._credit.check(forgives=not self.is_paused)

    # What comes in.

    def begin(self) -> None:
        if self._timer is not None and not self._is_draining:
            self._timer.cancel()

    def begin_data(self, id: int, length: int, padding: int = 0) -> Stream | None:
        self._window_in -= length
        if self._window_in <= CONNECTION_WINDOW // 2:
            self._widen_in()
        stream = self.streams.get(id)
        if stream is None:
            self._check_old(id, "DATA")
            if 0 < length <= self._late:
                self._late -= length
            else:
                self._charge()
            return None
        if stream.peer_is_done:
            raise StreamFault(Code.STREAM_CLOSED, "data after the end of a stream")
        stream.window_in -= length
        if stream.window_in < 0:
            raise StreamFault(Code.FLOW_CONTROL_ERROR, "more data than the stream takes")
        if padding:
            stream.grant(padding)
        return stream

    def _widen_in(self) -> None:
        """Let the peer send as much as it might at first."""
        if self._window_in < 0:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "more data than the connection takes")
        size, self._window_in = CONNECTION_WINDOW - self._window_in, CONNECTION_WINDOW
        self.write(frame(frames.WINDOW_UPDATE, 0, 0, frames.NUMBER.pack(size)))

    def take_data(self, stream: Stream, data: bytes, at: int, size: int, *, ends: bool) -> None:
        if stream.is_done:
            return
        # A view saves a copy, and keeps all of what was read.
        is_most = size > 4096 and 4 * size >= len(data)
        piece = memoryview(data)[at : at + size] if is_most else data[at : at + size]
        if ends:
            stream.peer_is_done = True
        elif not size:
            self._charge()
        stream.receive(piece, ends)

    def take_headers(self, id: int, block: bytes, ends: bool) -> None:
        is_new = id > self._last_id
        if not id & 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"a client cannot open stream {id}")
        if is_new and self._takes_more:
            self._last_id = id
            if self.is_paused:
                self._charge()  # it asks, and does not read what it is answered
        # Whatever becomes of it: later blocks may refer to what it puts into the table.
        head = self._reader.known.get(block) or self._reader.read(block)
        if not is_new:
            self._take_trailers(id, ends)
        elif not self._takes_more:
            self._charge()
        elif len(self.streams) >= MAX_STREAMS:
            raise StreamFault(Code.REFUSED_STREAM, f"there are {MAX_STREAMS} streams already")
        else:
            stream = self._application.open(self, id, head, ends)
            if not stream.is_done:
                self.streams[id] = stream

    def _take_trailers(self, id: int, ends: bool) -> None:
        stream = self.streams.get(id)
        if stream is None:
            self._charge()
        elif stream.peer_is_done or not ends:
            raise StreamFault(Code.PROTOCOL_ERROR, "headers in the midst of a stream")
        else:
            stream.peer_is_done = True
            stream.receive(b"", True)

    def take_frame(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        match kind:
            case frames.PING:
                self._take_ping(id, flags, payload)
            case frames.SETTINGS:
                self._take_settings(id, flags, payload)
            case frames.RST_STREAM:
                self._take_reset(id, payload)
            case frames.PUSH_PROMISE:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a client cannot push")
            case _:
                # Priorities, extensions, and the peer's word that it takes no streams of ours.
                self._charge()

    def take_window_update(self, id: int, size: int) -> None:
        self._charge()
        if not size:
            fault = StreamFault if id else ConnectionFault
            raise fault(Code.PROTOCOL_ERROR, "a window cannot grow by nothing")
        if not id:
            self.widen(size)
        elif (stream := self.streams.get(id)) is not None:
            stream.widen(size)
        else:
            self._check_old(id, "WINDOW_UPDATE")

    def _take_ping(self, id: int, flags: int, payload: bytes) -> None:
        if id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "PING has no stream")
        if len(payload) != 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "PING has eight bytes")
        self._charge()
        if not flags & frames.ACK:
            self.write(frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _LAST_PING:
            self._take_no_more()

    def _take_settings(self, id: int, flags: int, payload: bytes) -> None:
        if id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "SETTINGS has no stream")
        if flags & frames.ACK and payload:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "SETTINGS with ACK has nothing in it")
        self._charge(_SETTINGS_COST)
        if flags & frames.ACK:
            return
        if len(payload) > MAX_SETTINGS_BYTES:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many settings")
        # Of those that come twice the last counts: each may concern all streams.
        for name, value in dict(frames.read_settings(payload)).items():
            if name == frames.INITIAL_WINDOW_SIZE:
                change = value - self.initial_window_out
                self.initial_window_out = value
                for stream in list(self.streams.values()):
                    try:
                        stream.widen(change)
                    except StreamFault as fault:
                        raise ConnectionFault(fault.code, str(fault)) from None
            elif name == frames.MAX_FRAME_SIZE:
                self.max_frame_out = value
        self.write(frame(frames.SETTINGS, frames.ACK, 0))

    def _take_reset(self, id: int, payload: bytes) -> None:
        frames.number(payload, "RST_STREAM")
        self._check_old(id, "RST_STREAM")
        stream = self.streams.get(id)
        if stream is not None and self.loop.time() - stream.since >= BRIEF_S:
            self.earn()
        else:
            self._charge()
        if stream is not None:
            stream.lose()
            self._forget(id)

    def fail_stream(self, id: int, fault: StreamFault) -> None:
        self._charge()
        stream = self.streams.get(id)
        if stream is not None:
            stream.lose()
        self.reset(id, fault.code)

    def _check_old(self, id: int, what: str) -> None:
        """A frame is for a stream that there was once. Raises `ConnectionFault`."""
        if not id & 1 or (id > self._last_id and self._takes_more):
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"{what} for stream {id}, which never was")


def _reset(id: int, code: Code) -> bytes:
    return frame(frames.RST_STREAM, 0, id, frames.NUMBER.pack(code))


def _goaway(last_id: int, code: Code, message: str = "") -> bytes:
    return frame(frames.GOAWAY, 0, 0, _GOAWAY.pack(last_id, code) + message.encode())
