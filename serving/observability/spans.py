"""OpenTelemetry spans, made of what was noted of a request when it has ended.

Nothing here runs while a request does, and nothing waits: spans go into a bounded queue, from which
a thread sends them to a collector by OTLP over HTTP. What it does not take in time is lost.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from random import getrandbits
from time import monotonic, monotonic_ns, time_ns

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from serving import __version__
from serving.calls import MAX_ID, Batch, Call, Front, StepGroup, Trace
from serving.observability.stages import STAGES, Outcome
from serving.observability.trace_context import parse_traceparent
from serving.observability.trace_settings import Export, TraceSettings
from serving.types import InferRequest, Stamps

log = structlog.get_logger(__name__)

FLUSH_S = 2.0
"""That a stop waits for a collector."""
EXPORT_S = 10.0
"""That one batch of spans may take, with all attempts."""

_LONGEST_REASON = 200
_CLOCK_WAS_SET_NS = 5_000_000
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSERVED = (Outcome.REFUSED, Outcome.EXPIRED, Outcome.FAILED)
"""What is the server's part; a caller's mistake is no error of a server's span."""

Attributes = Mapping[str, str | int | float]


class SpanTracer:
    """Decides by the protocol's trace settings which calls are traced, and sends their spans.

    A call whose parent is sampled is traced whatever rate and count say, unless the level is OFF.
    """

    def __init__(self, settings: TraceSettings, export: Export):
        self._settings = settings
        self._resource = Resource.create({"service.name": "slipway", **export.resource})
        self._clock = _Clock()
        self._scope = InstrumentationScope("slipway", __version__)
        library = logging.getLogger("opentelemetry")
        library.addHandler(_Seldom())
        library.propagate = False
        self._processor = BatchSpanProcessor(
            OTLPSpanExporter(export.url, timeout=EXPORT_S),
            export.max_queue_size,
            export.schedule_delay_ms,
            export.max_export_batch_size,
        )

    def begin(self, request: InferRequest) -> None:
        """Decide whether a request is traced. One within another is if that one is."""
        call = request.call
        if call is None:
            return
        if call.is_sampled is None:
            call.trace = self._sampled(request.model_name, call)
            call.is_sampled = call.trace is not None
        if (root := call.trace) is not None:
            request.trace = root.below(root.span_id) if call.asks_several else root

    def record(self, request: InferRequest, version: str, outcome: Outcome, reason: str) -> None:
        """Make the spans of a request that has its outcome, if it is traced. Never raises."""
        if request.trace is None:
            return
        if request.call is not None and version:
            request.call.model = request.model_name
        try:
            self._record(request, request.trace, version, outcome, reason)
        except Exception as error:
            log.error("request not traced", model=request.model_name, exc_info=error)

    def ended(self, call: Call) -> None:
        """Make the span of a call for which models were asked several times."""
        if call.trace is not None and call.asks_several:
            self._emit(
                _name(call),
                (call.received, call.sent or monotonic()),
                (call.trace, call.trace.span_id, call.trace.parent_id),
                {"slipway.request.id": call.id, **_protocol(call)},
                kind=SpanKind.SERVER,
                has_remote_parent=True,
            )

    async def close(self) -> None:
        """Send what is not sent yet, for as long as is reasonable."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def flush() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]
            loop.call_soon_threadsafe(done.set)

        # A collector that is gone must not hold up the end, and this thread does not.
        threading.Thread(target=flush, name="flush spans", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), FLUSH_S)
        except TimeoutError:
            log.warning("traces are lost: the collector does not take them")

    def _sampled(self, model: str, call: Call) -> Trace | None:
        scope = self._settings.scope(model)
        if not scope.is_on:
            return None
        parent = parse_traceparent(call.traceparent) if call.traceparent else None
        if not (parent is not None and parent.is_sampled) and not scope.takes_next():
            return None
        if parent is None:
            return Trace(getrandbits(128))
        return Trace(parent.trace_id, parent.span_id, call.tracestate)

    def _record(
        self, request: InferRequest, trace: Trace, version: str, outcome: Outcome, reason: str
    ) -> None:
        call, stamps = request.call, request.stamps
        self._clock.check()
        is_root = call is not None and call.trace is trace
        attributes: dict[str, str | int | float] = {
            "slipway.model.name": request.model_name[:MAX_ID],
            "slipway.model.version": version,
            "slipway.front": request.front.value,
            "slipway.outcome": outcome.value,
        }
        if outcome is not Outcome.ANSWERED:
            attributes["error.type"] = reason or outcome.value
        events: list[tuple[str, float]] = []
        if trace.events:
            attributes["slipway.events"] = trace.events
            events = [("first event", trace.first_event), ("last event", trace.last_event)]
            first = trace.first_event - stamps.received
            attributes["gen_ai.response.time_to_first_chunk"] = first
        if trace.steps or trace.events:
            attributes["gen_ai.request.model"] = request.model_name
        name = f"infer {request.model_name}"
        if call is not None and is_root:
            name = _name(call)
            attributes |= {"slipway.request.id": call.id, **_protocol(call)}
        self._stages(trace, stamps, request.model_name, is_sent=is_root)
        # Last, so that who has it has all.
        self._emit(
            name,
            (stamps.received, (is_root and stamps.sent) or stamps.answered or monotonic()),
            (trace, trace.span_id, trace.parent_id),
            attributes,
            kind=SpanKind.SERVER if is_root else SpanKind.INTERNAL,
            has_remote_parent=is_root,
            is_error=outcome in _UNSERVED,
            events=events,
        )

    def _stages(self, trace: Trace, stamps: Stamps, model: str, *, is_sent: bool) -> None:
        batch = trace.batch
        for name, (start, end) in STAGES.items():
            began, ended = getattr(stamps, start), getattr(stamps, end)
            if name == "compute" and trace.is_parent and not (began and ended):
                # What was computed on the way has its place, though it came to no end.
                began = began or stamps.batched or stamps.queued or stamps.received
                ended = stamps.answered or monotonic()
            if not (began and ended) or (name == "send" and not is_sent):
                continue
            attributes: dict[str, str | int | float] = {}
            links: Sequence[tuple[int, int]] = ()
            span_id = getrandbits(64)
            if name == "compute":
                span_id = trace.compute_id
                if batch is not None:
                    attributes["slipway.batch.size"] = batch.rows
                    links = [(batch.trace_id, batch.span_id)]
            self._emit(
                name,
                (began, ended),
                (trace, span_id, trace.span_id),
                attributes,
                links=links,
            )
        for group in trace.steps:
            self._emit_steps(trace, group)
        if batch is not None and not batch.is_told:
            batch.is_told = True
            self._emit_batch(batch, model)

    def _emit_steps(self, trace: Trace, group: StepGroup) -> None:
        attributes: Attributes = {
            "slipway.steps": group.steps,
            "slipway.rows.max": group.most_rows,
        }
        span = (trace, getrandbits(64), trace.compute_id)
        self._emit("steps", (group.began, group.ended), span, attributes)

    def _emit_batch(self, batch: Batch, model: str) -> None:
        """A trace of its own, for it belongs to many."""
        attributes: Attributes = {
            "slipway.model.name": model,
            "slipway.batch.size": batch.rows,
            "slipway.batch.requests": batch.requests,
        }
        self._emit(
            f"batch {model}",
            (batch.batched, batch.answered),
            (Trace(batch.trace_id), batch.span_id, 0),
            attributes,
            links=[(member.trace_id, member.span_id) for member in batch.members],
        )

    def _emit(
        self,
        name: str,
        times: tuple[float, float],
        place: tuple[Trace, int, int],
        attributes: Attributes,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        has_remote_parent: bool = False,
        is_error: bool = False,
        events: Sequence[tuple[str, float]] = (),
        links: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Queue a span: when it began and ended, and its trace, its id and its parent's."""
        trace, span_id, parent_id = place
        state = _state(trace.state)

        def context(span_id: int, *, is_remote: bool = False) -> SpanContext:
            return SpanContext(trace.trace_id, span_id, is_remote, _SAMPLED, state)

        self._processor.on_end(
            ReadableSpan(
                name,
                context(span_id),
                context(parent_id, is_remote=has_remote_parent) if parent_id else None,
                self._resource,
                attributes,
                [Event(event, timestamp=self._clock.ns(at)) for event, at in events],
                [Link(SpanContext(*linked, False, _SAMPLED)) for linked in links],
                kind,
                status=Status(StatusCode.ERROR) if is_error else Status(),
                start_time=self._clock.ns(times[0]),
                end_time=self._clock.ns(times[1]),
                instrumentation_scope=self._scope,
            )
        )


