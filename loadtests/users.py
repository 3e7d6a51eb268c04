"""Locust users of the shipped models: one for each, and one that asks them all.

  locust -f loadtests/users.py DigitsUser --host http://localhost:8000
  locust -f loadtests/users.py MixedUser --host http://localhost:8000 --tags v2_grpc task
  locust -f loadtests/users.py TranslatorUser --host http://localhost:8000 --headless --users 8 \\
      --run-time 30s --tags stream

Each asks through every front that its model has; --tags picks some: v2_http, v2_grpc, task, openai,
stream, realtime. Inputs vary, and answers are checked: by what is known to be right or, where that
is not known, by what the same input was answered before the first measured call with it. Of
streamed answers, the time to the first event and the pauses between events have rows of their own.

Users wait for their answers: this is a closed loop. `loadtests/run.py` has the open one.
"""

from __future__ import annotations

import base64
import http.client
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gevent
import grpc
import numpy as np
import websocket
from grpc.experimental.gevent import init_gevent
from loadreport.calls import LENGTH_HEADER, Answer, Call, calls, said
from loadreport.expectations import problem
from loadreport.models import MODELS, Front, ShippedModel
from locust import FastHttpUser, TaskSet, events, tag
from locust.argument_parser import LocustArgumentParser
from locust.exception import RescheduleTask

init_gevent()

TIMEOUT_S = 60.0
RATE_HZ, PIECE_SAMPLES = 16_000, 1920
"""Of live speech, which comes in pieces, as it is spoken."""


def _add_options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--grpc-port", type=int, default=8001, help="of the server at --host")


# Locust leaves its events untyped.
events.init_command_line_parser.add_listener(_add_options)  # type: ignore[no-untyped-call]


@dataclass
class Pool:
    """What is asked through one front, and what is answered, as far as that is known yet."""

    model: ShippedModel
    front: Front
    calls: Sequence[Call]
    expected: dict[int, str]


class AskingUser(FastHttpUser):
    """Knows how to ask any shipped model through any front."""

    abstract = True
    connection_timeout = network_timeout = TIMEOUT_S
    _pools: ClassVar[dict[tuple[str, Front], Pool]] = {}

    def on_start(self) -> None:
        parts = urlsplit(self.host or "")
        self._address = parts.hostname or "", parts.port or 80
        options = self.environment.parsed_options
        port = options.grpc_port if options else 8001
        self._channel = grpc.insecure_channel(f"{self._address[0]}:{port}")
        self._methods: dict[str, Callable[..., bytes]] = {}

    def on_stop(self) -> None:
        self._channel.close()

    def ask(self, model: ShippedModel, front: Front) -> None:
        """Make one call and tell locust of it."""
        pool, number = self._drawn(model, front)
        name = f"{model.name} {front}"
        if front == "stream":
            self._ask_stream(name, pool, number)
        elif front == "v2_grpc":
            self._timed("gRPC", name, pool, number, lambda: self._grpc(pool.calls[number]))
        else:
            self._ask_http(name, pool, number)

    def _ask_http(self, name: str, pool: Pool, number: int) -> None:
        call = pool.calls[number]
        headers = {"Accept-Encoding": "identity", **call.headers}
        # Bytes are sent as they are, whatever the annotation says.
        body: Any = call.body
        with self.client.post(
            call.path, data=body, headers=headers, name=name, catch_response=True
        ) as response:
            if response.status_code != 200:
                return
            length = int((response.headers or {}).get(LENGTH_HEADER, 0))
            wrong = _wrong(pool, number, Answer(response.content or b"", length))
            if wrong is not None:
                response.failure(wrong)

    def _ask_stream(self, name: str, pool: Pool, number: int) -> None:
        times: list[float] = []
        sent = time.perf_counter()
        self._timed("SSE", name, pool, number, lambda: self._http(pool.calls[number], times))
        if times:
            self._tell("SSE", f"{name}: first event", times[0] - sent)
        for earlier, later in pairwise(times):
            self._tell("SSE", f"{name}: between events", later - earlier)

    def _timed(
        self, kind: str, name: str, pool: Pool, number: int, ask: Callable[[], Answer]
    ) -> None:
        answer = Answer(b"")
        error: Exception | None = None
        started = time.perf_counter()
        try:
            answer = ask()
        except (OSError, http.client.HTTPException, grpc.RpcError) as raised:
            error = raised
        elapsed = time.perf_counter() - started
        if error is None:
            error = _wrong(pool, number, answer)
        self._tell(kind, name, elapsed, len(answer.body), error)

    def _tell(
        self, kind: str, name: str, seconds: float, length: int = 0, error: Exception | None = None
    ) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=1000 * seconds,
            response_length=length,
            exception=error,
            context={},
        )

    def _drawn(self, model: ShippedModel, front: Front) -> tuple[Pool, int]:
        """One of the inputs of a front.

        What the answer has to be is known, or asked beforehand, once for all users of this process.
        """
        pool = self._pools.get((model.name, front))
        if pool is None:
            made = calls(model, front, model.samples())
            known = {at: call.truth for at, call in enumerate(made) if call.truth is not None}
            pool = self._pools[model.name, front] = Pool(model, front, made, known)
        number = random.randrange(len(pool.calls))
        if number not in pool.expected:
            call = pool.calls[number]
            try:
                answer = self._grpc(call) if front == "v2_grpc" else self._http(call)
            except (OSError, http.client.HTTPException, grpc.RpcError) as error:
                self._tell(front, f"{model.name} {front}: asked beforehand", 0.0, error=error)
                raise RescheduleTask from error
            pool.expected[number] = said(model, front, answer)
        return pool, number

    def _http(self, call: Call, times: list[float] | None = None) -> Answer:
        """One call on a connection of its own. Notes when events come. Raises `OSError`."""
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)
        try:
            connection.request("POST", call.path, call.body, dict(call.headers))
            response = connection.getresponse()
            lines = []
            while line := response.readline():
                if times is not None and line.startswith(b"data: "):
                    times.append(time.perf_counter())
                lines.append(line)
            body = b"".join(lines)
            if response.status != 200:
                text = body[:200].decode(errors="replace")
                raise ConnectionError(f"status {response.status}: {text}")
            return Answer(body, int(response.getheader(LENGTH_HEADER) or 0))
        finally:
            connection.close()

    def _grpc(self, call: Call) -> Answer:
        if call.path not in self._methods:
            self._methods[call.path] = self._channel.unary_unary(call.path)
        return Answer(self._methods[call.path](call.body, timeout=TIMEOUT_S))

    def listen(self, model: ShippedModel) -> None:
        """Speak a recording into /v1/realtime, as fast as it was spoken, and hear the text grow.

        The last row is what a speaker waits for: from the end of speech to the whole text.
        """
        pool, number = self._drawn(model, "task")
        samples = model.samples()[number].tensor[0]
        name, times = f"{model.name} realtime", list[float]()
        text = ""
        error: Exception | None = None
        host, port = self._address
        started = ended = time.perf_counter()
        try:
            socket = websocket.create_connection(
                f"ws://{host}:{port}/v1/realtime?model={model.name}", timeout=TIMEOUT_S
            )
            speaking = gevent.spawn(_speak, socket, samples)
            try:
                text = _heard(socket, times)
            finally:
                ended = speaking.get()
                socket.close()
        except (OSError, websocket.WebSocketException, ValueError) as raised:
            error = raised
        expected = pool.expected[number]
        if error is None and text != expected:
            error = ValueError(f"wrong answer: expected {expected[:60]!r}, got {text[:60]!r}")
        if times:
            self._tell("WS", f"{name}: first event", times[0] - started)
        for earlier, later in pairwise(times):
            self._tell("WS", f"{name}: between events", later - earlier)
        self._tell("WS", name, time.perf_counter() - ended, len(text), error)


