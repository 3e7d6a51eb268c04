"""What the protocol has over gRPC besides inference: each RPC a method from request to response.

The methods raise `SlipwayError`; the service turns that into a status.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2

from serving import __version__
from serving.errors import InvalidRequest, NotFound, Unsupported, shown
from serving.fronts.v2_grpc_messages import check_version, render_spec
from serving.fronts.v2_statistics import statistics
from serving.overrides import Overrides
from serving.server import EXTENSIONS, Server


class Control:
    """With `strict`, statuses are Triton's where ours say it better."""

    def __init__(self, server: Server, *, strict: bool):
        self._server = server
        self._strict = strict

    async def ServerLive(self, request: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self._server.ready)

    async def ModelReady(self, request: Any) -> Any:
        check_version(request.version)
        ready = self._server.model_ready(request.name, request.version)
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any) -> Any:
        return service_pb2.ServerMetadataResponse(
            name=self._server.name, version=__version__, extensions=EXTENSIONS
        )

    async def ModelMetadata(self, request: Any) -> Any:
        check_version(request.version)
        config = self._server.model(request.name, request.version).config
        return service_pb2.ModelMetadataResponse(
            name=config.name,
            versions=[request.version] if request.version else self._server.versions(config.name),
            platform=config.platform or config.backend,
            inputs=[render_spec(spec) for spec in config.inputs],
            outputs=[render_spec(spec) for spec in config.outputs],
        )

    async def ModelConfig(self, request: Any) -> Any:
        check_version(request.version)
        config = self._server.model(request.name, request.version).config
        return service_pb2.ModelConfigResponse(config=config.message)

    async def ModelStatistics(self, request: Any) -> Any:
        check_version(request.version)
        totals = statistics(self._server, request.name, request.version)
        return ParseDict(totals, service_pb2.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: Any) -> Any:
        _refuse_repository(request)
        response = service_pb2.RepositoryIndexResponse()
        for model in await self._server.index(ready_only=request.ready):
            response.models.add(
                name=model.name, version=model.version, state=model.state, reason=model.reason
            )
        return response

    async def RepositoryModelLoad(self, request: Any) -> Any:
        _refuse_repository(request)
        await self._server.control.load(request.model_name, _overrides(request.parameters))
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any) -> Any:
        _refuse_repository(request)
        dependents = False
        for key, parameter in request.parameters.items():
            if key != "unload_dependents":
                raise InvalidRequest(f"unrecognized unload parameter {shown(key)}")
            dependents = _value(key, parameter, "bool_param")
        await self._server.control.unload(request.model_name, dependents=dependents)
        return service_pb2.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(self, request: Any) -> Any:
        response = service_pb2.SystemSharedMemoryStatusResponse()
        for region in self._server.shared_memory.status(request.name):
            status = response.regions[region.name]
            status.name, status.key = region.name, region.key
            status.offset, status.byte_size = region.offset, region.byte_size
        return response

    async def SystemSharedMemoryRegister(self, request: Any) -> Any:
        self._server.shared_memory.register(
            request.name, request.key, request.offset, request.byte_size
        )
        return service_pb2.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(self, request: Any) -> Any:
        self._server.shared_memory.unregister(request.name)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    # CUDA shared memory as a Triton without GPUs has it: there is none.

    async def CudaSharedMemoryStatus(self, request: Any) -> Any:
        if request.name:
            raise NotFound(f"Unable to find cuda shared memory region: {shown(request.name)}")
        return service_pb2.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(self, request: Any) -> Any:
        error = InvalidRequest if self._strict else Unsupported
        raise error(
            f"failed to register CUDA shared memory region: {shown(request.name)},"
            " CUDA shared memory is not supported by this server"
        )

    async def CudaSharedMemoryUnregister(self, request: Any) -> Any:
        return service_pb2.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: Any) -> Any:
        settings, model = self._server.tracer.settings, request.model_name
        if model:
            self._check_known(model)
        if request.settings:
            # No value is a wish too: what is set globally shall count again.
            changes = {key: list(item.value) or None for key, item in request.settings.items()}
            settings.update(changes, model)
        response = service_pb2.TraceSettingResponse()
        for key, value in settings.get(model).items():
            response.settings[key].value.extend([value] if isinstance(value, str) else value)
        return response

    async def LogSettings(self, request: Any) -> Any:
        settings = self._server.log_settings
        if request.settings:
            known = settings.get()
            settings.update(
                {
                    key: _log_value(key, item)
                    for key, item in request.settings.items()
                    if key in known
                }
            )
        response = service_pb2.LogSettingsResponse()
        for key, value in settings.get().items():
            setattr(response.settings[key], _LOG_FIELDS[type(value)], value)
        return response

    def _check_known(self, model: str) -> None:
        try:
            self._server.model(model)
        except NotFound:
            raise InvalidRequest(f"Request for unknown model : {model}") from None


_LOG_FIELDS = {bool: "bool_param", int: "uint32_param", str: "string_param"}


def _refuse_repository(request: Any) -> None:
    if request.repository_name:
        raise Unsupported("'repository_name' specification is not supported")


def _overrides(parameters: Any) -> Overrides | None:
    """What a load call brings along; None if it is nothing."""
    if not parameters:
        return None
    config: str | None = None
    files: dict[str, bytes] = {}
    for key, parameter in parameters.items():
        if key == "config":
            config = _value(key, parameter, "string_param")
        elif key.startswith("file:"):
            files[key.removeprefix("file:")] = _value(key, parameter, "bytes_param")
        else:
            raise InvalidRequest(f"unrecognized load parameter {shown(key)}")
    return Overrides(config, files)


def _value(key: str, parameter: Any, expected: str) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    if choice != expected:
        raise InvalidRequest(
            f"invalid value type for {shown(key)} parameter, expected {expected},"
            f" got {choice or 'nothing'}"
        )
    return getattr(parameter, expected)


def _log_value(key: str, item: Any) -> bool | int | str:
    choice = item.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidRequest(f"log setting {shown(key)} has no value")
    value: bool | int | str = getattr(item, choice)
    return value
