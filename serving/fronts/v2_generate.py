"""The generate extension: a model's inputs and outputs as the keys of one plain JSON object."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from math import prod
from time import monotonic
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from serving.calls import Front
from serving.errors import InvalidRequest, Malformed, RequestError, shown
from serving.fronts.asgi import call_of, describe, error_body, read_body
from serving.fronts.events import EventStream, event
from serving.fronts.json_body import field, parse_object
from serving.fronts.restricted import Restrictions
from serving.fronts.v2_call import request_parameters
from serving.fronts.v2_control import TAG, VERSION, allowed, target
from serving.fronts.v2_tensors import from_json, to_json
from serving.model import Model
from serving.server import Server
from serving.types import DYNAMIC, Array, InferRequest, InferResponse, TensorSpec

_NOT_ONE = (
    "generate expects model to produce exactly 1 response, use generate stream for model that"
    " generates various number of responses"
)


def router(
    server: Server,
    restrictions: Restrictions,
    max_body_bytes: int,
    statuses: Mapping[str, int],
    *,
    strict: bool,
) -> APIRouter:
    """POST …/generate and …/generate_stream."""
    routes = APIRouter(tags=[TAG], dependencies=[allowed(restrictions, "inference")])

    async def parsed(request: Request, route: str) -> tuple[Model, InferRequest]:
        name, version = target(request)
        caller = call_of(request.scope, Front.V2_HTTP, "/v2/models/{model}/" + route)
        try:
            body = await read_body(request.receive, max_body_bytes)
            caller.received = monotonic()
            model = server.model(name, version)
            call = parse_generate(model, version, body)
        except RequestError as error:
            server.note_invalid(error, caller, name, version)
            raise
        call.asked_by(caller)
        return model, call

    @routes.post("/v2/models/{name}/generate")
    @routes.post("/v2/models/{name}" + VERSION + "/generate")
    async def generate(request: Request) -> Response:
        model, call = await parsed(request, "generate")
        if model.answers_once:
            answers = [await server.infer(call)]
        else:
            answers = []
            async with aclosing(server.stream(call)) as responses:
                async for response in responses:
                    answers.append(response)
                    if len(answers) > 1:
                        break
        if len(answers) != 1:
            if strict:
                return JSONResponse({"error": _NOT_ONE})
            raise InvalidRequest(_NOT_ONE)
        return Response(render_generate(answers[0]), media_type="application/json")

    @routes.post("/v2/models/{name}/generate_stream")
    @routes.post("/v2/models/{name}" + VERSION + "/generate_stream")
    async def generate_stream(request: Request) -> Response:
        _, call = await parsed(request, "generate_stream")
        responses = server.stream(call)
        # The status is that of the first response, so it must be there before anything is sent.
        first = await anext(responses, None)
        return EventStream(_events(first, responses, statuses))

    return routes


def parse_generate(model: Model, version: str, body: bytes) -> InferRequest:
    """Translate a body: keys that name inputs are tensors, the others are parameters.

    Raises `RequestError` naming the key.
    """
    specs = {spec.name: spec for spec in model.config.inputs}
    document = parse_object(body)
    request = InferRequest(model.config.name, {}, model_version=version)
    if "id" in document and "id" not in specs:
        request.id = field("the request", document, "id", str)
        del document["id"]
    nested = document.pop("parameters", {}) if "parameters" not in specs else {}
    if not isinstance(nested, dict):
        raise Malformed(f"Expected JSON object for keyword: 'parameters', got {shown(nested)}")
    parameters: dict[str, object] = {}
    for members in (document, nested):
        for key, value in members.items():
            if key not in specs:
                parameters[key] = value
            elif key in request.inputs:
                raise InvalidRequest(f"input {key!r} already exists in request")
            else:
                request.inputs[key] = _tensor(specs[key], value)
    request_parameters(request, parameters)
    return request


def render_generate(response: InferResponse) -> bytes:
    """One response as a JSON object; of an output with one element, the element."""
    document: dict[str, Any] = {"id": response.id} if response.id else {}
    document["model_name"] = response.model_name
    document["model_version"] = response.model_version
    document.update(response.parameters)
    for name, tensor in response.outputs.items():
        elements = _json(name, tensor)
        document[name] = orjson.Fragment(elements[1:-1] if tensor.size == 1 else elements)
    return orjson.dumps(document)


def _tensor(spec: TensorSpec, value: object) -> Array:
    """A tensor of a model's spec from a scalar or a list."""
    elements = value if isinstance(value, list) else [value]
    if any(isinstance(element, list) for element in elements):
        raise Malformed(f"{spec.name!r} must be a scalar or an array of scalars")
    return from_json(spec.name, spec.datatype, _shape(spec, len(elements)), elements)


def _shape(spec: TensorSpec, count: int) -> tuple[int, ...]:
    """The innermost dynamic dimension takes the elements that the fixed ones leave, others 1."""
    rest, remainder = divmod(count, prod(size for size in spec.shape if size != DYNAMIC) or 1)
    shape = list(spec.shape)
    for index in reversed(range(len(shape))):
        if shape[index] == DYNAMIC:
            shape[index], rest = rest, 1
    if remainder or rest != 1:
        raise InvalidRequest(
            f"The schema can not convert input {spec.name!r} to tensor with proper shape:"
            f" {list(spec.shape)} from {count} elements"
        )
    return tuple(shape)


def _json(name: str, tensor: Array) -> bytes:
    if tensor.dtype != np.object_:
        return to_json(name, tensor)
    # A piece of generated text may end within a character, and there is no binary form to ask for.
    return orjson.dumps([element.decode(errors="replace") for element in tensor.flat])


async def _events(
    first: InferResponse | None,
    responses: AsyncGenerator[InferResponse, None],
    statuses: Mapping[str, int],
) -> AsyncGenerator[bytes, None]:
    """Server-sent events; one that holds an error is the last."""
    async with aclosing(responses):
        try:
            if first is not None:
                yield event(render_generate(first))
            async for response in responses:
                yield event(render_generate(response))
        except asyncio.CancelledError:
            yield event(error_body("the server stopped before it had finished"))
        except Exception as error:
            _, message, _ = describe(error, statuses)
            yield event(error_body(message))
