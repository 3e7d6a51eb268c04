"""A collector of OpenTelemetry spans: what a server sends by OTLP over HTTP, read as protobuf."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Proto

from tests.support import await_true

SERVER, INTERNAL = Proto.SPAN_KIND_SERVER, Proto.SPAN_KIND_INTERNAL


@dataclass
class Span:
    name: str
    trace: str
    id: str
    parent: str
    kind: int
    began: int
    ended: int
    attributes: dict[str, Any]
    events: dict[str, int]
    links: list[tuple[str, str]]
    """Trace and id of each."""
    is_error: bool
    service: str
    state: str


@dataclass
class Collector:
    port: int = 0
    spans: list[Span] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    @property
    def options(self) -> tuple[str, ...]:
        """By which a server sends every span here, soon."""
        values = (
            "mode=opentelemetry",
            f"opentelemetry,url=127.0.0.1:{self.port}/v1/traces",
            "opentelemetry,resource=service.name=tested",
            "opentelemetry,bsp_schedule_delay=50",
            "level=TIMESTAMPS",
        )
        return tuple(option for value in values for option in ("--trace-config", value))

    def take(self, body: bytes) -> None:
        self.raw.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _plain(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [_span(span, service) for span in scope.spans]

    def whole(self, id: str) -> list[Span]:
        """The spans of a trace, once its root is there, which is sent last."""
        await_true(lambda: any(s.trace == id and s.kind == SERVER for s in self.spans))
        return [span for span in self.spans if span.trace == id]

    def trace(self, id: str, count: int) -> list[Span]:
        """The spans of a trace, once there are so many."""
        await_true(lambda: sum(span.trace == id for span in self.spans) >= count)
        found = [span for span in self.spans if span.trace == id]
        assert len(found) == count, sorted(span.name for span in found)
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    """Listens on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        collector.port = http.server_port
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            http.shutdown()
            thread.join()


def _span(span: Any, service: str) -> Span:
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _plain(span.attributes),
        {event.name: event.time_unix_nano for event in span.events},
        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        span.status.code == span.status.STATUS_CODE_ERROR,
        service,
        span.trace_state,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value")
        for each in attributes
    }
