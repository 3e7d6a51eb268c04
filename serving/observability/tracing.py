"""Where single requests spent their time, written to a file in Triton's trace format.

The format and the meaning of the settings are those of Triton's "Server Trace" guide.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from serving.observability.trace_files import BackgroundWriter, TraceArray
from serving.observability.trace_settings import Scope, TraceSettings, parse_trace_config
from serving.types import InferRequest, Stamps

__all__ = ["Tracer", "parse_trace_config"]

log = structlog.get_logger(__name__)

_WRITE_EVERY = 100
"""Traces of a scope that are held in memory, at most."""

# Triton's name of a moment -> ours.
_MOMENTS: tuple[tuple[str, str], ...] = (
    ("REQUEST_START", "received"),
    ("QUEUE_START", "queued"),
    ("COMPUTE_START", "batched"),
    ("COMPUTE_INPUT_END", "started"),
    ("COMPUTE_OUTPUT_START", "computed"),
    ("COMPUTE_END", "answered"),
    ("REQUEST_END", "answered"),
)


@dataclass(eq=False)
class _Log:
    """Where the traces of one scope go, and those that are not yet written."""

    array: TraceArray
    most: int
    """Traces that the file is to have; 0 for no end."""
    count: int = 0
    unwritten: list[bytes] = field(default_factory=list)


class Tracer:
    """Writes the traces of the requests that the settings choose.

    `log_frequency` is a setting of a model or of all that have none, like every other, as it is
    with Triton. With 0 traces go into `trace_file`, one JSON array for the whole life of the
    server, which is complete only once the tracer is closed. With N every N traces of those models
    make a file of their own, `trace_file`.0, .1 and so on, numbered through for all; one that is
    begun when the setting changes is ended early.
    """

    def __init__(self, settings: TraceSettings):
        self.settings = settings
        self._numbers = itertools.count(1)
        self._files = itertools.count()
        self._writer = BackgroundWriter()
        self._main = TraceArray(settings.file)
        # Name of the scope -> its log.
        self._logs: dict[str, _Log] = {}

    def record(self, request: InferRequest, version: str) -> None:
        """Trace a request that has its outcome, if its turn has come. Never raises."""
        if not self.settings.anything_is_traced:
            return
        try:
            scope = self.settings.scope(request.model_name)
            if scope.takes_next():
                self._keep(scope, self._trace(request, version))
        except Exception as error:
            # What a request came to must not depend on whether somebody watches.
            log.error("request not traced", model=request.model_name, exc_info=error)

    def forget(self, model: str) -> None:
        """Drop what was set for a model that is served no more, and end its file."""
        self.settings.forget(model)
        if model in self._logs:
            self._end(self._logs.pop(model))

    async def close(self) -> None:
        """Write what is not written yet."""
        for name in list(self._logs):
            self._end(self._logs.pop(name))
        self._writer.end(self._main)
        await self._writer.flush()

    def _trace(self, request: InferRequest, version: str) -> bytes:
        return orjson.dumps(
            {
                "id": next(self._numbers),
                "model_name": request.model_name,
                # A version may be any number, and orjson writes those of 64 bits only.
                "model_version": orjson.Fragment(str(int(version))),
                "request_id": request.id,
                "timestamps": _timestamps(request.stamps),
            }
        )

    def _keep(self, scope: Scope, trace: bytes) -> None:
        most = scope.log_frequency
        kept = self._logs.get(scope.name)
        if kept is not None and kept.most != most:
            self._end(self._logs.pop(scope.name))
            kept = None
        if kept is None:
            array = TraceArray(f"{self._main.path}.{next(self._files)}") if most else self._main
            kept = self._logs[scope.name] = _Log(array, most)
        kept.count += 1
        kept.unwritten.append(trace)
        if kept.count == most:
            self._end(self._logs.pop(scope.name))
        elif len(kept.unwritten) >= _WRITE_EVERY:
            self._write(kept)

    def _write(self, kept: _Log) -> None:
        traces, kept.unwritten = kept.unwritten, []
        if traces:
            self._writer.extend(kept.array, traces)

    def _end(self, kept: _Log) -> None:
        self._write(kept)
        if kept.array is not self._main:
            self._writer.end(kept.array)


def _timestamps(stamps: Stamps) -> list[dict[str, Any]]:
    """The moments that were reached, in nanoseconds of the monotonic clock."""
    moments = [(name, getattr(stamps, ours)) for name, ours in _MOMENTS]
    return [{"name": name, "ns": round(at * 1e9)} for name, at in moments if at]
