"""POST /models/{name}: a model asked in its task's own terms, as Hugging Face Inference does."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError

from serving.errors import InvalidRequest, RequestError, Unsupported, shown
from serving.fronts.asgi import read_body
from serving.fronts.asking import Asking
from serving.fronts.restricted import Restrictions
from serving.fronts.v2_control import allowed
from serving.server import Server
from serving.tasks import Task

_BODY: Mapping[str, Any] = {
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
    }
}


def router(
    server: Server, asking: Asking, restrictions: Restrictions, max_body_bytes: int
) -> APIRouter:
    """POST /models/{name}"""
    routes = APIRouter(tags=["Tasks"], dependencies=[allowed(restrictions, "inference")])

    @routes.post("/models/{name}", openapi_extra=dict(_BODY))
    async def predict(name: str, request: Request) -> Any:
        """Ask a model in its task's own terms.

        The body is the input itself, such as the bytes of a picture or of a recording; or JSON
        with the input in base64 and settings: `{"inputs": "…", "parameters": {"top_k": 3}}`.
        """
        task = server.model(name).task
        if task is None:
            raise Unsupported(
                f"model {name!r} has no task; ask it with POST /v2/models/{name}/infer"
            )
        try:
            body = await read_body(request.receive, max_body_bytes)
            received = monotonic()
            content_type = request.headers.get("content-type", "")
            payload, settings = _open_envelope(content_type, body, task)
            question = await asking.prepare(task, payload, settings)
        except RequestError:
            server.note_invalid(name)
            raise
        return await asking.answer(name, task, question, received)

    return routes


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
    return document["inputs"], _checked(task.Parameters, document.get("parameters") or {})


def _checked(schema: type[BaseModel], parameters: object) -> BaseModel:
    try:
        return schema.model_validate(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["parameters", *map(str, first["loc"])])
        raise InvalidRequest(f"{field}: {first['msg']}, got {shown(first['input'])}") from None
