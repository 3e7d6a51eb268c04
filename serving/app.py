"""One process: put together, started, run until a signal, stopped without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp

from serving.cache import ResponseCache, parse_cache_config
from serving.catalog import Catalog
from serving.config import ModelConfig
from serving.control import ControlMode, ModelControl
from serving.errors import OperatorError
from serving.fronts import restricted, tls
from serving.fronts.grpc_rpc import GrpcFront, Rpcs
from serving.fronts.http import build_http
from serving.fronts.http_connection import Connection
from serving.fronts.listening import allow_connections, bind
from serving.fronts.metrics import build_metrics
from serving.fronts.tls import Tls
from serving.fronts.v2_grpc import build_rpcs
from serving.loading import Surroundings, load_model
from serving.model import Model
from serving.observability.logging import LogSettings
from serving.observability.metrics import Metrics, MetricsConfig
from serving.observability.totals import ModelMetrics
from serving.observability.trace_settings import TraceSettings, parse_trace_config
from serving.observability.tracing import Tracer
from serving.repository import ModelVersion, Repositories
from serving.scheduling.ensemble import check_members
from serving.scheduling.meter import LateMeter
from serving.server import Server
from serving.settings import Settings
from serving.shared_memory import SharedMemory

if TYPE_CHECKING:
    from serving.observability.spans import SpanTracer

SWITCH_S = 0.0005
"""An engine's thread that comes back from computing waits so long, at most, for the event loop to
let go of the interpreter. Python's own choice is ten times that, longer than many steps."""

GENERATIONS = (10_000, 20, 50)
"""Of the garbage collector, which else looks through what requests are made of twice in each of
them; next to none of it is in a circle."""

FLUSH_S = 1
"""Of the exit timeout, what the fronts get to tell those who still wait that they wait in vain."""

