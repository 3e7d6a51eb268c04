"""GET /metrics, in the text format that the scraper asks for."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.fronts.asgi import JSON, error_body, respond

PATH = "/metrics"


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """What there is to scrape, and its media type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def build_metrics(registry: CollectorRegistry) -> ASGIApp:
    """Everything on the metrics port."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != PATH:
            status, body, headers = 404, error_body("Not Found"), [(b"content-type", JSON)]
        elif scope["method"] != "GET":
            status, body, headers = 405, error_body("Method Not Allowed"), [(b"allow", b"GET")]
        else:
            accept = Headers(scope=scope).get("accept", "")
            body, content_type = exposition(registry, accept)
            status, headers = 200, [(b"content-type", content_type.encode())]
        await respond(send, status, [body], headers)

    return app
