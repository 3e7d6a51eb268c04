"""The other end of an HTTP/2 connection: `h2` on a plain socket, which may also misbehave."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

import numpy as np
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    PingAckReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from hpack import Encoder
from tritonclient.grpc import service_pb2

from tests.support import RunningServer, serving

Frame = tuple[int, int, bytes]
"""Kind, stream and payload."""
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9
END_STREAM, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x4, 0x8, 0x20
ACK = 0x1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame, right or wrong."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def frames(data: bytes) -> list[Frame]:
    """Whole ones."""
    found, at = [], 0
    while at + 9 <= len(data):
        end = at + 9 + int.from_bytes(data[at : at + 3], "big")
        id = int.from_bytes(data[at + 5 : at + 9], "big")
        found.append((data[at + 3], id, data[at + 9 : end]))
        at = end
    return found


def framed(message: bytes, *, compressed: bool = False) -> bytes:
    return struct.pack(">BI", compressed, len(message)) + message


def infer_message(model: str, *values: float, rows: bool = True, **fields: Any) -> bytes:
    array = np.array([values] if rows else values, np.float32)
    message = service_pb2.ModelInferRequest(model_name=model, **fields)
    message.inputs.add(name="x", datatype="FP32", shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    data: bytes = message.SerializeToString()
    return data


def head(path: str = INFER, **changes: str | None) -> list[tuple[str, str]]:
    """The headers of a call. Changes are by name, with _ for -, and for a : in front."""
    headers: dict[str, str | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    for name, value in changes.items():
        real = ":" + name[1:] if name.startswith("_") else name.replace("_", "-")
        headers[real] = value
    return [(name, value) for name, value in headers.items() if value is not None]


def block(path: str = INFER) -> bytes:
    """The headers of a call, for raw frames."""
    return bytes(Encoder().encode(head(path)))


ECHO = infer_message("echo", 1, 2, 3, 4)


def is_up(server: RunningServer) -> bool:
    """Whether an honest caller has an answer of the model `echo`."""
    with Peer(server.grpc_port) as honest:
        return honest.call(ECHO).values() == [1, 2, 3, 4]


@dataclass
class Answer:
    """What came by one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        """gRPC's."""
        return int((self.headers | self.trailers)["grpc-status"])

    @property
    def message(self) -> str:
        return unquote((self.headers | self.trailers).get("grpc-message", ""))

    @property
    def http_status(self) -> int:
        return int(self.headers[":status"])

    def messages(self) -> list[bytes]:
        found, at = [], 0
        while at < len(self.data):
            flag, length = struct.unpack_from(">BI", self.data, at)
            assert flag == 0
            found.append(self.data[at + 5 : at + 5 + length])
            at += 5 + length
        return found

    def values(self) -> list[float]:
        """The first output of the only answer to ModelInfer."""
        (data,) = self.messages()
        response = service_pb2.ModelInferResponse.FromString(data)
        numbers: list[float] = np.frombuffer(response.raw_output_contents[0], np.float32).tolist()
        return numbers


class Peer:
    """A connection, and what came by it. `settings` are ours, before any call."""

    def __init__(self, port: int, settings: dict[Any, int] | None = None, *, reads: bool = True):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.h2 = H2Connection(
            H2Configuration(
                client_side=True, header_encoding="utf-8", validate_outbound_headers=False
            )
        )
        self.answers: dict[int, Answer] = {}
        self.events: list[Event] = []
        self._pings = itertools.count()
        self._unread = b""
        self._is_ending = False
        self.reads = reads
        """Whether it makes room for what it has read."""
        self.h2.initiate_connection()
        if settings:
            self.h2.update_settings(settings)
            self.ping()  # h2 counts by them only once the server knows them
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def open(self, headers: Sequence[tuple[str, str]], *, ends: bool = False) -> int:
        id = int(self.h2.get_next_available_stream_id())
        self.answers[id] = Answer()
        self.h2.send_headers(id, headers, end_stream=ends)
        self.flush()
        return id

    def send(self, id: int, data: bytes, *, ends: bool = True) -> None:
        """As the server makes room."""
        while data:
            self.read_until(lambda: self.h2.local_flow_control_window(id) > 0)
            size = min(self.h2.local_flow_control_window(id), self.h2.max_outbound_frame_size)
            piece, data = data[:size], data[size:]
            self.h2.send_data(id, piece, end_stream=ends and not data)
            self.flush()

    def call(self, message: bytes, headers: Sequence[tuple[str, str]] | None = None) -> Answer:
        """One message, and all of its answer."""
        id = self.open(head() if headers is None else headers)
        self.send(id, framed(message))
        return self.answer(id)

    def answer(self, id: int) -> Answer:
        answer = self.answers[id]
        self.read_until(lambda: answer.ended or answer.reset is not None)
        return answer

    def raw(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def read_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.read()

    def read(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the server has closed the connection")
        self._unread += data
        while len(self._unread) >= 9 and not self._is_ending:
            end = 9 + int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < end:
                break
            # After a GOAWAY h2 reads nothing, so that must not come with what was before it.
            self._is_ending = self._unread[3] == GOAWAY
            piece, self._unread = self._unread[:end], self._unread[end:]
            for event in self.h2.receive_data(piece):
                self._take(event)
        self.flush()

    def _take(self, event: Event) -> None:
        self.events.append(event)
        answer = self.answers.get(getattr(event, "stream_id", 0) or 0)
        if answer is None:
            return
        match event:
            case ResponseReceived():
                answer.headers = _texts(event.headers)
            case TrailersReceived():
                answer.trailers = _texts(event.headers)
            case DataReceived():
                answer.data += event.data
                if self.reads:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case StreamEnded():
                answer.ended = True
            case StreamReset():
                # After an answer it only says that no more need be sent.
                answer.reset = None if answer.ended else int(event.error_code)

    def ping(self) -> None:
        """Waits for the answer: everything before is dealt with then."""
        data = next(self._pings).to_bytes(8, "big")
        self.h2.ping(data)
        self.flush()
        self.read_until(
            lambda: any(
                isinstance(event, PingAckReceived) and event.ping_data == data
                for event in self.events
            )
        )

    def rest(self) -> list[Frame]:
        """What comes until the server closes, without h2, which reads nothing after a GOAWAY."""
        data = self._unread
        while piece := self.socket.recv(1 << 16):
            data += piece
        return frames(data)


def _texts(headers: Iterable[Any] | None) -> dict[str, str]:
    return {str(name): str(value) for name, value in headers or ()}


def raw_goaway(port: int, *parts: bytes) -> tuple[int, str]:
    """Send bytes, and return the code and the text of the GOAWAY that answers them."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        data = b""
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass  # it is closed already
        try:
            while piece := connection.recv(1 << 16):
                data += piece
        except ConnectionResetError:
            pass
    for kind, _, payload in frames(data):
        if kind == GOAWAY:
            return int.from_bytes(payload[4:8], "big"), payload[8:].decode()
    raise AssertionError("there was no GOAWAY")


@contextmanager
def flawless(repository: Path, *options: str) -> Iterator[RunningServer]:
    """A server that must not have let anything slip, whatever it was sent."""
    with serving(repository, *options) as server:
        yield server
        assert server.events("unexpected error") == []
        # asyncio's and Python's own words.
        assert server.events("text") == []
