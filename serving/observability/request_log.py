"""The one line that `--log-verbose` adds: how each request ended, and where its time went."""

from __future__ import annotations

import logging
from contextlib import suppress
from time import monotonic
from typing import Any

import structlog

from serving.calls import MAX_ID
from serving.observability.totals import Outcome
from serving.observability.trace_context import parse_traceparent
from serving.types import InferRequest, Stamps

_log: Any = structlog.get_logger(__name__)
_switch = logging.getLogger(__name__)
# Stage -> the stamps between which it lies.
_STAGES: tuple[tuple[str, str, str], ...] = (
    ("cache_ms", "received", "looked_up"),
    ("parse_ms", "received", "queued"),
    ("queue_ms", "queued", "batched"),
    ("compute_input_ms", "batched", "started"),
    ("compute_infer_ms", "started", "computed"),
    ("compute_output_ms", "computed", "answered"),
    ("send_ms", "answered", "sent"),
)


def write_to(log: Any) -> None:
    """Log by a logger of structlog's from now on."""
    global _log
    _log = log


def log_request(request: InferRequest, version: str, outcome: Outcome) -> None:
    """Log a request that has its outcome, if that is wanted; of its tensors, nothing.

    A line that cannot be written or encoded is lost: no request fails for it.
    """
    if not _switch.isEnabledFor(logging.DEBUG):
        return
    with suppress(OSError, TypeError):
        _log.debug(
            "request",
            model=request.model_name[:MAX_ID],
            version=version,
            id=request.id[:MAX_ID],
            front=request.front.value,
            **_identity(request),
            outcome=outcome.value,
            **_stages(request.stamps),
            request_ms=_ms(request.stamps.received, request.stamps.answered or monotonic()),
        )


def _identity(request: InferRequest) -> dict[str, str]:
    """By which a line is found from the caller's log, and a trace from the line."""
    call, trace = request.call, request.trace
    if call is None:
        return {} if trace is None else {"trace_id": f"{trace.trace_id:032x}"}
    identity = {"request_id": call.id}
    if trace is not None:
        identity["trace_id"] = f"{trace.trace_id:032x}"
    elif (caller := parse_traceparent(call.traceparent)) is not None:
        identity["trace_id"] = f"{caller.trace_id:032x}"
    return identity


def _stages(stamps: Stamps) -> dict[str, float]:
    """What each stage took that was reached and left."""
    times = [(name, getattr(stamps, start), getattr(stamps, end)) for name, start, end in _STAGES]
    return {name: _ms(start, end) for name, start, end in times if start and end}


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1e3, 3)
