"""POST /models/{name}: a model asked in its task's own terms, as Hugging Face Inference does.

Plain ASGI, ahead of FastAPI's router, whose dependencies and wrappers cost more than most
calls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from time import monotonic
from typing import Any

import orjson
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from serving.calls import Front
from serving.errors import InvalidRequest, RequestError, Unsupported
from serving.fronts.asgi import (
    JSON,
    Headers,
    HttpCall,
    call_of,
    check_post,
    describe,
    error_body,
    read_body,
    respond,
)
from serving.fronts.asking import Asking
from serving.fronts.checked import checked
from serving.fronts.restricted import Restrictions
from serving.server import Server
from serving.tasks import File, Question, Task

_TARGET = re.compile(r"/models/([^/]+)")

OPERATION: Mapping[str, Any] = {
    "tags": ["Tasks"],
    "summary": "Predict",
    "description": (
        "Ask a model in its task's own terms. The body is the input itself, such as the bytes of a"
        " picture or of a recording; or JSON with the input in base64 and settings:"
        ' `{"inputs": "…", "parameters": {"top_k": 3}}`.'
    ),
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "inputs": {
                            "description": "text, texts, or a file in base64",
                            "oneOf": [
                                {"type": "string"},
                                {"type": "array", "items": {"type": "string"}},
                            ],
                        },
                        "parameters": {"type": "object"},
                    },
                }
            },
        },
    },
    "responses": {
        "200": {"description": "The answer: JSON, or a file, such as a PNG"},
        "400": {"description": "What is wrong"},
    },
}


class TaskRoute:
    """POST /models/{name}"""

    def __init__(
        self,
        server: Server,
        asking: Asking,
        max_body_bytes: int,
        restrictions: Restrictions,
        statuses: Mapping[str, int],
    ):
        self._server = server
        self._asking = asking
        self._max_body_bytes = max_body_bytes
        self._restrictions = restrictions
        self._statuses = statuses

    @staticmethod
    def match(scope: Scope) -> tuple[str] | None:
        """The model's name if this is the path of such a call."""
        found = _TARGET.fullmatch(scope["path"])
        return (found[1],) if found else None

    async def __call__(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = []
        media_type = JSON
        try:
            check_post(scope, self._restrictions, "inference")
            call = call_of(scope, Front.TASK, "/models/{model}")
            answer = await self._answer(call, name, receive)
            if isinstance(answer, File):
                content, media_type = answer.content, answer.media_type.encode()
            else:
                content = orjson.dumps(answer)
            status = 200
        except Exception as error:
            status, message, headers = describe(error, self._statuses)
            content = error_body(message)
        headers.append((b"content-type", media_type))
        await respond(send, status, [content], headers)

    async def _answer(self, call: HttpCall, name: str, receive: Receive) -> object:
        try:
            task = self._task(name)
            question = await self._question(call, task, receive)
        except RequestError as error:
            self._server.note_invalid(error, call, name)
            raise
        return await self._asking.answer(name, task, question, call)

    def _task(self, name: str) -> Task:
        task = self._server.model(name).task
        if task is None:
            raise Unsupported(
                f"model {name!r} has no task; ask it with POST /v2/models/{name}/infer"
            )
        return task

    async def _question(self, call: HttpCall, task: Task, receive: Receive) -> Question:
        """What is asked. Nothing of the body is left."""
        body = await read_body(receive, self._max_body_bytes)
        call.received = monotonic()
        content_type = call.headers.get(b"content-type", b"").decode("latin-1")
        payload, settings = _open_envelope(content_type, body, task)
        return await self._asking.prepare(task, payload, settings)


def _open_envelope(content_type: str, body: bytes, task: Task) -> tuple[object, BaseModel]:
    """The input, and the settings that came with it."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        return body, task.Parameters()
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict) or "inputs" not in document:
        raise InvalidRequest(
            "expected a JSON object with 'inputs', or a body that is the input itself with another"
            " Content-Type"
        )
    if document.get("stream"):
        raise Unsupported("stream: ask for a stream with POST /v2/models/{name}/generate_stream")
    parameters = document.get("parameters") or {}
    return document["inputs"], checked(task.Parameters, parameters, "parameters")
