"""How much a peer takes, on a connection and now; and who waits for it to take more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from serving.fronts.http2 import frames
from serving.fronts.http2.frames import Code, ConnectionFault
from serving.fronts.http2.headers import NO_TABLE

Buffer = bytes | bytearray | memoryview


class HeldBack(Protocol):
    """Who would begin with what leads to an answer."""

    def proceed(self) -> None:
        """Now it may."""


class Outgoing(asyncio.Protocol):
    """The windows of streams are their own; see `Stream`.

    While the peer is owed answers to, or of, more than `most_owed` bytes, no more is to begin.
    """

    transport: asyncio.Transport

    def __init__(self, most_owed: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_ending = False
        """Nothing is read or written any more."""
        self.is_paused = False
        """What was written has not even left yet."""
        self.window_out = frames.DEFAULT_WINDOW
        self.initial_window_out = frames.DEFAULT_WINDOW
        """Of a stream."""
        self.max_frame_out = frames.DEFAULT_FRAME_SIZE
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.owed = 0
        """Bytes of what is being answered, and of answers that wait for room."""
        self._most_owed = most_owed
        self._held_back: dict[HeldBack, None] = {}
        self._lets_go = False
        """They are told to proceed, one after the other."""
        self._first = NO_TABLE

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.wake()

    def write(self, data: Buffer) -> None:
        if not self.is_ending:
            self.transport.write(data)

    def write_all(self, parts: Sequence[Buffer]) -> None:
        if not self.is_ending:
            self.transport.writelines(parts)

    def first(self) -> bytes:
        """What the next block of headers must begin with."""
        first, self._first = self._first, b""
        return first

    def room(self) -> int:
        """Bytes that can go out now, for whoever has not waited."""
        return 0 if self.is_paused or self._waiting else self.window_out

    def owe(self, size: int) -> None:
        """So many bytes more are owed; or fewer, if it is less than 0."""
        self.owed += size
        if not self._held_back or self._lets_go or self.is_ending:
            return
        # Who proceeds may have its answer at once, and come here before the next is told.
        self._lets_go = True
        try:
            while self._held_back and not self.is_behind:
                first = next(iter(self._held_back))
                del self._held_back[first]
                first.proceed()
        finally:
            self._lets_go = False

    @property
    def is_behind(self) -> bool:
        """Whether too much is owed."""
        return self.owed > self._most_owed

    def holds_back(self, who: HeldBack) -> bool:
        """Whether it must wait to be told that it may `proceed`."""
        if not self.is_behind:
            return False
        self._held_back[who] = None
        return True

    def forget(self, who: HeldBack) -> None:
        """It waits no more."""
        self._held_back.pop(who, None)

    async def wait_for_room(self) -> None:
        """One after the other."""
        turn = self.loop.create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            self.wake()
            raise

    def wake(self) -> None:
        """Let the next who waits have what room there is; it is to call this when it is done."""
        while self._waiting and not self.is_paused and self.window_out > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def widen(self, size: int) -> None:
        """The peer takes so many bytes more. Raises `ConnectionFault`."""
        self.window_out += size
        if self.window_out > frames.LARGEST_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "the connection's window is too large")
        self.wake()
