"""FastAPI, for every route that is not ahead of it. It takes long to import, so `http.py` does that
when the server serves already."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from serving import __version__
from serving.errors import SlipwayError
from serving.fronts import (
    metrics,
    openai,
    openai_audio,
    openai_images,
    openai_realtime,
    task_api,
    v2_control,
    v2_generate,
)
from serving.fronts.asgi import describe, error_body
from serving.fronts.asking import Asking
from serving.fronts.restricted import Restrictions
from serving.server import Server


def build_router(
    server: Server,
    asking: Asking,
    restrictions: Restrictions,
    max_body_bytes: int,
    statuses: Mapping[str, int],
    *,
    strict: bool,
) -> FastAPI:
    app = FastAPI(
        title="Slipway",
        version=__version__,
        description="Predictions from the models of a repository.",
        redirect_slashes=False,
    )
    app.include_router(v2_control.router(server, restrictions, max_body_bytes))
    app.include_router(
        v2_generate.router(server, restrictions, max_body_bytes, statuses, strict=strict)
    )
    app.include_router(openai.router(server, restrictions))
    app.include_router(openai_audio.router(server, asking, restrictions, max_body_bytes, statuses))
    app.include_router(openai_images.router(server, asking, restrictions, max_body_bytes, statuses))
    app.include_router(openai_realtime.router(server, restrictions, statuses))
    if server.metrics.enabled:
        app.get(metrics.PATH, tags=["Operations"])(_metrics(server.metrics.registry))
    for kind in (HTTPException, SlipwayError, Exception):
        app.add_exception_handler(kind, _describer(statuses))
    _complete_documentation(app)
    return app


def _metrics(registry: CollectorRegistry) -> Callable[[Request], Awaitable[Response]]:
    async def scraped(request: Request) -> Response:
        """Prometheus exposition."""
        content, content_type = metrics.exposition(registry, request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    return scraped


def _describer(
    statuses: Mapping[str, int],
) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def describer(request: Request, error: Exception) -> Response:
        status, message, headers = describe(error, statuses)
        extra = {key.decode(): value.decode() for key, value in headers}
        if request.url.path.startswith(openai.PREFIX):
            body = openai.openai_error(status, message, error)
        else:
            body = error_body(message)
        return Response(body, status, extra, media_type="application/json")

    return describer


def _complete_documentation(app: FastAPI) -> None:
    """Tell /docs of what FastAPI cannot see: routes ahead of its own, and what paths hold."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schema["paths"].setdefault("/v2/models/{name}/infer", {"post": _INFER_OPERATION})
        schema["paths"].setdefault("/models/{name}", {"post": dict(task_api.OPERATION)})
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                described = operation.setdefault("parameters", [])
                known = {parameter["name"] for parameter in described}
                described += [
                    {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                    for name in re.findall(r"{(\w+)}", path)
                    if name not in known
                ]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


_INFER_OPERATION: dict[str, Any] = {
    "tags": ["Open Inference Protocol v2"],
    "summary": "Infer",
    "description": "Tensors as JSON arrays, or as raw bytes after the JSON (binary tensor data).",
    "parameters": [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "description": "Length of the JSON, when raw tensors follow it.",
            "schema": {"type": "integer"},
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["inputs"]},
                "example": {
                    "inputs": [
                        {"name": "INPUT", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1]}
                    ]
                },
            }
        },
    },
    "responses": {"200": {"description": "The outputs"}, "400": {"description": "What is wrong"}},
}