MAX_WEBSOCKET_MESSAGE_BYTES = 1 << 20
"""Of one message: half a minute of speech at once, more than anybody records before sending it."""

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises `OperatorError` if it cannot start."""
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if not runner.run(_serve(settings)):
            # What cannot be interrupted, such as a run of an engine, would keep the process alive.
            logging.shutdown()
            os._exit(1)


def build_server(settings: Settings) -> Server:
    """Put together everything below the fronts. Raises `OperatorError` for unusable settings.

    Must be called inside the event loop that it will serve from; `server.control.start` loads.
    """
    log_settings = LogSettings(
        log_info=settings.log_info,
        log_warning=settings.log_warning,
        log_error=settings.log_error,
        log_verbose_level=settings.log_verbose,
        log_format=settings.log_format,
        log_file=settings.log_file,
    )
    metrics = Metrics(MetricsConfig.parse(settings.metrics), enabled=settings.allow_metrics)
    cache = ResponseCache(parse_cache_config(settings.cache))

    async def build(found: ModelVersion) -> tuple[Model, ModelMetrics]:
        # Nothing runs on its account before it is loaded, and a failure leaves no totals behind.
        meter = LateMeter()
        model = await load_model(found, surroundings, meter)
        totals = meter.target = metrics.model(found.config.name, model.version)
        totals.watch(model)
        return model, totals

    def find_config(name: str, version: str) -> ModelConfig:
        return server.model(name, version).config

    def check(found: ModelVersion) -> None:
        if found.config.steps:
            check_members(found.config, find_config)

    def loaded(name: str, successfully: bool) -> None:
        metrics.loaded(name, successfully=successfully)

    def forget(name: str, versions: Iterable[str]) -> None:
        metrics.forget(name, versions)
        tracer.forget(name)

    def states() -> Iterator[tuple[str, str, str]]:
        # Of what has been looked at, without looking at the disk.
        for model in catalog.index([]):
            if model.state:
                yield model.name, model.version, model.state

    surroundings = Surroundings(cache, lambda request: server.infer(request), find_config)
    trace_settings = parse_trace_config(settings.trace)
    tracer = Tracer(trace_settings)
    catalog = Catalog(
        Repositories(settings.model_repositories),
        build=build,
        check=check,
        loaded=loaded,
        forget=forget,
    )
    metrics.states = states
    mode = ControlMode(settings.control_mode)
    if settings.load_models and mode is not ControlMode.EXPLICIT:
        raise OperatorError("--load-model needs --model-control-mode explicit")
    server = Server(
        catalog,
        ModelControl(catalog, mode, poll_s=settings.poll_s),
        metrics,
        name=settings.server_name,
        strict_readiness=settings.strict_readiness,
        shared_memory=SharedMemory(
            enabled=settings.allow_client_shm, limit_bytes=settings.max_input_bytes
        ),
        tracer=tracer,
        spans=_span_tracer(trace_settings),
        log_settings=log_settings,
    )
    return server


async def _serve(settings: Settings) -> bool:
    """Returns whether everything has ended when it was to end."""
    stop = asyncio.create_task(_stop_event().wait())
    app = _App(settings)
    starting = asyncio.create_task(app.startup())
    await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        log.info("stopped before it served")
        return False
    await starting
    await stop
    return await app.shutdown()


def _span_tracer(settings: TraceSettings) -> SpanTracer | None:
    """For the mode opentelemetry. Raises `OperatorError` if what it needs is not installed."""
    if settings.export is None:
        return None
    try:
        from serving.observability.spans import SpanTracer
    except ModuleNotFoundError as error:
        raise OperatorError(
            "--trace-config mode=opentelemetry needs the extra tracing:"
            " pip install 'slipway[tracing]'"
        ) from error
    return SpanTracer(settings, settings.export)


class _App:
    """Must be made inside the event loop: gRPC's front belongs to the loop it is made in."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._server = build_server(settings)
        self._http: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []
        rpcs = build_rpcs(
            self._server,
            restrictions=replace(
                restricted.parse(
                    "--grpc-restricted-protocol", settings.grpc_restricted, "triton-grpc-protocol-"
                ),
                guard_management=not _is_loopback(settings.host),
            ),
            strict=settings.triton_strict,
        )
        self._grpc = _grpc_front(settings, rpcs, tls.of_grpc(settings))

    async def startup(self) -> None:
        settings = self._settings
        http = build_http(
            self._server,
            max_body_bytes=settings.max_input_bytes,
            restrictions=restricted.parse("--http-restricted-api", settings.http_restricted),
            guard_management=not _is_loopback(settings.host),
            strict=settings.triton_strict,
        )
        secured = tls.of_http(settings)
        https = secured.context(["http/1.1"]) if secured else None
        ports = [settings.http_port]
        if settings.allow_metrics:
            ports.append(settings.metrics_port)
        allow_connections()
        sockets = [bind(settings.host, port) for port in ports]
        grpc_port = self._grpc.bind(settings.host, settings.grpc_port)
        # What stands now stays: no collection need go through it again, while requests wait for it.
        # Not so the models, which may leave.
        gc.freeze()
        gc.set_threshold(*GENERATIONS)
        gc.enable()
        failures = await self._server.control.start(settings.load_models)
        if failures and settings.exit_on_error:
            await self._server.close()
            raise OperatorError("\n".join(str(failure) for failure in failures))
        await self._start_http(http.app, http.connection, sockets[0], https)
        if settings.allow_metrics:
            metrics = build_metrics(self._server.metrics.registry)
            self._server.metrics.loop_lag.start()
            await self._start_http(metrics, Connection, sockets[1], None)
        await self._grpc.start()
        http_port, *metrics_port = (listener.getsockname()[1] for listener in sockets)
        log.info(
            "serving",
            host=settings.host,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port[0] if metrics_port else None,
        )
        http.complete()

    async def shutdown(self) -> bool:
        """Not ready, finish what is in flight, stop listening and finish the rest, unload.

        Returns whether that came to its end within the exit timeout and `FLUSH_S`.
        """
        log.info("draining")
        deadline = monotonic() + self._settings.exit_timeout_s
        await self._server.drain(_until(deadline - FLUSH_S))
        for http, _ in self._http:
            http.config.timeout_graceful_shutdown = max(FLUSH_S, round(_until(deadline)))
            http.should_exit = True
        closing = asyncio.gather(
            self._grpc.stop(max(FLUSH_S, _until(deadline))), *(task for _, task in self._http)
        )
        await asyncio.wait([closing], timeout=_until(deadline - FLUSH_S))
        self._server.give_up()
        await closing
        unloading = asyncio.create_task(self._server.close())
        await asyncio.wait([unloading], timeout=max(FLUSH_S, _until(deadline)))
        if not unloading.done():
            log.error("stopped while a model still ran or loaded")
            return False
        await unloading
        log.info("stopped")
        return True

    async def _start_http(
        self,
        app: ASGIApp,
        connection: type[Connection],
        listener: socket.socket,
        secured: ssl.SSLContext | None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=connection,
            ws=cast(type[asyncio.Protocol], _websocket) if find_spec("websockets") else "none",
            ws_max_size=MAX_WEBSOCKET_MESSAGE_BYTES,
            ws_per_message_deflate=False,
            # The answer to a ping comes after what the caller has sent before, and whoever is held
            # up has sent much. TCP tells of a caller who is gone, for it answers no ping either.
            ws_ping_timeout=None,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            # Longer than clients keep theirs, so that it is they who close an idle connection.
            timeout_keep_alive=75,
        )
        # uvicorn would make one from files, and say less of what is wrong with them.
        config.load()
        config.ssl = secured
        http = _Uvicorn(config)
        task = asyncio.create_task(http.serve(sockets=[listener]))
        self._http.append((http, task))
        while not http.started and not task.done():  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.001)


def _websocket(*given: Any, **named: Any) -> asyncio.Protocol:
    """uvicorn's, imported for the first who opens one."""
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    return WebSocketsSansIOProtocol(*given, **named)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process, which has more to stop than this listener."""
        yield


def _stop_event() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


def _grpc_front(settings: Settings, rpcs: Rpcs, secured: Tls | None) -> GrpcFront:
    """The one that is chosen; of the other nothing is imported."""
    if settings.grpc_front == "grpcio":
        from serving.fronts.grpcio import GrpcioFront

        return GrpcioFront(rpcs, max_message_bytes=settings.max_input_bytes, tls=secured)
    from serving.fronts.grpc_native import NativeFront

    return NativeFront(rpcs, max_message_bytes=settings.max_input_bytes, tls=secured)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _until(deadline: float) -> float:
    return max(0.0, deadline - monotonic())
