"""gRPC whole: which RPCs there are, who may call them, and what answers them.

The protocol is Open Inference Protocol v2 with Triton's extensions, in the messages that
`tritonclient` ships; beside it are gRPC's own health and reflection services.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from tritonclient.grpc import service_pb2

from serving.errors import InvalidRequest, Restricted
from serving.fronts.grpc_health import Health
from serving.fronts.grpc_rpc import Behavior, Context, Rpc, Rpcs
from serving.fronts.grpc_status import GRPC_STATUS, UNREADABLE, abort, metadata
from serving.fronts.restricted import Restrictions
from serving.fronts.v2_grpc_control import Control
from serving.fronts.v2_grpc_infer import Inference
from serving.server import Server

__all__ = ["GRPC_STATUS", "build_rpcs"]

INFERENCE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

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


def build_rpcs(server: Server, *, restrictions: Restrictions, strict: bool) -> Rpcs:
    """All RPCs of the port, for whichever front takes the calls."""
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
    rpcs: dict[str, Rpc] = {}
    for service in (INFERENCE, HEALTH):
        for method in service.methods:
            if method.name in behaviors:
                behavior = _guarded(method.name, behaviors[method.name], restrictions)
                rpcs[f"/{service.full_name}/{method.name}"] = _rpc(method, behavior)
    # They read and write their messages themselves.
    infer, stream = (
        f"/{INFERENCE.full_name}/{name}" for name in ("ModelInfer", "ModelStreamInfer")
    )
    for path in (infer, stream):
        rpcs[path] = replace(rpcs[path], parse=bytes, serialize=bytes)
    if GROUPS["ModelInfer"] not in restrictions.keys:
        rpcs[infer] = replace(rpcs[infer], begin=inference.begin)
    (reflect,) = REFLECTION.methods
    names = (INFERENCE.full_name, HEALTH.full_name, REFLECTION.full_name)
    rpcs[f"/{REFLECTION.full_name}/{reflect.name}"] = _rpc(reflect, _reflecting(names))
    return rpcs


def _rpc(method: Any, behavior: Behavior) -> Rpc:
    kind = GetMessageClass(method.input_type)

    def parse(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except DecodeError:
            return UNREADABLE

    return Rpc(
        behavior if method.client_streaming else _readable(behavior),
        parse,
        GetMessageClass(method.output_type).SerializeToString,
        method.client_streaming,
        method.server_streaming,
    )


def _reflecting(names: Sequence[str]) -> Behavior:
    reflect = reflection.aio.ReflectionServicer(names).ServerReflectionInfo

    async def behavior(messages: Any, context: Context) -> None:
        # The stubs take the generator for a coroutine that returns one.
        answers: Any = reflect(_readable_ones(messages, context), context)
        async for answer in answers:
            await context.write(answer)

    return behavior


async def _readable_ones(messages: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async for message in messages:
        if message is UNREADABLE:
            await _refuse_unreadable(context)
        yield message


async def _refuse_unreadable(context: Context) -> None:
    await abort(context, InvalidRequest("the request is not a message of this method"))


def _readable(behavior: Behavior) -> Behavior:
    """Refuses what is no message: gRPC itself would tell callers of our exceptions."""

    async def readable(request: Any, context: Context) -> Any:
        if request is UNREADABLE:
            await _refuse_unreadable(context)
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
