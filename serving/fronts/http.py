"""The HTTP front whole: the infer route ahead, FastAPI for everything else."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

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
    v2_http,
)
from serving.fronts.asgi import (
    HTTP_STATUS,
    TRITON_STATUS,
    HttpCalls,
    describe,
    error_body,
)
from serving.fronts.asking import Asking
from serving.fronts.direct import DirectConnection
from serving.fronts.http_connection import Connection
from serving.fronts.known_heads import KnownHeads
from serving.fronts.restricted import Restrictions
from serving.fronts.route import PredictRoute
from serving.server import Server


def build_http(
    server: Server,
    *,
    max_body_bytes: int,
    restrictions: Restrictions,
    strict: bool,
    guard_management: bool,
) -> tuple[ASGIApp, type[Connection]]:
    """Everything on the HTTP port, and the connections by which it is reached.

    `strict` answers with Triton's statuses also where ours are better. `guard_management` refuses
    calls that change the server for others, unless they need a key.
    """
    statuses = TRITON_STATUS if strict else HTTP_STATUS
    restrictions = replace(restrictions, guard_management=guard_management)
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
    asking = Asking(server)
    app.include_router(openai.router(server, restrictions))
    app.include_router(openai_audio.router(server, asking, restrictions, max_body_bytes, statuses))
    app.include_router(openai_images.router(server, asking, restrictions, max_body_bytes, statuses))
    app.include_router(openai_realtime.router(server, restrictions, statuses))
    if server.metrics.enabled:
        app.include_router(metrics.router(server.metrics.registry))
    for kind in (HTTPException, SlipwayError, Exception):
        app.add_exception_handler(kind, _describer(statuses))
    _complete_documentation(app)
    routes = (
        v2_http.InferRoute(server, max_body_bytes, restrictions, statuses),
        task_api.TaskRoute(server, asking, max_body_bytes, restrictions, statuses),
    )

    class Direct(DirectConnection):
        predictions = routes
        heads = KnownHeads()

    return HttpCalls(_PredictFirst(routes, app), server), Direct


class _PredictFirst:
    """The calls that a server lives for, ahead of the router; it does all others."""

    def __init__(self, routes: Sequence[PredictRoute], app: ASGIApp):
        self._routes = routes
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for route in self._routes:
                if (target := route.match(scope["path"])) is not None:
                    await route(*target, scope, receive, send)
                    return
        await self._app(scope, receive, send)


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
