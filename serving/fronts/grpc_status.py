"""Errors as gRPC tells them: one table from code to status, one way to end a call."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import NoReturn

import grpc
import structlog

from serving.errors import Expired, InferenceFailed, SlipwayError
from serving.fronts.grpc_rpc import Context

log = structlog.get_logger(__name__)

# Every code of `serving.errors` has its gRPC status here; a test proves it.
GRPC_STATUS: Mapping[str, grpc.StatusCode] = {
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
    "malformed": grpc.StatusCode.INVALID_ARGUMENT,
    "already_exists": grpc.StatusCode.ALREADY_EXISTS,
    "restricted": grpc.StatusCode.UNAVAILABLE,
    "too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "unsupported": grpc.StatusCode.UNIMPLEMENTED,
    "overloaded": grpc.StatusCode.UNAVAILABLE,
    "expired": grpc.StatusCode.UNAVAILABLE,
    "cancelled": grpc.StatusCode.CANCELLED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "load_failed": grpc.StatusCode.INVALID_ARGUMENT,
    "not_in_repository": grpc.StatusCode.INTERNAL,
    "internal": grpc.StatusCode.INTERNAL,
}
MAX_MESSAGE_BYTES = 4000
"""Of an error, as it travels: in a header, of which clients take 8 KiB, and with three bytes for
each that is not printable ASCII. A caller's own long names may be in it."""
_CLOCKS_AGREE_WITHIN_S = 0.01

UNREADABLE = object()
"""Stands for bytes that are no message of the method they were sent to."""


def describe(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Status and message of any error that reaches a caller.

    What went wrong inside is logged, not told: messages of engines and of Python carry paths.
    """
    if not isinstance(error, SlipwayError):
        log.error("unexpected error", exc_info=error)
        return grpc.StatusCode.INTERNAL, "internal error; the server's log has the cause"
    if error.code == "internal":
        where = error.where if isinstance(error, InferenceFailed) else ""
        return grpc.StatusCode.INTERNAL, f"{where}inference failed; the server's log has the cause"
    return GRPC_STATUS[error.code], _cut(str(error))


def _cut(message: str) -> str:
    # A message may quote what no encoding has, such as half of a surrogate pair.
    encoded = message[:MAX_MESSAGE_BYTES].encode(errors="replace")
    sizes = accumulate(1 if 0x20 <= byte < 0x7F and byte != ord("%") else 3 for byte in encoded)
    return encoded[: bisect_right(list(sizes), MAX_MESSAGE_BYTES)].decode(errors="ignore")


async def abort(context: Context, error: Exception) -> NoReturn:
    """End a call with the status of an error."""
    await context.abort(*status(context, error))
    raise AssertionError("abort returned. This is a bug.")


def status(context: Context, error: Exception) -> tuple[grpc.StatusCode, str]:
    """How a call ends for which an error was raised."""
    if is_too_late(context, error):
        # What the caller's own clock is about to say; the two race, and callers look for this text.
        return grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"
    return describe(error)


def is_too_late(context: Context, error: Exception) -> bool:
    """Whether a request expired because the time of its whole call is up."""
    remaining = context.time_remaining() if isinstance(error, Expired) else None
    return remaining is not None and remaining < _CLOCKS_AGREE_WITHIN_S


def metadata(context: Context, key: str) -> str | None:
    """What the caller sent with the call under a (lower-case) key."""
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else None
    return None
