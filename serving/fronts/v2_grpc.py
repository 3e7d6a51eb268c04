"""The gRPC front whole: which RPCs there are, who may call them, and what answers them.

The protocol is Open Inference Protocol v2 with Triton's extensions, in the messages that
`tritonclient` ships; beside it are gRPC's own health and reflection services.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2

from serving.errors import InvalidRequest, Restricted
from serving.fronts.grpc_health import Health
from serving.fronts.grpc_status import GRPC_STATUS, UNREADABLE, Context, abort, metadata
from serving.fronts.restricted import Restrictions
from serving.fronts.v2_grpc_control import Control
from serving.fronts.v2_grpc_infer import Inference
from serving.server import Server

__all__ = ["GRPC_STATUS", "build_grpc"]

INFERENCE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

# RPC -> the group of calls that it is restricted with.
GROUPS: Mapping[str, str] = {
    "Check": "health",
    "Watch": "health",
    "ServerLive": "health",
    "ServerReady": "health",
    "ModelReady": "health",
    "ServerMetadata": "metadata",
    "ModelMetadata": "metadata",
    "ModelInfer": "inference",
    "ModelStreamInfer": "inference",
    "ModelConfig": "model-config",
    "ModelStatistics": "statistics",
    "RepositoryIndex": "model-repository",
    "RepositoryModelLoad": "model-repository",
    "RepositoryModelUnload": "model-repository",
    "SystemSharedMemoryStatus": "shared-memory",
    "SystemSharedMemoryRegister": "shared-memory",
    "SystemSharedMemoryUnregister": "shared-memory",
    "CudaSharedMemoryStatus": "shared-memory",
    "CudaSharedMemoryRegister": "shared-memory",
    "CudaSharedMemoryUnregister": "shared-memory",
    "TraceSetting": "trace",
    "LogSettings": "logging",
}
# Those that change what the server does for others; the last two only if they carry settings.
CHANGES = frozenset(
    {
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
        "TraceSetting",
        "LogSettings",
    }
)

Behavior = Callable[[Any, Context], Awaitable[Any]]


def build_grpc(
    server: Server, *, max_message_bytes: int, restrictions: Restrictions, strict: bool
) -> grpc.aio.Server:
    """A gRPC server that is not bound to a port yet."""
    options = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Two servers that share a port by accident must be an error, not a coin toss.
        ("grpc.so_reuseport", 0),
        # Clients may send keepalive pings every ten seconds; by default that ends the connection.
        ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    inference = Inference(server)
    control = Control(server, strict=strict)
    health = Health(server, INFERENCE.full_name, strict=strict)
    behaviors: dict[str, Behavior] = {
        "ModelInfer": inference.infer,
        "ModelStreamInfer": inference.stream,
        "Check": health.Check,
        "Watch": health.Watch,
    }
    for method in INFERENCE.methods:
        if method.name not in behaviors:
            behaviors[method.name] = _answering(getattr(control, method.name))
    grpc_server = grpc.aio.server(options=options)
    for service in (INFERENCE, HEALTH):
        handlers = {
            method.name: _handler(
                method, _guarded(method.name, behaviors[method.name], restrictions)
            )
            for method in service.methods
            if method.name in behaviors
        }
        generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
        grpc_server.add_generic_rpc_handlers((generic,))
    names = (INFERENCE.full_name, HEALTH.full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, grpc_server)
    return grpc_server


def _handler(method: Any, behavior: Behavior) -> Any:
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    kind = GetMessageClass(method.input_type)

    def parse(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except DecodeError:
            return UNREADABLE

    return kinds[method.client_streaming, method.server_streaming](
        behavior if method.client_streaming else _readable(behavior),
        request_deserializer=parse,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _readable(behavior: Behavior) -> Behavior:
    """Refuses what is no message: gRPC itself would tell callers of our exceptions."""

    async def readable(request: Any, context: Context) -> Any:
        if request is UNREADABLE:
            await abort(context, InvalidRequest("the request is not a message of this method"))
        return await behavior(request, context)

    return readable


def _answering(answer: Callable[[Any], Awaitable[Any]]) -> Behavior:
    async def behavior(request: Any, context: Context) -> Any:
        try:
            return await answer(request)
        except Exception as error:
            await abort(context, error)

    return behavior


def _guarded(rpc: str, behavior: Behavior, restrictions: Restrictions) -> Behavior:
    """The same behavior for callers who may; whatever nobody has restricted is left as it is."""
    group = GROUPS[rpc]
    if group not in restrictions.keys and not (rpc in CHANGES and restrictions.guard_management):
        return behavior

    async def guarded(request: Any, context: Context) -> Any:
        changes = rpc in CHANGES and bool(getattr(request, "settings", True))
        try:
            restrictions.check(group, partial(metadata, context), changes=changes)
        except Restricted as error:
            # Triton's word for it, where HTTP has "API".
            text = str(error).replace("This API is", "This protocol is", 1)
            await abort(context, Restricted(text))
        return await behavior(request, context)

    return guarded
