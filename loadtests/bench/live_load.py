"""The load of live recordings: a process of its own, which must not be what is measured.

Reads a `Plan` as JSON from standard input and writes a `Result` as JSON to standard output. Each of
many streams sends one recording after another in pieces, each at the moment at which it would have
been spoken. What is sent is made before the clock starts.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, Literal, cast

import grpc
import numpy as np
import soundfile
import soxr
import uvloop
from load import Watched
from tritonclient.grpc import service_pb2

Wire = Literal["realtime", "stream"]
"""The WebSocket /v1/realtime, with what OpenAI's clients send; or ModelStreamInfer of protocol v2.
"""

_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_CHANNELS = 8
_ERROR_TAG = 0x0A
"""The first byte of a response that is an error: its message is field 1."""
_TEXT, _PING, _PONG = 0x1, 0x9, 0xA


@dataclass
class Plan:
    wire: Wire
    port: int
    model: str
    server_pid: int
    streams: int
    recordings: list[str]
    rate_hz: int
    piece_samples: int
    """At that rate. In protocol v2 these are the model's."""
    seconds: float
    warmup_s: float
    """From which only the deltas of whole recordings are kept."""
    seed: int = 1


@dataclass
class Heard:
    """One recording that was sent to its end, or a part of it in protocol v2."""

    stream: int
    recording: int
    text: str
    deltas: list[tuple[str, float]]
    """Each with the second, from the beginning of the recording, at which it came."""
    lags: list[float]
    """In protocol v2: seconds from the end of each piece to its answer."""
    completed_lag: float
    """From the end of the recording to its whole text."""
    ended: float
    """In seconds from the beginning of the measurement."""


@dataclass
class Result:
    seconds: float
    load_cpu_s: float
    server_cpu_s: float
    rss_bytes: int
    late_s: list[float]
    """How much later than it should each piece was sent."""
    heard: list[Heard] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class _Clock:
    """Says when a stream's pieces are due."""

    def __init__(self, plan: Plan):
        self.piece_s = plan.piece_samples / plan.rate_hz
        self.start = time.monotonic()
        self.stop = self.start + plan.warmup_s + plan.seconds
        self.late_s: list[float] = []

    async def until(self, due: float) -> None:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        self.late_s.append(time.monotonic() - due)


class _WebSocket(asyncio.Protocol):
    """A client of RFC 6455 that sends whole text messages and takes in unfragmented ones."""

    def __init__(self, on_text: Callable[[bytes], None]):
        self._on_text = on_text
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def open(self, path: str) -> None:
        key = base64.b64encode(bytes(16)).decode()
        self.send(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self.opened.done():
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._data[:end])
            del self._data[: end + 4]
            if not head.startswith(b"HTTP/1.1 101"):
                self.opened.set_exception(ConnectionError(head.decode(errors="replace")))
                return
            self.opened.set_result(None)
        while self._take():
            pass

    def _take(self) -> bool:
        """Take one frame out of what has come; false if there is none whole."""
        data = self._data
        if len(data) < 2:
            return False
        size, start = data[1] & 0x7F, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(data) < start:
                return False
            [size] = struct.unpack_from("!H" if start == 4 else "!Q", data, 2)
        if len(data) < start + size:
            return False
        kind, payload = data[0] & 0x0F, bytes(data[start : start + size])
        del data[: start + size]
        if kind == _TEXT:
            self._on_text(payload)
        elif kind == _PING:
            self.send(frame(payload, _PONG))
        return True


