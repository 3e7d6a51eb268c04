"""What the routes of OpenAI's API under /v1 share: the form of errors, and the list of models."""

from __future__ import annotations

from time import time
from typing import Any

import orjson
from fastapi import APIRouter

from serving.errors import RequestError
from serving.fronts.restricted import Restrictions
from serving.fronts.v2_control import allowed
from serving.server import Server

TAG = "OpenAI"
PREFIX = "/v1/"


def openai_error(status: int, message: str, error: Exception) -> bytes:
    """The body of an answer that tells of an error."""
    code = getattr(error, "code", None)
    field = error.field if isinstance(error, RequestError) else None
    described = {
        "message": message.encode(errors="replace").decode(),
        "type": "invalid_request_error" if status < 500 else "server_error",
        "param": field,
        "code": "model_not_found" if code == "not_found" else code,
    }
    return orjson.dumps({"error": described})


def router(server: Server, restrictions: Restrictions) -> APIRouter:
    """GET /v1/models and /v1/models/{name}"""
    routes = APIRouter(tags=[TAG], dependencies=[allowed(restrictions, "metadata")])
    created = int(time())

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "slipway"}

    @routes.get("/v1/models")
    async def models() -> Any:
        """The models that are loaded."""
        names = sorted({model.config.name for model, _ in server.statistics()})
        return {"object": "list", "data": [described(name) for name in names]}

    @routes.get("/v1/models/{name}")
    async def model(name: str) -> Any:
        """One of them."""
        return described(server.model(name).config.name)

    return routes
