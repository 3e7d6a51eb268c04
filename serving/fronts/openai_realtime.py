"""/v1/realtime: live transcription over a WebSocket, in the events of OpenAI's Realtime API.

A caller connects with `?model=NAME` and sends 16-bit little-endian PCM of one channel: in base64 by
`input_audio_buffer.append`, or as it is in binary messages. It is 24,000 samples a second unless
`session.update` names another `rate`. What has become certain is told after every chunk
(`conversation.item.input_audio_transcription.delta`). `input_audio_buffer.commit` ends a recording
and is answered by its whole text (`….completed`); what is appended then begins the next one.

Voice activity is not detected: the caller says where a recording ends. Events are answered in
order, so whoever sends faster than the model computes is held up and not buffered.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal
from uuid import uuid4

import numpy as np
import orjson
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from serving.errors import InvalidRequest, RequestError, SlipwayError, shown
from serving.fronts.asgi import describe
from serving.fronts.openai import openai_error
from serving.fronts.restricted import Restrictions
from serving.server import Server
from serving.speech.chunks import Chunk, Chunker
from serving.tasks.speech_recognition import INPUT, SpeechRecognition, frames_of
from serving.types import InferRequest, SequenceStep, Tensors

DEFAULT_RATE_HZ = 24_000
MAX_RECORDING_S = 3600
"""After which a caller must commit, for the text of a recording is kept until its end."""

_POLICY_VIOLATION = 1008


class _Event(BaseModel, extra="forbid", frozen=True):
    event_id: str | None = None


class _Format(BaseModel, extra="forbid", frozen=True):
    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Annotated[int, Field(ge=8000, le=48_000)] = DEFAULT_RATE_HZ


class _Transcription(BaseModel, extra="forbid", frozen=True):
    model: str | None = None
    language: str | None = None
    prompt: Annotated[str, Field(max_length=10_000)] = ""


class _Input(BaseModel, extra="forbid", frozen=True):
    format: _Format = _Format()
    transcription: _Transcription = _Transcription()
    turn_detection: None = None
    noise_reduction: None = None


class _Audio(BaseModel, extra="forbid", frozen=True):
    input: _Input = _Input()


class _Session(BaseModel, extra="forbid", frozen=True):
    type: Literal["transcription"] = "transcription"
    audio: _Audio = _Audio()


class _Update(_Event, frozen=True):
    type: Literal["session.update"]
    session: _Session


class _Append(_Event, frozen=True):
    type: Literal["input_audio_buffer.append"]
    audio: str


class _Commit(_Event, frozen=True):
    type: Literal["input_audio_buffer.commit"]


class _Clear(_Event, frozen=True):
    type: Literal["input_audio_buffer.clear"]


_EVENTS: TypeAdapter[_Update | _Append | _Commit | _Clear] = TypeAdapter(
    Annotated[_Update | _Append | _Commit | _Clear, Field(discriminator="type")]
)


def router(server: Server, restrictions: Restrictions, statuses: Mapping[str, int]) -> APIRouter:
    """The WebSocket /v1/realtime"""
    routes = APIRouter()

    @routes.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        try:
            restrictions.check("inference", socket.headers.get)
        except RequestError:
            await socket.close(_POLICY_VIOLATION)  # which refuses the connection
            return
        await socket.accept()
        name = socket.query_params.get("model", "")
        try:
            task = _live_recogniser(server, name)
        except RequestError as error:
            await _send_error(socket, error, statuses)
            await socket.close(_POLICY_VIOLATION)
            return
        with suppress(WebSocketDisconnect):
            await _Connection(server, socket, name, task, statuses).run()

    return routes


def _live_recogniser(server: Server, name: str) -> SpeechRecognition:
    try:
        task = server.model(name).task
        if not isinstance(task, SpeechRecognition) or not task.settings.is_live:
            raise InvalidRequest(f"model: expected a model that hears live, got {shown(name)}")
    except RequestError as error:
        error.field = "model"
        raise
    return task


class _Recording:
    """One recording that is going on: a sequence of chunks for the model."""

    def __init__(self, server: Server, name: str, task: SpeechRecognition, session: _Session):
        self.id = uuid4().hex
        self._server = server
        self._name = name
        self._rate_hz = task.settings.sampling_rate
        self._resampler = task.resampler(session.audio.input.format.rate)
        self._chunker = Chunker(task.settings)
        hot_words = dict.fromkeys(session.audio.input.transcription.prompt.split())
        try:
            parameters = task.Parameters(hot_words=tuple(hot_words))
        except ValidationError as error:
            raise InvalidRequest(f"prompt: {error.errors()[0]['msg']}") from None
        self.transcriber = task.transcriber(parameters)
        self._has_begun = False

    @property
    def duration_s(self) -> float:
        return self._chunker.samples / self._rate_hz

    def push(self, pcm: bytes) -> Iterable[Chunk]:
        """The chunks that are complete with these samples."""
        if len(pcm) % 2:
            raise InvalidRequest(f"audio: expected samples of 2 bytes each, got {len(pcm)} bytes")
        if self.duration_s > MAX_RECORDING_S:
            raise InvalidRequest(f"audio: commit the recording, it has {MAX_RECORDING_S} seconds")
        samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
        return self._chunker.push(self._resampler.push(samples))

    async def hear(self, chunk: Chunk, *, is_last: bool = False) -> None:
        samples, window = chunk
        outputs = await self._infer(samples[np.newaxis], is_last=is_last)
        self.transcriber.push(frames_of(outputs), window)

    async def finish(self) -> None:
        """Hear what is left."""
        rest = self._resampler.push(np.zeros(0, np.float32), is_last=True)
        chunks = [*self._chunker.push(rest), *self._chunker.finish()]
        for number, chunk in enumerate(chunks, start=1):
            await self.hear(chunk, is_last=number == len(chunks))

    async def drop(self) -> None:
        """Let the model forget a recording that will not go on."""
        if self._has_begun:
            with suppress(SlipwayError):
                [*_, (samples, _)] = self._chunker.finish()
                await self._infer(np.zeros_like(samples)[np.newaxis], is_last=True)

    async def _infer(self, samples: Any, *, is_last: bool) -> Tensors:
        step = SequenceStep(self.id, start=not self._has_begun, end=is_last)
        response = await self._server.infer(
            InferRequest(self._name, {INPUT: samples}, sequence=step)
        )
        self._has_begun = not is_last
        return response.outputs


class _Connection:
    """One caller: events come in, and are answered in their order."""

    def __init__(
        self,
        server: Server,
        socket: WebSocket,
        name: str,
        task: SpeechRecognition,
        statuses: Mapping[str, int],
    ):
        self._server = server
        self._socket = socket
        self._name = name
        self._task = task
        self._statuses = statuses
        transcription = _Transcription(model=name, language=task.settings.language)
        self._session = _Session(audio=_Audio(input=_Input(transcription=transcription)))
        self._recording: _Recording | None = None
        self._before: str | None = None

    async def run(self) -> None:
        """Until the caller leaves, which `WebSocketDisconnect` tells."""
        try:
            await self._send("session.created", session=self._described())
            while True:
                await self._serve(await self._socket.receive())
        finally:
            await self._drop()

    async def _serve(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        event_id = None
        try:
            if (pcm := message.get("bytes")) is not None:
                await self._append(pcm)
                return
            event = _parsed(message["text"])
            event_id = event.event_id
            await self._do(event)
        except WebSocketDisconnect:
            raise
        except InvalidRequest as error:
            self._server.note_invalid(self._name)
            await _send_error(self._socket, error, self._statuses, event_id)
        except Exception as error:
            # The model may not have heard a chunk, so what follows would not fit.
            await self._drop()
            await _send_error(self._socket, error, self._statuses, event_id)

    async def _do(self, event: _Update | _Append | _Commit | _Clear) -> None:
        match event:
            case _Update():
                await self._update(event.session)
            case _Append():
                try:
                    pcm = base64.b64decode(event.audio, validate=True)
                except (binascii.Error, ValueError):
                    raise InvalidRequest("audio: expected a string in base64") from None
                await self._append(pcm)
            case _Commit():
                await self._commit()
            case _Clear():
                await self._drop()
                await self._send("input_audio_buffer.cleared")

    async def _update(self, session: _Session) -> None:
        if self._recording is not None:
            raise InvalidRequest("session: a recording is going on; commit or clear it first")
        wanted = session.audio.input.transcription
        known = self._task.settings.language
        if wanted.model not in (None, self._name):
            raise InvalidRequest(f"model: expected {self._name!r}, which this connection has")
        if known and wanted.language and wanted.language.partition("-")[0].lower() != known:
            raise InvalidRequest(f"language: expected {known!r}, got {shown(wanted.language)}")
        self._session = session
        await self._send("session.updated", session=self._described())

    async def _append(self, pcm: bytes) -> None:
        if self._recording is None:
            self._recording = _Recording(self._server, self._name, self._task, self._session)
        recording = self._recording
        for chunk in recording.push(pcm):
            await recording.hear(chunk)
            await self._tell(recording, recording.transcriber.news())

    async def _commit(self) -> None:
        recording = self._recording
        if recording is None:
            raise InvalidRequest("commit: nothing has been appended")
        await self._send(
            "input_audio_buffer.committed", item_id=recording.id, previous_item_id=self._before
        )
        duration_s = recording.duration_s
        await recording.finish()
        await self._tell(recording, recording.transcriber.news(final=True))
        self._recording, self._before = None, recording.id
        await self._send(
            "conversation.item.input_audio_transcription.completed",
            item_id=recording.id,
            content_index=0,
            transcript=recording.transcriber.transcript(recording.duration_s).text,
            usage={"type": "duration", "seconds": round(duration_s, 3)},
        )

    async def _tell(self, recording: _Recording, text: str) -> None:
        if text:
            await self._send(
                "conversation.item.input_audio_transcription.delta",
                item_id=recording.id,
                content_index=0,
                delta=text,
            )

    async def _drop(self) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            await recording.drop()

    async def _send(self, type: str, **fields: Any) -> None:
        event = {"type": type, "event_id": uuid4().hex, **fields}
        await self._socket.send_text(orjson.dumps(event).decode())

    def _described(self) -> dict[str, Any]:
        return {"object": "realtime.transcription_session", **self._session.model_dump()}


async def _send_error(
    socket: WebSocket, error: Exception, statuses: Mapping[str, int], event_id: str | None = None
) -> None:
    status, message, _ = describe(error, statuses)
    told = orjson.loads(openai_error(status, message, error))["error"]
    event = {"type": "error", "event_id": uuid4().hex, "error": {**told, "event_id": event_id}}
    await socket.send_text(orjson.dumps(event).decode())


def _parsed(text: str) -> _Update | _Append | _Commit | _Clear:
    try:
        return _EVENTS.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"][1:])) or "the event"
        raise InvalidRequest(f"{field}: {first['msg']}") from None
