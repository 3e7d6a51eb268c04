"""POST /models/{name}: a model asked in its task's own terms, as Hugging Face Inference does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from serving.calls import Front
from serving.errors import InvalidRequest, RequestError, Unsupported
from serving.fronts.asgi import (
    JSON,
    Headers,
    HttpCall,
)
from serving.fronts.asking import Asking
from serving.fronts.checked import checked
from serving.fronts.restricted import Restrictions
from serving.fronts.route import Body, PredictRoute
from serving.fronts.v2_tensors import Buffer
from serving.server import Server
from serving.tasks import File, Question, Task

if TYPE_CHECKING:
    from pydantic import BaseModel

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


class TaskRoute(PredictRoute):
    """POST /models/{name}"""

    front = Front.TASK
    operation = "/models/{model}"
    target = re.compile(r"/models/([^/]+)()")

    def __init__(
        self,
        server: Server,
        asking: Asking,
        max_body_bytes: int,
        restrictions: Restrictions,
        statuses: Mapping[str, int],
    ):
        super().__init__(server, max_body_bytes, restrictions, statuses)
        self._asking = asking

    async def _answer(
        self, call: HttpCall, name: str, version: str, body: Body
    ) -> tuple[list[Buffer], Headers]:
        try:
            task = self._task(name)
            question = await self._question(call, task, body)
        except RequestError as error:
            self.server.note_invalid(error, call, name)
            raise
        answer = await self._asking.answer(name, task, question, call)
        if isinstance(answer, File):
            return [answer.content], [(b"content-type", answer.media_type.encode())]
        return [orjson.dumps(answer)], [(b"content-type", JSON)]

    def _task(self, name: str) -> Task:
        task = self.server.model(name).task
        if task is None:
            raise Unsupported(
                f"model {name!r} has no task; ask it with POST /v2/models/{name}/infer"
            )
        return task

    async def _question(self, call: HttpCall, task: Task, body: Body) -> Question:
        content_type = call.headers.get(b"content-type", b"").decode("latin-1")
        payload, settings = _open_envelope(content_type, body.take(), task)
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