def frame(payload: bytes, kind: int = _TEXT) -> bytes:
    """A whole message. A client must mask it, and a key of zeros changes nothing."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | kind, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | kind, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | kind, 0x80 | 127, size)
    return head + bytes(4) + payload


def _pieces(plan: Plan) -> list[list[np.ndarray]]:
    """Each recording at the plan's rate, cut; the last piece is filled with silence."""
    recordings = []
    for path in plan.recordings:
        samples, rate_hz = soundfile.read(path, dtype="float32")
        samples = soxr.resample(samples, rate_hz, plan.rate_hz)
        count = -(-len(samples) // plan.piece_samples)
        padded = np.zeros(count * plan.piece_samples, np.float32)
        padded[: len(samples)] = samples
        recordings.append(list(padded.reshape(count, plan.piece_samples)))
    return recordings


class _Realtime:
    """One caller of /v1/realtime."""

    def __init__(self, load: Load, number: int):
        self._load = load
        self._number = number
        self._socket: _WebSocket | None = None
        self._begun: list[Heard] = []
        self._starts: list[float] = []
        self._done = 0

    async def run(self, place: int, start: float) -> None:
        plan, clock = self._load.plan, self._load.clock
        loop = asyncio.get_running_loop()
        _, socket = await loop.create_connection(
            lambda: _WebSocket(self._take), "127.0.0.1", plan.port
        )
        socket.open(f"/v1/realtime?model={plan.model}")
        await socket.opened
        socket.send(self._load.session)
        try:
            while start < clock.stop:
                recording = place % len(self._load.frames)
                self._starts.append(start)
                self._begun.append(Heard(self._number, recording, "", [], [], 0.0, 0.0))
                frames = self._load.frames[recording]
                for piece in frames:
                    start += clock.piece_s
                    await clock.until(start)
                    if start > clock.stop or socket.closed:
                        return
                    socket.send(piece)
                socket.send(self._load.commit)
                place += 1
        finally:
            if socket.closed:
                self._load.result.errors.append("the server closed a connection")
            socket.close()

    def _take(self, message: bytes) -> None:
        now = time.monotonic()
        event = json.loads(message)
        if event["type"].endswith("transcription.delta"):
            # What is said of one recording comes before what is said of the next.
            self._begun[self._done].deltas.append((event["delta"], now - self._starts[self._done]))
        elif event["type"].endswith("transcription.completed"):
            heard = self._begun[self._done]
            length_s = len(self._load.frames[heard.recording]) * self._load.clock.piece_s
            heard.text = event["transcript"]
            heard.completed_lag = now - self._starts[self._done] - length_s
            heard.ended = now - self._load.clock.start
            self._load.result.heard.append(heard)
            self._done += 1
        elif event["type"] == "error":
            self._load.result.errors.append(event["error"]["message"])


class _Stream:
    """One ModelStreamInfer call: recordings one after another, each a sequence."""

    def __init__(self, load: Load, number: int, channel: grpc.aio.Channel):
        self._load = load
        self._number = number
        self._channel = channel
        self._due: list[tuple[int, float]] = []
        """Recording and time of each piece that was sent."""

    async def run(self, place: int, start: float) -> None:
        method: Any = self._channel.stream_stream(_METHOD)
        call = method(self._messages(place, start))
        answered = 0
        async for message in call:
            now = time.monotonic()
            if message[0] == _ERROR_TAG:
                answer = service_pb2.ModelStreamInferResponse.FromString(message)
                self._load.result.errors.append(answer.error_message)
                continue
            recording, due = self._due[answered]
            answered += 1
            ended = now - self._load.clock.start
            self._load.result.heard.append(
                Heard(self._number, recording, "", [], [now - due], 0.0, ended)
            )

    async def _messages(self, place: int, start: float) -> AsyncIterator[bytes]:
        clock, recordings = self._load.clock, self._load.frames
        id = self._number * 1_000_000
        while True:
            id += 1
            recording = place % len(recordings)
            pieces = recordings[recording]
            for at, piece in enumerate(pieces):
                start += clock.piece_s
                await clock.until(start)
                is_over = start > clock.stop
                self._due.append((recording, start))
                # A message and more of its fields, one after the other, are one message.
                yield piece + _sequence(id, start=at == 0, end=is_over or at == len(pieces) - 1)
                if is_over:
                    return
            place += 1


def _sequence(id: int, *, start: bool, end: bool) -> bytes:
    more = service_pb2.ModelInferRequest()
    more.parameters["sequence_id"].int64_param = id
    more.parameters["sequence_start"].bool_param = start
    more.parameters["sequence_end"].bool_param = end
    message: bytes = more.SerializeToString()
    return message


class Load:
    def __init__(self, plan: Plan):
        self.plan = plan
        make = _append if plan.wire == "realtime" else _request(plan.model)
        self.frames = [[make(piece) for piece in pieces] for pieces in _pieces(plan)]
        self.session = _event(
            type="session.update",
            session={
                "type": "transcription",
                "audio": {"input": {"format": {"type": "audio/pcm", "rate": plan.rate_hz}}},
            },
        )
        self.commit = _event(type="input_audio_buffer.commit")

    async def run(self) -> Result:
        plan = self.plan
        self.clock = clock = _Clock(plan)
        self.result = Result(0.0, 0.0, 0.0, 0, clock.late_s)
        server = Watched(plan.server_pid)
        chance = Random(plan.seed)
        channels: list[grpc.aio.Channel] = []
        if plan.wire == "stream":
            channels = [
                # Without an option of its own each, they would share one connection.
                grpc.aio.insecure_channel(f"127.0.0.1:{plan.port}", [("slipway.channel", at)])
                for at in range(_CHANNELS)
            ]
        tasks = []
        for number in range(plan.streams):
            # They begin within the time of a recording, not all at once.
            start = clock.start + chance.uniform(0.0, max(clock.piece_s, plan.warmup_s / 2))
            stream = (
                _Stream(self, number, channels[number % _CHANNELS])
                if channels
                else _Realtime(self, number)
            )
            tasks.append(asyncio.create_task(stream.run(number, start)))
        await asyncio.sleep(plan.warmup_s)
        started, load_cpu, server_cpu = time.monotonic(), time.process_time(), server.cpu_s()
        await asyncio.sleep(plan.seconds)
        self.result.seconds = time.monotonic() - started
        self.result.load_cpu_s = time.process_time() - load_cpu
        self.result.server_cpu_s = server.cpu_s() - server_cpu
        self.result.rss_bytes = server.rss_bytes()
        _, late = await asyncio.wait(tasks, timeout=5.0)
        for task in late:
            task.cancel()
        for problem in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(problem, Exception):
                self.result.errors.append(f"{type(problem).__name__}: {problem}")
        for channel in channels:
            with suppress(Exception):
                await channel.close()
        return self.result


def _append(samples: np.ndarray) -> bytes:
    pcm = np.round(samples * 32767).astype("<i2").tobytes()
    return _event(type="input_audio_buffer.append", audio=base64.b64encode(pcm).decode())


def _event(**event: object) -> bytes:
    return frame(json.dumps(event).encode())


def _request(model: str) -> Callable[[np.ndarray], bytes]:
    def make(samples: np.ndarray) -> bytes:
        message = service_pb2.ModelInferRequest(model_name=model)
        tensor = message.inputs.add(name="waveform", datatype="FP32", shape=[1, len(samples)])
        assert tensor is not None
        message.raw_input_contents.append(samples.tobytes())
        serialized: bytes = message.SerializeToString()
        return serialized

    return make


def main() -> None:
    plan = Plan(**json.load(sys.stdin))
    load = Load(plan)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(load.run())
    json.dump(asdict(result), sys.stdout)


if __name__ == "__main__":
    main()