def _wrong(pool: Pool, number: int, answer: Answer) -> ValueError | None:
    found = problem(pool.model, pool.front, pool.expected[number], answer)
    return None if found is None else ValueError(f"wrong answer: {found}")


def _speak(socket: Any, samples: np.ndarray) -> float:
    """Send a recording at its own speed. Returns when its end was sent."""
    transcription = {"audio": {"input": {"format": {"type": "audio/pcm", "rate": RATE_HZ}}}}
    session = {"type": "transcription", **transcription}
    socket.send(json.dumps({"type": "session.update", "session": session}))
    pcm = np.round(samples * 32768).astype("<i2")
    due = time.perf_counter()
    for start in range(0, len(pcm), PIECE_SAMPLES):
        piece = pcm[start : start + PIECE_SAMPLES]
        due += len(piece) / RATE_HZ
        gevent.sleep(max(0.0, due - time.perf_counter()))
        audio = base64.b64encode(piece.tobytes()).decode()
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
    socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
    return time.perf_counter()


def _heard(socket: Any, times: list[float]) -> str:
    """The whole text; notes when pieces of it come. Raises `ValueError` if there is none."""
    while True:
        event = json.loads(socket.recv())
        if event["type"].endswith("transcription.delta"):
            times.append(time.perf_counter())
        elif event["type"].endswith("transcription.completed"):
            return str(event["transcript"])
        elif event["type"] == "error" or event["type"].endswith("transcription.failed"):
            raise ValueError(event["error"]["message"])


Task = TaskSet | Callable[..., Any]


def _asking(model: ShippedModel, front: Front) -> Task:
    @tag(front)
    def ask(user: AskingUser) -> None:
        user.ask(model, front)

    return ask


def _listening(model: ShippedModel) -> Task:
    @tag("realtime")
    def listen(user: AskingUser) -> None:
        user.listen(model)

    return listen


def _tasks(*names: str) -> list[Task]:
    """One for every front of the models."""
    tasks: list[Task] = []
    for model in map(MODELS.__getitem__, names):
        tasks += [_asking(model, front) for front in model.fronts]
        if model.kind == "live":
            tasks.append(_listening(model))
    return tasks


class DigitsUser(AskingUser):
    tasks = _tasks("digits")


class TranslatorUser(AskingUser):
    tasks = _tasks("translator")


class SpokenNumbersUser(AskingUser):
    tasks = _tasks("spoken-numbers")


class SpokenNumbersLiveUser(AskingUser):
    tasks = _tasks("spoken-numbers-live")


class SpokenNumbersWhisperUser(AskingUser):
    tasks = _tasks("spoken-numbers-whisper")


class DigitsDiffusionUser(AskingUser):
    tasks = _tasks("digits-diffusion")


class MixedUser(AskingUser):
    """All models, and all of their fronts equally often."""

    tasks = _tasks(*MODELS)
