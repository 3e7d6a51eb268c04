"""Open Inference Protocol v2 over HTTP, all but inference: what is there, and how to change it."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from starlette.convertors import Convertor, register_url_convertor

from serving import __version__
from serving.errors import InvalidRequest, Malformed, NotFound, Unsupported, shown
from serving.fronts.asgi import read_body
from serving.fronts.json_body import as_list, as_object, field, optional, parse_optional
from serving.fronts.protobuf_json import to_plain
from serving.fronts.restricted import Restrictions
from serving.fronts.v2_statistics import statistics
from serving.overrides import Overrides
from serving.server import EXTENSIONS, Server
from serving.types import TensorSpec

TAG = "Open Inference Protocol v2"
VERSION = "/versions/{version:digits}"


class _Digits(Convertor[str]):
    regex = "[0-9]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("digits", _Digits())


def allowed(restrictions: Restrictions, group: str, *, changes: bool = False) -> Any:
    """A dependency of a route that is in a group of calls; see `Restrictions.check`."""

    async def check(request: Request) -> None:
        restrictions.check(group, request.headers.get, changes=changes)

    return Depends(check)


def target(request: Request) -> tuple[str, str]:
    """The name and version in a model's path. Not a route's parameters: a version that the path
    lacks would be looked for in the query, which the protocol ignores."""
    return request.path_params["name"], request.path_params.get("version", "")


def router(server: Server, restrictions: Restrictions, max_body_bytes: int) -> APIRouter:
    """All but inference."""
    routes = APIRouter(tags=[TAG])
    for part in (_health, _metadata, _statistics):
        part(routes, server, restrictions)
    for changing in (_repository, _system_shared_memory, _cuda_shared_memory, _trace, _logging):
        changing(routes, server, restrictions, _body_reader(max_body_bytes))
    return routes


ReadBody = Callable[[Request], Awaitable[bytes]]


def _body_reader(max_body_bytes: int) -> ReadBody:
    return lambda request: read_body(request.receive, max_body_bytes)


def _health(routes: APIRouter, server: Server, restrictions: Restrictions) -> None:
    may = [allowed(restrictions, "health")]

    @routes.get("/v2/health/live", dependencies=may)
    async def server_live() -> Response:
        return Response()

    @routes.get("/v2/health/ready", dependencies=may)
    async def server_ready() -> Response:
        return Response(status_code=200 if server.ready else 400)

    @routes.get("/v2/models/{name}/ready", dependencies=may)
    @routes.get("/v2/models/{name}" + VERSION + "/ready", dependencies=may)
    async def model_ready(request: Request) -> Response:
        if server.model_ready(*target(request)):
            return Response()
        return JSONResponse({"error": "Model version not ready"}, status_code=400)


def _metadata(routes: APIRouter, server: Server, restrictions: Restrictions) -> None:
    may = [allowed(restrictions, "metadata")]

    @routes.get("/v2", dependencies=may)
    @routes.get("/v2/", dependencies=may, include_in_schema=False)
    async def server_metadata() -> dict[str, Any]:
        return {"name": server.name, "version": __version__, "extensions": EXTENSIONS}

    # Ahead of the next route, whose path fits this one too.
    @routes.get("/v2/models/stats", dependencies=[allowed(restrictions, "statistics")])
    async def all_statistics() -> dict[str, Any]:
        return statistics(server)

    @routes.get("/v2/models/{name}", dependencies=may)
    @routes.get("/v2/models/{name}" + VERSION, dependencies=may)
    async def model_metadata(request: Request) -> dict[str, Any]:
        name, version = target(request)
        config = server.model(name, version).config
        return {
            "name": config.name,
            "versions": [version] if version else server.versions(config.name),
            "platform": config.platform or config.backend,
            "inputs": [_spec(spec) for spec in config.inputs],
            "outputs": [_spec(spec) for spec in config.outputs],
        }


def _statistics(routes: APIRouter, server: Server, restrictions: Restrictions) -> None:
    @routes.get("/v2/models/{name}/stats", dependencies=[allowed(restrictions, "statistics")])
    @routes.get(
        "/v2/models/{name}" + VERSION + "/stats",
        dependencies=[allowed(restrictions, "statistics")],
    )
    async def model_statistics(request: Request) -> dict[str, Any]:
        return statistics(server, *target(request))

    @routes.get("/v2/models/{name}/config", dependencies=[allowed(restrictions, "model-config")])
    @routes.get(
        "/v2/models/{name}" + VERSION + "/config",
        dependencies=[allowed(restrictions, "model-config")],
    )
    async def model_config(request: Request) -> dict[str, Any]:
        return to_plain(server.model(*target(request)).config.message)


def _repository(
    routes: APIRouter, server: Server, restrictions: Restrictions, body_of: ReadBody
) -> None:
    may = [allowed(restrictions, "model-repository")]
    may_change = [allowed(restrictions, "model-repository", changes=True)]

    @routes.post("/v2/repository/index", dependencies=may)
    @routes.post("/v2/repository/{repository}/index", dependencies=may, include_in_schema=False)
    async def repository_index(request: Request) -> list[dict[str, str]]:
        body = await body_of(request)
        ready_only = optional("the request", parse_optional(body), "ready", False)
        return [
            {key: value for key, value in asdict(state).items() if value}
            for state in await server.index(ready_only=ready_only)
        ]

    @routes.post("/v2/repository/models/{name}/load", dependencies=may_change)
    async def load_model(request: Request) -> Response:
        body = await body_of(request)
        # Of a model that comes along it takes long to read.
        overrides = await asyncio.to_thread(_overrides, body)
        await server.control.load(request.path_params["name"], overrides)
        return Response()

    @routes.post("/v2/repository/models/{name}/unload", dependencies=may_change)
    async def unload_model(request: Request) -> Response:
        parameters = _parameters(await body_of(request))
        dependents = optional("parameters", parameters, "unload_dependents", False)
        await server.control.unload(request.path_params["name"], dependents=dependents)
        return Response()

    named = "/v2/repository/{repository}/models/{name}"

    @routes.post(named + "/load", dependencies=may_change, include_in_schema=False)
    @routes.post(named + "/unload", dependencies=may_change, include_in_schema=False)
    async def refuse_repository_name() -> Response:
        raise Unsupported("'repository_name' specification is not supported")


def _system_shared_memory(
    routes: APIRouter, server: Server, restrictions: Restrictions, body_of: ReadBody
) -> None:
    may = [allowed(restrictions, "shared-memory")]
    may_change = [allowed(restrictions, "shared-memory", changes=True)]
    path = "/v2/systemsharedmemory"

    @routes.get(path + "/status", dependencies=may)
    @routes.get(path + "/region/{region}/status", dependencies=may)
    async def system_status(request: Request) -> list[dict[str, Any]]:
        name = request.path_params.get("region", "")
        return [asdict(region) for region in server.shared_memory.status(name)]

    @routes.post(path + "/region/{region}/register", dependencies=may_change)
    @routes.post(path + "/register", dependencies=may_change, include_in_schema=False)
    async def system_register(request: Request) -> Response:
        name = _region_to_register(request, "system")
        asked = parse_optional(await body_of(request))
        _require_field(asked, "key")
        _require_field(asked, "byte_size")
        server.shared_memory.register(
            name,
            field("the request", asked, "key", str),
            optional("the request", asked, "offset", 0),
            field("the request", asked, "byte_size", int),
        )
        return Response()

    @routes.post(path + "/unregister", dependencies=may_change)
    @routes.post(path + "/region/{region}/unregister", dependencies=may_change)
    async def system_unregister(request: Request) -> Response:
        server.shared_memory.unregister(request.path_params.get("region", ""))
        return Response()


def _cuda_shared_memory(
    routes: APIRouter, server: Server, restrictions: Restrictions, body_of: ReadBody
) -> None:
    """As Triton without CUDA: nothing can be registered, and nothing ever is."""
    may = [allowed(restrictions, "shared-memory")]
    may_change = [allowed(restrictions, "shared-memory", changes=True)]
    path = "/v2/cudasharedmemory"

    @routes.get(path + "/status", dependencies=may)
    @routes.get(path + "/region/{region}/status", dependencies=may)
    async def cuda_status(request: Request) -> list[dict[str, Any]]:
        if "region" in request.path_params:
            name = request.path_params["region"]
            raise NotFound(f"Unable to find cuda shared memory region: {name!r}")
        return []

    @routes.post(path + "/region/{region}/register", dependencies=may_change)
    @routes.post(path + "/register", dependencies=may_change, include_in_schema=False)
    async def cuda_register(request: Request) -> Response:
        name = _region_to_register(request, "cuda")
        asked = parse_optional(await body_of(request))
        for key in ("raw_handle", "byte_size", "device_id"):
            _require_field(asked, key)
        raise InvalidRequest(
            f"failed to register CUDA shared memory region: {name!r}, GPUs not supported"
        )

    @routes.post(path + "/unregister", dependencies=may_change)
    @routes.post(path + "/region/{region}/unregister", dependencies=may_change)
    async def cuda_unregister() -> Response:
        return Response()


def _trace(
    routes: APIRouter, server: Server, restrictions: Restrictions, body_of: ReadBody
) -> None:
    may = [allowed(restrictions, "trace")]
    may_change = [allowed(restrictions, "trace", changes=True)]
    path = "/v2/trace/setting"
    model_path = "/v2/models/{name}/trace/setting"

    @routes.get(path, dependencies=may)
    @routes.get(model_path, dependencies=may)
    async def trace_settings(request: Request) -> dict[str, Any]:
        return server.tracer.settings.get(_traced_model(server, request))

    @routes.post(path, dependencies=may_change)
    @routes.post(model_path, dependencies=may_change)
    async def update_trace_settings(request: Request) -> dict[str, Any]:
        name = _traced_model(server, request)
        asked = parse_optional(await body_of(request))
        known = server.tracer.settings.get()
        changes = {key: _setting(key, asked[key]) for key in known if key in asked}
        server.tracer.settings.update(changes, name)
        return server.tracer.settings.get(name)


def _logging(
    routes: APIRouter, server: Server, restrictions: Restrictions, body_of: ReadBody
) -> None:
    @routes.get("/v2/logging", dependencies=[allowed(restrictions, "logging")])
    async def log_settings() -> Mapping[str, Any]:
        return server.log_settings.get()

    @routes.post("/v2/logging", dependencies=[allowed(restrictions, "logging", changes=True)])
    async def update_log_settings(request: Request) -> Mapping[str, Any]:
        asked = parse_optional(await body_of(request))
        known = server.log_settings.get()
        server.log_settings.update({key: asked[key] for key in known if asked.get(key) is not None})
        return server.log_settings.get()


def _parameters(body: bytes) -> dict[str, Any]:
    return as_object("parameters", parse_optional(body).get("parameters", {}))


def _overrides(body: bytes) -> Overrides | None:
    config: str | None = None
    files: dict[str, bytes] = {}
    parameters = _parameters(body)
    for key in parameters:
        value = field("parameters", parameters, key, str)
        if key == "config":
            config = value
        elif key.startswith("file:"):
            try:
                files[key.removeprefix("file:")] = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                raise InvalidRequest(
                    f"parameters.{shown(key)} must be a file's contents in base64"
                ) from None
        else:
            raise InvalidRequest(
                f"unexpected load parameter {shown(key)}: expected 'config' or"
                " 'file:<version>/<file name>'"
            )
    return Overrides(config, files) if parameters else None


def _region_to_register(request: Request, kind: str) -> str:
    name: str = request.path_params.get("region", "")
    if not name:
        raise InvalidRequest(f"'region name' is necessary to register {kind} shared memory region")
    return name


def _require_field(asked: Mapping[str, Any], key: str) -> None:
    if key not in asked:
        raise InvalidRequest(f"Shared memory register request has no {key!r} field")


def _traced_model(server: Server, request: Request) -> str:
    """The model whose settings are meant; empty for those of all."""
    name: str = request.path_params.get("name", "")
    if name:
        try:
            server.model(name)
        except NotFound:
            raise InvalidRequest(f"Request for unknown model : {name}") from None
    return name


def _setting(key: str, value: object) -> list[str] | None:
    """A trace setting's values; None for "as for all models"."""
    if value is None:
        return None
    if key != "trace_level":
        value = [value]
    values = as_list(key, value)
    for item in values:
        if not isinstance(item, str):
            raise Malformed(f"{key} must be a string, got {shown(item)}")
    return values


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
