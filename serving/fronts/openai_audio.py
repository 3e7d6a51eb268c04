"""POST /v1/audio/transcriptions: speech recognition as OpenAI's clients ask for it.

Of what they may send, `temperature` and `chunking_strategy` have no effect: the models here do not
draw at random, and every long recording is windowed. The words of `prompt` are hot words, and so
are the words and phrases of `keywords`.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from math import ceil
from time import monotonic
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from serving.calls import Call, Front
from serving.errors import RequestError, shown
from serving.fronts.asgi import call_of, describe, read_body
from serving.fronts.asking import Asking
from serving.fronts.checked import about, checked
from serving.fronts.events import begun, event
from serving.fronts.form import Form, parse_form
from serving.fronts.openai import TAG, openai_error
from serving.fronts.prompt import expecting
from serving.fronts.restricted import Restrictions
from serving.fronts.subtitles import srt, vtt
from serving.fronts.v2_control import allowed
from serving.server import Server
from serving.speech.transcript import Segment, SegmentedTranscript, Transcript
from serving.tasks.speech_recognition import Listener, Recording, SpeechRecognition
from serving.tasks.whisper import Dictation, WhisperRecognition
from serving.types import Tensors

_Recogniser = SpeechRecognition | WhisperRecognition
_AnyTranscript = Transcript | SegmentedTranscript

_UNDETERMINED = "und"
"""What ISO 639 calls a language that nobody told."""

_BODY: Mapping[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "model"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "model": {"type": "string"},
                        "language": {"type": "string"},
                        "prompt": {"type": "string"},
                        "response_format": {
                            "enum": ["json", "text", "srt", "verbose_json", "vtt"],
                        },
                        "timestamp_granularities[]": {
                            "type": "array",
                            "items": {"enum": ["word", "segment"]},
                        },
                        "stream": {"type": "boolean"},
                    },
                }
            }
        },
    }
}


class _Wishes(BaseModel, extra="forbid", frozen=True):
    """The fields of the form, without the file."""

    model: str
    language: str | None = None
    prompt: Annotated[str, Field(max_length=10_000)] = ""
    keywords: tuple[str, ...] = ()
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = ()
    stream: bool = False
    # Without effect.
    temperature: Annotated[float, Field(ge=0, le=1)] = 0
    chunking_strategy: Literal["auto"] | None = None


def router(
    server: Server,
    asking: Asking,
    restrictions: Restrictions,
    max_body_bytes: int,
    statuses: Mapping[str, int],
) -> APIRouter:
    """POST /v1/audio/transcriptions"""
    routes = APIRouter(tags=[TAG], dependencies=[allowed(restrictions, "inference")])

    @routes.post("/v1/audio/transcriptions", openapi_extra=dict(_BODY))
    async def transcribe(request: Request) -> Response:
        """Transcribe a recording, as OpenAI's clients ask for it.

        The words of `prompt` and the phrases of `keywords` are preferred where the recording is in
        doubt. `temperature` has no effect. With `stream`, the text comes window by window.
        """
        call = call_of(request.scope, Front.OPENAI, "/v1/audio/transcriptions")
        wishes, task, listener, recording = await question(request, call)
        outputs = asking.outputs(wishes.model, recording, call, in_parts=wishes.stream)
        if wishes.stream:
            events = _events(outputs, listener, statuses)
            return await begun(events)
        async with aclosing(_pushed(listener, outputs)) as pushed:
            async for _ in pushed:
                pass

        def rendered() -> Response:
            transcript = listener.transcript()
            return _FORMATS[wishes.response_format](transcript, wishes, task)

        return await asyncio.to_thread(rendered)

    async def question(
        request: Request, call: Call
    ) -> tuple[_Wishes, _Recogniser, Listener, Recording | Dictation]:
        """What is asked. Nothing of the body is left."""
        name = ""
        try:
            body = await read_body(request.receive, max_body_bytes)
            call.received = monotonic()
            content_type = request.headers.get("content-type", "")
            form = await asyncio.to_thread(parse_form, content_type, body)
            name = form.fields.get("model", [""])[-1]
            wishes = _wishes(form)
            task = _recogniser(server, name)
            _check_language(wishes, task)
            prepared = await _prepared(asking, task, form, wishes)
            return wishes, task, *prepared
        except RequestError as error:
            if name:
                server.note_invalid(error, call, name)
            raise

    return routes


def _wishes(form: Form) -> _Wishes:
    several = ("keywords", "timestamp_granularities")
    values = {name: given if name in several else given[-1] for name, given in form.fields.items()}
    wishes = checked(_Wishes, values)
    if wishes.timestamp_granularities and wishes.response_format != "verbose_json":
        raise about("timestamp_granularities", "expected response_format 'verbose_json' with it")
    if wishes.stream and wishes.response_format not in ("json", "text"):
        raise about(
            "stream",
            f"expected response_format 'json' or 'text' with it, got {wishes.response_format!r}",
        )
    return wishes


def _recogniser(server: Server, name: str) -> _Recogniser:
    try:
        task = server.model(name).task
    except RequestError as error:
        error.field = "model"
        raise
    if not isinstance(task, _Recogniser):
        raise about("model", f"expected a model that recognises speech, got {shown(name)}")
    return task


def _check_language(wishes: _Wishes, task: _Recogniser) -> None:
    known = task.languages
    if known and wishes.language and _language(wishes.language) not in known:
        expected = ", ".join(map(repr, known))
        raise about("language", f"expected {expected}, got {shown(wishes.language)}")


def _language(tag: str) -> str:
    """Of a tag such as en-GB."""
    return tag.partition("-")[0].lower()


async def _prepared(
    asking: Asking, task: _Recogniser, form: Form, wishes: _Wishes
) -> tuple[Listener, Recording | Dictation]:
    if "file" not in form.files:
        raise about("file", "expected a file with the bytes of a recording, got none")
    settings = _settings(task, wishes)
    try:
        recording = await asking.prepare(task, form.files["file"], settings)
    except RequestError as error:
        error.field = "file"
        raise
    if isinstance(task, WhisperRecognition):
        assert isinstance(recording, Dictation)
        return task.listener(recording), recording
    assert isinstance(recording, Recording)
    return task.listener(recording), recording


def _settings(task: _Recogniser, wishes: _Wishes) -> BaseModel:
    """Those of the task. Raises `InvalidRequest`."""
    if isinstance(task, SpeechRecognition):
        return expecting(task, wishes.prompt, wishes.keywords)
    if wishes.prompt or wishes.keywords:
        field = "keywords" if wishes.keywords else "prompt"
        raise about(field, f"expected none: {shown(wishes.model)} takes no hints")
    if "word" in wishes.timestamp_granularities:
        raise about(
            "timestamp_granularities",
            f"expected 'segment': {shown(wishes.model)} tells no times of words",
        )
    language = _language(wishes.language) if wishes.language and task.languages else None
    return task.Parameters(language=language)


async def _pushed(listener: Listener, outputs: AsyncGenerator[Tensors]) -> AsyncGenerator[None]:
    """Gives a listener the answers for a recording; yields after each."""
    async with aclosing(outputs):
        async for part in outputs:
            await asyncio.to_thread(listener.push, part)
            yield


async def _events(
    outputs: AsyncGenerator[Tensors], listener: Listener, statuses: Mapping[str, int]
) -> AsyncGenerator[bytes, None]:
    """What each piece adds to the text, then the whole; one that tells of an error is the last.

    Raises what goes wrong before the first event.
    """
    text = ""
    async with aclosing(_pushed(listener, outputs)) as pushed:
        try:
            async for _ in pushed:
                if news := await asyncio.to_thread(listener.news):
                    text += news
                    yield _delta(news)
            if news := await asyncio.to_thread(listener.news, final=True):
                yield _delta(news)
            done = {"type": "transcript.text.done", "text": text + news}
            yield event(orjson.dumps(done))
            yield event(b"[DONE]")
        except Exception as error:
            if not text:
                raise
            status, message, _ = describe(error, statuses)
            yield event(openai_error(status, message, error))


def _delta(text: str) -> bytes:
    return event(orjson.dumps({"type": "transcript.text.delta", "delta": text}))


def _json(transcript: _AnyTranscript, wishes: _Wishes, task: _Recogniser) -> Response:
    return _document({"text": transcript.text, "usage": _usage(transcript)})


def _verbose_json(transcript: _AnyTranscript, wishes: _Wishes, task: _Recogniser) -> Response:
    document = {
        "task": "transcribe",
        "language": _spoken(transcript, wishes, task),
        "duration": round(transcript.duration_s, 3),
        "text": transcript.text,
        "usage": _usage(transcript),
    }
    granularities = wishes.timestamp_granularities or ("segment",)
    if "segment" in granularities:
        document["segments"] = [
            _segment(number, segment) for number, segment in enumerate(transcript.segments())
        ]
    if "word" in granularities and isinstance(transcript, Transcript):
        document["words"] = [
            {"word": word.text, "start": round(word.start_s, 3), "end": round(word.end_s, 3)}
            for word in transcript.words
        ]
    return _document(document)


def _spoken(transcript: _AnyTranscript, wishes: _Wishes, task: _Recogniser) -> str:
    """The language of a transcript."""
    heard = transcript.language if isinstance(transcript, SegmentedTranscript) else None
    return wishes.language or heard or task.settings.language or _UNDETERMINED


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    encoded = segment.text.encode()
    document = {
        "id": number,
        "seek": 0,
        "start": round(segment.start_s, 3),
        "end": round(segment.end_s, 3),
        "text": segment.text,
        "temperature": 0.0,
        "compression_ratio": len(encoded) / len(zlib.compress(encoded)),
        # There are segments only where something is said.
        "no_speech_prob": 0.0,
    }
    if tokens := segment.tokens:
        document["tokens"] = [token.id for token in tokens]
        document["avg_logprob"] = sum(token.log_prob for token in tokens) / len(tokens)
    return document


def _usage(transcript: _AnyTranscript) -> dict[str, Any]:
    return {"type": "duration", "seconds": ceil(transcript.duration_s)}


def _document(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


_FORMATS: Mapping[str, Callable[[_AnyTranscript, _Wishes, _Recogniser], Response]] = {
    "json": _json,
    "verbose_json": _verbose_json,
    "text": lambda transcript, *_: Response(transcript.text + "\n", media_type="text/plain"),
    "srt": lambda transcript, *_: Response(srt(transcript), media_type="application/x-subrip"),
    "vtt": lambda transcript, *_: Response(vtt(transcript), media_type="text/vtt"),
}
