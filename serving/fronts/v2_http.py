"""Open Inference Protocol v2 over HTTP.

`InferRoute` is plain ASGI and stands ahead of FastAPI's router: no validation framework sees a
tensor. Everything else is in `router`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serving import __version__
from serving.errors import InvalidRequest, Unsupported, shown
from serving.fronts.asgi import JSON, Headers, describe, error_body, read_body, respond
from serving.fronts.protobuf_json import to_plain
from serving.fronts.v2_tensors import (
    check_spec,
    datatype_of,
    from_bytes,
    from_json,
    to_bytes,
    to_json,
)
from serving.server import EXTENSIONS, NAME, Server
from serving.types import InferRequest, InferResponse, Tensors, TensorSpec

HEADER_LENGTH = b"inference-header-content-length"


@dataclass(frozen=True, slots=True)
class InferCall:
    """A parsed request, and how each of its outputs is to be written."""

    request: InferRequest
    binary: Mapping[str, bool]
    binary_by_default: bool

    def is_binary(self, output: str) -> bool:
        return self.binary.get(output, self.binary_by_default)


class InferRoute:
    """POST /v2/models/{name}[/versions/{version}]/infer"""

    def __init__(self, server: Server, max_body_bytes: int):
        self._server = server
        self._max_body_bytes = max_body_bytes

    @staticmethod
    def match(scope: Scope) -> tuple[str, str] | None:
        """The model's name and version if this is an infer call."""
        if scope["method"] != "POST":
            return None
        match scope["path"].split("/"):
            case ["", "v2", "models", name, "infer"]:
                return name, ""
            case ["", "v2", "models", name, "versions", version, "infer"] if version.isdecimal():
                return name, version
            case _:
                return None

    async def __call__(
        self, name: str, version: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers: Headers
        try:
            body = await read_body(receive, self._max_body_bytes)
            received = monotonic()
            call = parse_infer(name, version, body, _header_length(scope["headers"], len(body)))
            call.request.stamps.received = received
            response = await self._server.infer(call.request)
            parts, headers = render_infer(call, response)
            status = 200
        except Exception as error:
            status, message, headers = describe(error)
            parts = [error_body(message)]
            headers.append((b"content-type", JSON))
        await respond(send, status, parts, headers)


def parse_infer(name: str, version: str, body: bytes, header_length: int) -> InferCall:
    """Translate a body whose first `header_length` bytes are JSON, and the rest raw tensors.

    Raises `InvalidRequest` naming the field, what was expected and what came.
    """
    document = _object("the request", _parse_json(body[:header_length]))
    parameters = _object("parameters", document.get("parameters", {}))
    outputs = _list("outputs", document.get("outputs", []))
    binary: dict[str, bool] = {}
    for index, output in enumerate(outputs):
        where = f"outputs[{index}]"
        output_name = _field(where, _object(where, output), "name", str)
        settings = _object(f"{where}.parameters", output.get("parameters", {}))
        _refuse_unsupported(f"{where}.parameters", settings)
        if "binary_data" in settings:
            binary[output_name] = _field(f"{where}.parameters", settings, "binary_data", bool)
    request = InferRequest(
        model_name=name,
        model_version=version,
        id=_optional("the request", document, "id", ""),
        inputs=_inputs(document, memoryview(body)[header_length:]),
        outputs=tuple(dict.fromkeys(output["name"] for output in outputs)),
        priority=_optional("parameters", parameters, "priority", 0),
        timeout_s=_optional("parameters", parameters, "timeout", 0) / 1e6,
    )
    by_default = _optional("parameters", parameters, "binary_data_output", False)
    return InferCall(request, binary, by_default)


def render_infer(
    call: InferCall, response: InferResponse
) -> tuple[list[bytes | bytearray | memoryview], Headers]:
    """The parts of the body, and its headers."""
    outputs: list[dict[str, Any]] = []
    raw: list[bytes | bytearray | memoryview] = []
    for name, tensor in response.outputs.items():
        output: dict[str, Any] = {
            "name": name,
            "datatype": datatype_of(tensor),
            "shape": tensor.shape,
        }
        if call.is_binary(name):
            raw.append(to_bytes(tensor))
            output["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            output["data"] = orjson.Fragment(to_json(name, tensor))
        outputs.append(output)
    document: dict[str, Any] = {"id": response.id} if response.id else {}
    document["model_name"] = response.model_name
    document["model_version"] = response.model_version
    document["outputs"] = outputs
    header = orjson.dumps(document)
    if not any(raw):
        return [header], [(b"content-type", JSON)]
    return [header, *raw], [
        (b"content-type", b"application/octet-stream"),
        (HEADER_LENGTH, str(len(header)).encode()),
    ]


def router(server: Server) -> APIRouter:
    """Health, metadata, configuration and the repository index."""
    routes = APIRouter(tags=["Open Inference Protocol v2"])

    @routes.get("/v2")
    @routes.get("/v2/", include_in_schema=False)
    async def server_metadata() -> dict[str, Any]:
        return {"name": NAME, "version": __version__, "extensions": EXTENSIONS}

    @routes.get("/v2/health/live")
    async def server_live() -> Response:
        return Response()

    @routes.get("/v2/health/ready")
    async def server_ready() -> Response:
        return Response(status_code=200 if server.ready else 400)

    @routes.get("/v2/models/{name}")
    @routes.get("/v2/models/{name}/versions/{version}")
    async def model_metadata(name: str, version: str = "") -> dict[str, Any]:
        model = server.model(name, version)
        config = model.config
        return {
            "name": config.name,
            "versions": server.versions(name),
            "platform": config.platform or config.backend,
            "inputs": [_spec(spec) for spec in config.inputs],
            "outputs": [_spec(spec) for spec in config.outputs],
        }

    @routes.get("/v2/models/{name}/ready")
    @routes.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str = "") -> Response:
        if server.model_ready(name, version):
            return Response()
        return JSONResponse({"error": "Model version not ready"}, status_code=400)

    @routes.get("/v2/models/{name}/config")
    @routes.get("/v2/models/{name}/versions/{version}/config")
    async def model_config(name: str, version: str = "") -> dict[str, Any]:
        return to_plain(server.model(name, version).config.message)

    @routes.post("/v2/repository/index")
    async def repository_index() -> list[dict[str, str]]:
        return server.index()

    return routes


def _inputs(document: Mapping[str, Any], raw: memoryview) -> Tensors:
    inputs: Tensors = {}
    for index, item in enumerate(_list("inputs", _required("the request", document, "inputs"))):
        where = f"inputs[{index}]"
        name = _field(where, _object(where, item), "name", str)
        if name in inputs:
            raise InvalidRequest(f"input {name!r} already exists in request")
        datatype, shape = check_spec(
            name, _required(where, item, "datatype"), _required(where, item, "shape")
        )
        parameters = _object(f"{where}.parameters", item.get("parameters", {}))
        _refuse_unsupported(f"{where}.parameters", parameters)
        if ("data" in item) == ("binary_data_size" in parameters):
            state = "both are" if "data" in item else "no field is"
            raise InvalidRequest(
                f"Input must set only one of the following fields: 'data', 'binary_data_size'."
                f" But {state} set for input {name!r}"
            )
        if "data" in item:
            inputs[name] = from_json(name, datatype, shape, item["data"])
            continue
        size = _field(f"{where}.parameters", parameters, "binary_data_size", int)
        if not 0 <= size <= len(raw):
            raise InvalidRequest(
                f"unexpected size for input {name!r}: binary_data_size is {size},"
                f" but {len(raw)} bytes are left in the body"
            )
        inputs[name] = from_bytes(name, datatype, shape, raw[:size])
        raw = raw[size:]
    if len(raw):
        raise InvalidRequest(
            f"unexpected additional input data: {len(raw)} bytes follow the last binary input"
        )
    return inputs


def _header_length(headers: Headers, body_length: int) -> int:
    """Where the JSON ends; the whole body is JSON when no header says otherwise."""
    length = body_length
    for key, value in headers:
        if key == HEADER_LENGTH:
            text = value.decode("latin-1")
            if not text.isdecimal() or not 0 < (length := int(text[:20])) <= body_length:
                raise InvalidRequest(
                    f"inference header size should be in range (0, {body_length}], got: {text:.20}"
                )
        elif key == b"content-encoding" and value != b"identity":
            raise Unsupported(f"Content-Encoding {value.decode('latin-1'):.20} is not supported")
    return length


def _parse_json(text: bytes) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # The protocol's clients write not-a-number and infinities as bare tokens.
        if b"NaN" in text or b"Infinity" in text:
            try:
                document: object = json.loads(text)
                # Refuses what orjson would not have read: lone surrogates, huge integers.
                orjson.dumps(document)
                return document
            except (ValueError, TypeError, RecursionError):
                pass
        raise InvalidRequest(f"failed to parse the request JSON buffer: {error}") from None


def _refuse_unsupported(where: str, parameters: Mapping[str, Any]) -> None:
    for key in parameters:
        if key.startswith("shared_memory_") or key == "classification":
            raise Unsupported(f"{where}.{key} is not supported by this server")


T = TypeVar("T")

_JSON_TYPES: Mapping[type, str] = {str: "a string", int: "an integer", bool: "true or false"}


def _object(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} must be a JSON object, got {shown(value)}")
    return value


def _list(where: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{where} must be an array, got {shown(value)}")
    return value


def _required(where: str, document: Mapping[str, Any], key: str) -> object:
    if key not in document:
        raise InvalidRequest(f"{where} has no {key!r}, which is required")
    return document[key]


def _field(where: str, document: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = _required(where, document, key)
    if type(value) is not kind:
        raise InvalidRequest(f"{where}.{key} must be {_JSON_TYPES[kind]}, got {shown(value)}")
    return value


def _optional(where: str, document: Mapping[str, Any], key: str, default: T) -> T:
    return _field(where, document, key, type(default)) if key in document else default


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
