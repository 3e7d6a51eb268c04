"""GET /metrics, in the text format that the scraper asks for."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


def router(registry: CollectorRegistry) -> APIRouter:
    routes = APIRouter(tags=["Operations"])

    @routes.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Prometheus exposition."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    return routes


def build_metrics(registry: CollectorRegistry) -> FastAPI:
    """Everything on the metrics port."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.include_router(router(registry))
    return app
