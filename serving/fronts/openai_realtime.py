"""/v1/realtime: live transcription over a WebSocket, in the events of OpenAI's Realtime API.

A caller connects with `?model=NAME` and sends 16-bit little-endian PCM of one channel: in base64 by
`input_audio_buffer.append`, or as it is in binary messages, of a megabyte at most. It is 24,000
samples a second unless `session.update` names another `rate`. What has become certain is told after
every chunk (`conversation.item.input_audio_transcription.delta`). `input_audio_buffer.commit` ends
a recording and is answered by its whole text (`….completed`); what is appended then begins the next
one. If the model has failed, or has forgotten a recording that paused for too long, that is told
(`….failed`) and the recording is over.

Voice activity is not detected: the caller says where a recording ends. Events are answered in
order, so whoever sends faster than the model computes is held up and not buffered; so are the pings
by which such a caller asks whether the server is there.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Annotated, Any, Literal
from uuid import uuid4

import numpy as np
import orjson
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field

from serving.calls import Call, Front, new_id
from serving.errors import InvalidRequest, RequestError, Unavailable, shown
from serving.fronts.asgi import describe
from serving.fronts.asking import leave
from serving.fronts.checked import about, checked
from serving.fronts.openai import openai_error
from serving.fronts.prompt import expecting
from serving.fronts.restricted import Restrictions
from serving.server import Server
from serving.speech.chunks import Chunk, Chunker
from serving.tasks.speech_recognition import INPUT, SpeechRecognition, frames_of
from serving.types import InferRequest, SequenceStep

DEFAULT_RATE_HZ = 24_000
MAX_RECORDING_S = 3600
"""After which a caller must commit, for the text of a recording is kept until its end."""

_POLICY_VIOLATION = 1008
_FEW_WORDS = 500
"""Of a model's own: among so many a chunk is searched in a fraction of a millisecond."""


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


_EVENTS: Mapping[str, type[_Update | _Append | _Commit | _Clear]] = {
    "session.update": _Update,
    "input_audio_buffer.append": _Append,
    "input_audio_buffer.commit": _Commit,
    "input_audio_buffer.clear": _Clear,
}


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
        with suppress(WebSocketDisconnect):
            await socket.accept()
            name = socket.query_params.get("model", "")
            try:
                task = _live_recogniser(server, name)
            except RequestError as error:
                await _send(socket, "error", error=_told(error, statuses))
                await socket.close(_POLICY_VIOLATION)
                return
            await _Connection(server, socket, name, task, statuses).run()

    return routes


def _live_recogniser(server: Server, name: str) -> SpeechRecognition:
    try:
        task = server.model(name).task
    except RequestError as error:
        error.field = "model"
        raise
    if not isinstance(task, SpeechRecognition) or not task.settings.is_live:
        raise about("model", f"expected a model that hears live, got {shown(name)}")
    return task


