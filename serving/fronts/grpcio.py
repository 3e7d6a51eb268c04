"""The RPCs on gRPC's own server, grpc.aio: `--grpc-front grpcio`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import grpc

from serving.errors import OperatorError
from serving.fronts.grpc_rpc import Rpc, Rpcs
from serving.fronts.tls import Tls

_KINDS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class GrpcioFront:
    """Must be made inside the event loop that it will serve from."""

    def __init__(self, rpcs: Rpcs, *, max_message_bytes: int, tls: Tls | None):
        self._credentials = _credentials(tls) if tls else None
        options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Two servers that share a port by accident must be an error, not a coin toss.
            ("grpc.so_reuseport", 0),
            # Clients may send keepalive pings every ten seconds; by default that ends the
            # connection.
            ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        self._server = grpc.aio.server(options=options)
        services: dict[str, dict[str, Any]] = defaultdict(dict)
        for path, rpc in rpcs.items():
            _, service, method = path.split("/")
            services[service][method] = _handler(rpc)
        self._server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(service, handlers)
                for service, handlers in services.items()
            ]
        )

    def bind(self, host: str, port: int) -> int:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise OperatorError(
                f"cannot listen on {address} for gRPC:"
                " the address is in use or not one of this machine's"
            ) from error

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    # For what it says of files that do not do.
    tls.context(["h2"])
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())],
        root_certificates=tls.callers.read_bytes() if tls.callers else None,
        require_client_auth=tls.callers is not None,
    )


def _handler(rpc: Rpc) -> Any:
    behavior = rpc.behavior
    if rpc.streams_requests:

        async def behavior(messages: Any, context: Any) -> None:
            await rpc.behavior(messages, _Context(context))

    return _KINDS[rpc.streams_requests, rpc.streams_responses](
        behavior, request_deserializer=rpc.parse, response_serializer=rpc.serialize
    )


class _Context:
    """gRPC's own, and what that lacks."""

    def __init__(self, context: Any):
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def owe(self, size: int) -> None:
        """It has no bound that would need to know."""