@lru_cache(maxsize=64)
def _state(header: str) -> TraceState | None:
    """W3C asks for the first 512 characters to be passed on; who sends more has none."""
    if not header or len(header) > 512:
        return None
    return TraceState.from_header([header])


class _Clock:
    """From seconds of the monotonic clock to nanoseconds since 1970.

    Steady, so that spans lie within their parents, unless the machine's clock is set.
    """

    def __init__(self) -> None:
        self._ahead_ns = _ahead_ns()

    def check(self) -> None:
        if abs(_ahead_ns() - self._ahead_ns) > _CLOCK_WAS_SET_NS:
            self._ahead_ns = _ahead_ns()

    def ns(self, at: float) -> int:
        return self._ahead_ns + round(at * 1e9)


def _ahead_ns() -> int:
    return time_ns() - monotonic_ns()


class _Seldom(logging.Handler):
    """Says once a minute what the library says at every attempt of every batch."""

    EVERY_S = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if monotonic() >= self._next:
            self._next = monotonic() + self.EVERY_S
            log.warning("traces may be lost", reason=record.getMessage()[:_LONGEST_REASON])


_HTTP = (Front.V2_HTTP, Front.TASK, Front.OPENAI)


def _name(call: Call) -> str:
    """Of few, whatever callers invent: of models, only those that there are."""
    if "{model}" in call.operation:
        operation = call.operation.replace("{model}", call.model or "…")
    else:
        operation = f"{call.operation} {call.model}".rstrip()
    return f"POST {operation}" if call.front in _HTTP else operation


def _protocol(call: Call) -> Attributes:
    """By OpenTelemetry's semantic conventions."""
    attributes: dict[str, str | int | float] = {}
    if call.front is Front.V2_GRPC:
        attributes |= {"rpc.system.name": "grpc", "rpc.method": call.operation}
        if call.status:
            attributes["rpc.response.status_code"] = call.status
    elif call.front in _HTTP:
        attributes |= {"http.request.method": "POST", "http.route": call.operation}
        if call.status:
            attributes["http.response.status_code"] = call.status
    return attributes
