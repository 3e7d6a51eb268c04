"""grpc.health.v1.Health: the readiness of the server, or of the model that is asked for."""

from __future__ import annotations

import asyncio

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from serving.errors import NotFound
from serving.fronts.grpc_rpc import Context
from serving.fronts.grpc_status import abort
from serving.server import Server

POLL_S = 0.25
"""How often Watch looks for a change."""


class Health:
    """With `strict`, Check answers for the server whatever service it is asked about, as Triton."""

    def __init__(self, server: Server, service: str, *, strict: bool):
        self._server = server
        self._whole_server = ("", service)
        self._strict = strict

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """The state now; NOT_FOUND for a name that is no model's."""
        status = await self._status("" if self._strict else request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            await abort(context, NotFound(f"unknown service {request.service[:40]!r}"))
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:
        """The state now and whenever it changes, until the server stops."""
        told = None
        while True:
            stopping = self._server.draining
            status = await self._status(request.service)
            if status != told:
                await context.write(HealthCheckResponse(status=status))
                told = status
            if stopping:
                return
            await asyncio.sleep(POLL_S)

    async def _status(self, service: str) -> int:
        if service in self._whole_server:
            ready = self._server.ready
        else:
            ready = self._server.model_ready(service)
            if not ready and all(model.name != service for model in await self._server.index()):
                return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