class _Recording:
    """One recording that is going on: a sequence of chunks for the model."""

    def __init__(
        self,
        server: Server,
        name: str,
        task: SpeechRecognition,
        rate_hz: int,
        parameters: SpeechRecognition.Parameters,
    ):
        self.id = uuid4().hex
        self.text = ""
        """What has become certain."""
        self._server = server
        self._name = name
        self._rate_hz = task.settings.sampling_rate
        self._resampler = task.resampler(rate_hz)
        self._chunker = Chunker(task.settings)
        self._transcriber = task.transcriber(parameters)
        # What takes milliseconds for a chunk shall not hold up others.
        self._searches = bool(parameters.hot_words) or len(task.settings.words) > _FEW_WORDS
        self._has_begun = False

    @property
    def duration_s(self) -> float:
        return self._chunker.samples / self._rate_hz

    def push(self, pcm: bytes) -> Iterable[Chunk]:
        """The chunks that are complete with these samples."""
        if self.duration_s > MAX_RECORDING_S:
            raise about("audio", f"commit the recording, it has {MAX_RECORDING_S} seconds")
        samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
        return self._chunker.push(self._resampler.push(samples))

    async def hear(self, chunk: Chunk, call: Call, *, is_last: bool = False) -> None:
        samples, window = chunk
        step = SequenceStep(self.id, start=not self._has_begun, end=is_last)
        inputs = {INPUT: samples[np.newaxis]}
        self._has_begun = True
        request = InferRequest(self._name, inputs, sequence=step, call=call)
        try:
            response = await self._server.infer(request)
        except InvalidRequest:
            # The caller knows nothing of sequences, and cannot mend a chunk.
            raise Unavailable(
                "the model has forgotten the recording, as it does after a long pause or for a"
                " new version; append it anew"
            ) from None
        frames = frames_of(response.outputs)
        if self._searches:
            await asyncio.to_thread(self._transcriber.push, frames, window)
        else:
            self._transcriber.push(frames, window)

    async def news(self, *, final: bool = False) -> str:
        """The text that has become certain since this was last asked; if `final`, all the rest."""
        if self._searches:
            news = await asyncio.to_thread(self._transcriber.news, final=final)
        else:
            news = self._transcriber.news(final=final)
        self.text += news
        return news

    async def finish(self, call: Call) -> None:
        """Hear what is left."""
        rest = self._resampler.push(np.zeros(0, np.float32), is_last=True)
        chunks = [*self._chunker.push(rest), *self._chunker.finish()]
        for number, chunk in enumerate(chunks, start=1):
            await self.hear(chunk, call, is_last=number == len(chunks))

    async def drop(self) -> None:
        """Let the model forget a recording that will not go on."""
        if self._has_begun:
            [*_, (samples, _)] = self._chunker.finish()
            silence = np.zeros_like(samples)[np.newaxis]
            await leave(self._server, self._name, self.id, {INPUT: silence})


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
        self._id = uuid4().hex
        self._session = _Session(audio=_Audio(input=_Input(transcription=transcription)))
        self._parameters = task.Parameters()
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
        call = self._call()
        try:
            if (pcm := message.get("bytes")) is not None:
                await self._append(pcm, call)
            else:
                event = _parsed(message["text"])
                event_id = event.get("event_id")
                await self._do(event, call)
            call.sent = monotonic()
        except InvalidRequest as error:
            self._server.note_invalid(error, call, self._name)
            told = _told(error, self._statuses)
            await self._send("error", error={**told, "event_id": event_id})
        finally:
            self._server.sent(call)

    def _call(self) -> Call:
        """For what one message asks of the model."""
        headers = self._socket.headers
        call = Call(Front.REALTIME, "/v1/realtime", new_id(), received=monotonic())
        call.asks_several = True
        call.traceparent = headers.get("traceparent", "")
        call.tracestate = headers.get("tracestate", "")
        call.identify(headers.get("x-request-id", ""))
        return call

    async def _do(self, event: Mapping[str, Any], call: Call) -> None:
        kind = event.get("type")
        if not isinstance(kind, str) or kind not in _EVENTS:
            raise about("type", f"expected one of {', '.join(_EVENTS)}, got {shown(kind)}")
        match checked(_EVENTS[kind], event):
            case _Update() as update:
                await self._update(update.session)
            case _Append() as append:
                try:
                    pcm = base64.b64decode(append.audio, validate=True)
                except (binascii.Error, ValueError):
                    raise about(
                        "audio", f"expected a string in base64, got {shown(append.audio)}"
                    ) from None
                await self._append(pcm, call)
            case _Commit():
                await self._commit(call)
            case _Clear():
                await self._drop()
                await self._send("input_audio_buffer.cleared")

    async def _update(self, changes: _Session) -> None:
        if self._recording is not None:
            raise about("session", "a recording is going on; commit or clear it first")
        # What an update does not name stays as it is.
        whole = _merged(self._session.model_dump(), changes.model_dump(exclude_unset=True))
        session = checked(_Session, whole, "session")
        wanted = session.audio.input.transcription
        known = self._task.settings.language
        if wanted.model not in (None, self._name):
            raise about("model", f"expected {self._name!r}, which this connection has")
        if known and wanted.language and wanted.language.partition("-")[0].lower() != known:
            raise about("language", f"expected {known!r}, got {shown(wanted.language)}")
        self._parameters = expecting(self._task, wanted.prompt)
        self._session = session
        await self._send("session.updated", session=self._described())

    async def _append(self, pcm: bytes, call: Call) -> None:
        if len(pcm) % 2:
            raise about("audio", f"expected samples of 2 bytes each, got {len(pcm)} bytes")
        if not pcm:
            return
        if self._recording is None:
            rate_hz = self._session.audio.input.format.rate
            self._recording = _Recording(
                self._server, self._name, self._task, rate_hz, self._parameters
            )
        recording = self._recording
        chunks = recording.push(pcm)
        async with self._transcribing(recording):
            for chunk in chunks:
                await recording.hear(chunk, call)
                await self._tell(recording, await recording.news())

    async def _commit(self, call: Call) -> None:
        recording = self._recording
        if recording is None:
            raise InvalidRequest("nothing has been appended to commit")
        await self._send(
            "input_audio_buffer.committed", item_id=recording.id, previous_item_id=self._before
        )
        self._before = recording.id
        async with self._transcribing(recording):
            await recording.finish(call)
            self._recording = None
            await self._tell(recording, await recording.news(final=True))
            await self._send(
                "conversation.item.input_audio_transcription.completed",
                item_id=recording.id,
                content_index=0,
                transcript=recording.text,
                usage={"type": "duration", "seconds": round(recording.duration_s, 3)},
            )

    @asynccontextmanager
    async def _transcribing(self, recording: _Recording) -> AsyncIterator[None]:
        """Ends a recording with which something goes wrong: the model may have missed a chunk."""
        try:
            yield
        except WebSocketDisconnect:
            raise
        except Exception as error:
            await self._drop()
            await self._send(
                "conversation.item.input_audio_transcription.failed",
                item_id=recording.id,
                content_index=0,
                error=_told(error, self._statuses),
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
        await _send(self._socket, type, **fields)

    def _described(self) -> dict[str, Any]:
        object = "realtime.transcription_session"
        return {"id": self._id, "object": object, **self._session.model_dump()}


async def _send(socket: WebSocket, type: str, **fields: Any) -> None:
    event = {"type": type, "event_id": uuid4().hex, **fields}
    await socket.send_text(orjson.dumps(event).decode())


def _told(error: Exception, statuses: Mapping[str, int]) -> dict[str, Any]:
    """What an event says of an error."""
    status, message, _ = describe(error, statuses)
    told: dict[str, Any] = orjson.loads(openai_error(status, message, error))["error"]
    return told


def _parsed(text: str) -> dict[str, Any]:
    try:
        event = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"expected an event as JSON: {error}") from None
    if not isinstance(event, dict):
        raise InvalidRequest(f"expected an event, which is a JSON object, got {shown(event)}")
    return event


def _merged(whole: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return whole | {
        name: _merged(whole[name], value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
