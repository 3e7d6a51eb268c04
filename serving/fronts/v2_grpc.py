"""Open Inference Protocol v2 over gRPC, with the messages that `tritonclient` ships."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any, NoReturn

import grpc
import numpy as np
import structlog
from tritonclient.grpc import service_pb2

from serving import __version__
from serving.errors import InvalidRequest, SlipwayError, Unsupported
from serving.fronts.v2_tensors import check_spec, datatype_of, from_bytes, to_bytes
from serving.server import EXTENSIONS, NAME, Server
from serving.types import NUMPY_TYPES, Array, InferRequest, InferResponse, Tensors, TensorSpec

log = structlog.get_logger(__name__)

# Every code of `serving.errors` has its gRPC status here; a test proves it.
GRPC_STATUS: Mapping[str, grpc.StatusCode] = {
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
    "too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "unsupported": grpc.StatusCode.UNIMPLEMENTED,
    "overloaded": grpc.StatusCode.UNAVAILABLE,
    "expired": grpc.StatusCode.UNAVAILABLE,
    "cancelled": grpc.StatusCode.CANCELLED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "internal": grpc.StatusCode.INTERNAL,
}

# Datatype -> the field of InferTensorContents that carries it. FP16 travels as raw bytes only.
_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

RPCS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelConfig",
    "ModelInfer",
)
MAX_MESSAGE_CHARACTERS = 2000
"""Of an error. It travels in a header, and a caller's own long names may be in it."""

Context = grpc.aio.ServicerContext[Any, Any]


def build_grpc(server: Server, *, max_message_bytes: int) -> grpc.aio.Server:
    """A gRPC server that is not bound to a port yet."""
    options = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Two servers that share a port by accident must be an error, not a coin toss.
        ("grpc.so_reuseport", 0),
    ]
    grpc_server = grpc.aio.server(options=options)
    servicer = _Servicer(server)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name),
            request_deserializer=getattr(service_pb2, f"{name}Request").FromString,
            response_serializer=getattr(service_pb2, f"{name}Response").SerializeToString,
        )
        for name in RPCS
    }
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
    grpc_server.add_generic_rpc_handlers((service,))
    return grpc_server


class _Servicer:
    """One method for each of `RPCS`; gRPC itself answers UNIMPLEMENTED to all others."""

    def __init__(self, server: Server):
        self._server = server

    async def ServerLive(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerReadyResponse(ready=self._server.ready)

    async def ModelReady(self, request: Any, context: Context) -> Any:
        ready = self._server.model_ready(request.name, request.version)
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerMetadataResponse(
            name=NAME, version=__version__, extensions=EXTENSIONS
        )

    async def ModelMetadata(self, request: Any, context: Context) -> Any:
        try:
            config = self._server.model(request.name, request.version).config
        except SlipwayError as error:
            await _abort(context, error)
        return service_pb2.ModelMetadataResponse(
            name=config.name,
            versions=self._server.versions(config.name),
            platform=config.platform or config.backend,
            inputs=[_metadata(spec) for spec in config.inputs],
            outputs=[_metadata(spec) for spec in config.outputs],
        )

    async def ModelConfig(self, request: Any, context: Context) -> Any:
        try:
            config = self._server.model(request.name, request.version).config
        except SlipwayError as error:
            await _abort(context, error)
        return service_pb2.ModelConfigResponse(config=config.message)

    async def ModelInfer(self, request: Any, context: Context) -> Any:
        try:
            received = monotonic()
            call = parse_infer(request)
            call.stamps.received = received
            return render_infer(await self._server.infer(call))
        except Exception as error:
            await _abort(context, error)


def parse_infer(message: Any) -> InferRequest:
    """Translate a ModelInferRequest. Raises `InvalidRequest` naming the field."""
    request = InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        inputs=_inputs(message),
        outputs=tuple(dict.fromkeys(output.name for output in message.outputs)),
    )
    for output in message.outputs:
        _refuse_unsupported(f"output {output.name!r}", output.parameters)
    for key, parameter in message.parameters.items():
        if key == "priority":
            request.priority = int(_number(key, parameter))
        elif key == "timeout":
            request.timeout_s = _number(key, parameter) / 1e6
    return request


def render_infer(response: InferResponse) -> Any:
    """Translate a response into a ModelInferResponse."""
    message = service_pb2.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    for name, tensor in response.outputs.items():
        message.outputs.add(name=name, datatype=datatype_of(tensor), shape=tensor.shape)
        message.raw_output_contents.append(bytes(to_bytes(tensor)))
    return message


def _inputs(message: Any) -> Tensors:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs"
        )
    inputs: Tensors = {}
    for index, item in enumerate(message.inputs):
        if item.name in inputs:
            raise InvalidRequest(f"input {item.name!r} already exists in request")
        _refuse_unsupported(f"input {item.name!r}", item.parameters)
        datatype, shape = check_spec(item.name, item.datatype, item.shape)
        if not raw:
            inputs[item.name] = _typed(item, datatype, shape)
        elif item.HasField("contents"):
            raise InvalidRequest(
                "contents field must not be specified when using raw_input_contents"
                f" for input {item.name!r}"
            )
        else:
            inputs[item.name] = from_bytes(item.name, datatype, shape, raw[index])
    return inputs


def _typed(item: Any, datatype: str, shape: tuple[int, ...]) -> Array:
    """A tensor from the typed field of its datatype."""
    expected = _CONTENTS.get(datatype)
    for descriptor, _ in item.contents.ListFields():
        if descriptor.name != expected:
            raise InvalidRequest(
                f"unexpected explicit tensor data for input {item.name!r}: {datatype} belongs in"
                f" {expected or 'raw_input_contents'}, got {descriptor.name}"
            )
    if expected is None:
        raise InvalidRequest(f"{datatype} of input {item.name!r} belongs in raw_input_contents")
    elements = list(getattr(item.contents, expected))
    if len(elements) != np.prod(shape, dtype=object):
        raise InvalidRequest(
            f"unable to find data for input tensor {item.name!r}: {expected} has {len(elements)}"
            f" elements, but shape {list(shape)} takes {np.prod(shape, dtype=object)}"
        )
    try:
        return np.array(elements, NUMPY_TYPES[datatype]).reshape(shape)
    except OverflowError:
        raise InvalidRequest(f"data of input {item.name!r} has values outside {datatype}") from None


def _metadata(spec: TensorSpec) -> Any:
    return service_pb2.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.datatype, shape=spec.shape
    )


def _number(key: str, parameter: Any) -> float:
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidRequest(f"parameter {key!r} must be an integer, got {kind}")
    return float(getattr(parameter, kind))


def _refuse_unsupported(where: str, parameters: Any) -> None:
    for key in parameters:
        if key.startswith("shared_memory_") or key == "classification":
            raise Unsupported(f"{key} of {where} is not supported by this server")


async def _abort(context: Context, error: Exception) -> NoReturn:
    """End the call with the status of an error; what went wrong inside is logged, not told."""
    status = (
        GRPC_STATUS[error.code] if isinstance(error, SlipwayError) else grpc.StatusCode.INTERNAL
    )
    message = str(error)
    if status is grpc.StatusCode.INTERNAL:
        message = "inference failed; the server's log has the cause"
        if not isinstance(error, SlipwayError):
            log.error("unexpected error", exc_info=error)
    await context.abort(status, message[:MAX_MESSAGE_CHARACTERS])
    raise AssertionError("abort returned. This is a bug.")
