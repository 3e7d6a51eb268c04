"""Who calls by gRPC, as its metadata says, and how long it waits."""

from __future__ import annotations

from functools import lru_cache
from math import inf

from serving.calls import Call, Front, clean_id, new_id
from serving.fronts.grpc_rpc import Context, Metadata


def new_call(context: Context, operation: str) -> Call:
    id, traceparent, tracestate = _identity(tuple(context.invocation_metadata() or ()))
    call = Call(Front.V2_GRPC, operation, id or new_id())
    if id:
        call.has_own_id = True
    if traceparent:
        call.traceparent, call.tracestate = traceparent, tracestate
    return call


@lru_cache(256)
def _identity(metadata: Metadata) -> tuple[str, str, str]:
    """Its caller's id for a call, and its place in a trace."""
    id = traceparent = tracestate = ""
    for name, value in metadata:
        if not isinstance(value, str):
            continue
        if name == "traceparent":
            traceparent = value
        elif name == "tracestate":
            tracestate = value
        elif name == "x-request-id":
            id = id or clean_id(value)
    return id, traceparent, tracestate


def deadline_of(context: Context, now: float) -> float:
    """When the caller stops waiting, in seconds of the monotonic clock."""
    remaining = context.time_remaining()
    return inf if remaining is None else now + remaining
