"""The HTTP front whole: the infer route ahead, FastAPI for everything else."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import __version__
from serving.errors import SlipwayError
from serving.fronts import metrics, task_api, v2_http
from serving.fronts.asgi import CancelOnDisconnect, describe
from serving.server import Server


def build_http(server: Server, *, max_body_bytes: int) -> ASGIApp:
    """Everything on the HTTP port."""
    app = FastAPI(
        title="Slipway",
        version=__version__,
        description="Predictions from the models of one repository.",
        redirect_slashes=False,
    )
    app.include_router(v2_http.router(server))
    app.include_router(task_api.router(server, max_body_bytes))
    app.include_router(metrics.router(server.metrics.registry))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(SlipwayError, _described)
    app.add_exception_handler(Exception, _described)
    _document_infer(app)
    return CancelOnDisconnect(_InferFirst(v2_http.InferRoute(server, max_body_bytes), app))


class _InferFirst:
    def __init__(self, infer: v2_http.InferRoute, app: ASGIApp):
        self._infer = infer
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (target := self._infer.match(scope)) is not None:
            await self._infer(*target, scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _described(request: Request, error: Exception) -> Response:
    status, message, headers = describe(error)
    return JSONResponse(
        {"error": message}, status, {key.decode(): value.decode() for key, value in headers}
    )


def _document_infer(app: FastAPI) -> None:
    """Add the infer route to /docs, since FastAPI's router never sees it."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schema["paths"].setdefault("/v2/models/{name}/infer", {"post": _INFER_OPERATION})
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


_INFER_OPERATION: dict[str, Any] = {
    "tags": ["Open Inference Protocol v2"],
    "summary": "Infer",
    "description": "Tensors as JSON arrays, or as raw bytes after the JSON (binary tensor data).",
    "parameters": [
        {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}},
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
