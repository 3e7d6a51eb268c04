"""The `slipway` command. Each subcommand's module is imported when that subcommand is run."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving import __version__
from serving.errors import OperatorError
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.catalog import ModelState

COMMANDS = {
    "train": "training.cli:train",
    "export": "training.cli:export",
    "quantize": "training.cli:quantize",
    "publish": "training.cli:publish",
    "import": "training.importing_cli:import_model",
    "check": "serving.cli:check",
    "tune": "serving.tuning.command:tune",
    "serve": "serving.cli:serve",
    "health": "serving.client:health",
    "list": "serving.client:list_models",
    "infer": "serving.client:infer",
}

PORT = click.IntRange(0, 65535)
PEM: Any = {"type": click.Path(path_type=Path), "metavar": "FILE", "show_default": False}


class _LazyGroup(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module_name, _, attribute = COMMANDS[name].partition(":")
        command = getattr(import_module(module_name), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except OperatorError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] in ("serving", "training"):
                raise
            raise click.ClickException(
                f"this command needs the package {error.name!r};"
                " install Slipway with the extra that brings it: pip install 'slipway[cpu,text]' to"
                " serve, 'slipway[cpu,train]' to train as well"
            ) from error


@click.group(
    cls=_LazyGroup, context_settings={"auto_envvar_prefix": "SLIPWAY", "show_default": True}
)
@click.version_option(__version__, prog_name="slipway")
def main() -> None:
    """From a checkpoint to answered requests.

    \b
    slipway train digits
    slipway export runs/digits
    slipway publish runs/digits --model-repository model_repo
    slipway serve --model-repository model_repo
    """


FLAG = click.BOOL
REPEATED: Any = {"multiple": True, "show_default": False}


@main.command()
@click.option(
    "--model-repository",
    "model_repositories",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    metavar="DIR",
    help="The models to serve: DIR/<model>/config.pbtxt and DIR/<model>/<version>/. Repeatable.",
)
@click.option("--id", "server_name", default="slipway", help="Name in the server's metadata.")
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--http-port", type=PORT, default=8000, help="HTTP; 0 takes any free port.")
@click.option("--grpc-port", type=PORT, default=8001, help="gRPC; 0 takes any free port.")
@click.option(
    "--grpc-front",
    type=click.Choice(["native", "grpcio"]),
    default=Settings.grpc_front,
    help="What answers gRPC: a server of Slipway's own, or gRPC's, which is slower.",
)
@click.option("--metrics-port", type=PORT, default=8002, help="Prometheus; 0 takes any free port.")
@click.option(
    "--http-server-cert", help="The server's certificate, PEM: HTTPS on --http-port.", **PEM
)
@click.option("--http-server-key", help="The key of that certificate, PEM.", **PEM)
@click.option(
    "--http-root-cert",
    help="Authorities, PEM: only callers with a certificate of one of these are answered.",
    **PEM,
)
@click.option("--grpc-use-ssl", type=FLAG, default=False, help="TLS on --grpc-port.")
@click.option(
    "--grpc-use-ssl-mutual",
    type=FLAG,
    default=False,
    help="TLS on --grpc-port, for callers with a certificate by --grpc-root-cert only.",
)
@click.option("--grpc-server-cert", help="The server's certificate, PEM.", **PEM)
@click.option("--grpc-server-key", help="The key of that certificate, PEM.", **PEM)
@click.option("--grpc-root-cert", help="Authorities of callers' certificates, PEM.", **PEM)
@click.option(
    "--model-control-mode",
    "control_mode",
    type=click.Choice(["none", "poll", "explicit"]),
    default="none",
    help="Which models are loaded: all, once (none); all, and what changes in the repositories"
    " later (poll); those named by --load-model and by load and unload calls (explicit).",
)
@click.option(
    "--load-model",
    "load_models",
    metavar="NAME",
    help="Load this model at the start, * for all; with --model-control-mode explicit. Repeatable.",
    **REPEATED,
)
@click.option(
    "--repository-poll-secs",
    "poll_s",
    type=click.FloatRange(min=0, min_open=True),
    default=Settings.poll_s,
    help="Seconds between looks at the repositories; with --model-control-mode poll.",
)
@click.option(
    "--exit-on-error",
    type=FLAG,
    default=True,
    help="End at start if any model cannot be loaded; false serves the others.",
)
@click.option(
    "--strict-readiness",
    type=FLAG,
    default=True,
    help="Be ready only if every model is; false is ready with those that could be loaded.",
)
@click.option(
    "--exit-timeout-secs",
    "exit_timeout_s",
    type=click.FloatRange(0, 1e6),
    default=Settings.exit_timeout_s,
    help="Seconds that requests in flight get to finish after SIGTERM.",
)
@click.option(
    "--http-max-input-size",
    "max_input_bytes",
    type=click.IntRange(1, 2**31 - 1),  # what gRPC can be told
    default=Settings.max_input_bytes,
    help="Bytes that one request may have, over HTTP and gRPC alike.",
)
@click.option(
    "--allow-client-shm",
    type=FLAG,
    default=False,
    help="Let callers of this machine pass tensors in system shared memory.",
)
@click.option(
    "--http-restricted-api",
    "http_restricted",
    metavar="API,…:HEADER=KEY",
    help="Answer these APIs over HTTP only to calls with this header. One or more of health,"
    " metadata, inference, shared-memory, model-config, model-repository, statistics, trace,"
    " logging. Repeatable.",
    **REPEATED,
)
@click.option(
    "--grpc-restricted-protocol",
    "grpc_restricted",
    metavar="API,…:HEADER=KEY",
    help="The same over gRPC; the metadata key is triton-grpc-protocol-HEADER. Repeatable.",
    **REPEATED,
)
@click.option(
    "--cache-config",
    "cache",
    metavar="local,size=BYTES",
    help="Memory for the answers of models with response_cache. Default: 64 MiB.",
    **REPEATED,
)
@click.option(
    "--allow-metrics",
    type=FLAG,
    default=True,
    help="Answer at /metrics; false also saves what sorting times into histograms costs.",
)
@click.option(
    "--metrics-config",
    "metrics",
    metavar="NAME=BOOL",
    help="counter_latencies or histogram_latencies, true or false. Repeatable.",
    **REPEATED,
)
@click.option(
    "--trace-config",
    "trace",
    metavar="MODE,NAME=VALUE",
    help="What is traced: level=TIMESTAMPS, rate=N, count=N. Where to: triton,file=PATH and"
    " log_frequency=N; or mode=opentelemetry, which needs the extra tracing, with"
    " opentelemetry,url=URL (an OTLP collector's, http://localhost:4318/v1/traces by default),"
    " opentelemetry,resource=KEY=VALUE, opentelemetry,bsp_max_queue_size=N, bsp_schedule_delay=MS"
    " and bsp_max_export_batch_size=N. A call whose traceparent is sampled is traced whatever the"
    " rate; rate=0 traces no others. Repeatable.",
    **REPEATED,
)
@click.option("--log-info", type=FLAG, default=True, help="Log what happens.")
@click.option("--log-warning", type=FLAG, default=True, help="Log what looks wrong.")
@click.option("--log-error", type=FLAG, default=True, help="Log what went wrong.")
@click.option(
    "--log-verbose",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="1 logs a line for each request.",
)
@click.option(
    "--log-format",
    type=click.Choice(["default", "ISO8601"]),
    default="default",
    help="How the log writes times.",
)
@click.option("--log-file", default="", help="Write the log there instead of standard error.")
@click.option(
    "--triton-strict",
    is_flag=True,
    help="Answer with Triton's status codes where ours differ by design, such as 500 for JSON"
    " that cannot be parsed.",
)
def serve(**options: object) -> None:
    """Serve a model repository over HTTP and gRPC.

    The flags are Triton's where Triton has them. Every option can also be given in the
    environment, as SLIPWAY_SERVE_HTTP_PORT=9000.

    \b
    slipway serve --model-repository model_repo
    curl --data-binary @digit.png localhost:8000/models/digits
    """
    # There is next to no garbage among what is imported now; `app.py` collects it when it serves.
    gc.disable()
    try:
        # structlog takes rich for its tracebacks where that is installed, and ours are plain.
        is_there = "rich" in sys.modules
        sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
        import structlog  # noqa: F401

        if not is_there:
            del sys.modules["rich"]
        from serving.app import run

        run(Settings(**options))  # type: ignore[arg-type]
    finally:
        gc.enable()


@main.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def check(directory: Path) -> None:
    """Say whether the model repository DIR can be served, and if not, why not.

    Every model is loaded as it would be to serve. Exits with 1 if any cannot be.
    """
    import asyncio
    import logging

    from serving.app import build_server

    logging.disable()  # the same reasons, and this command prints them

    async def load() -> list[ModelState]:
        server = build_server(Settings(model_repositories=(directory,)))
        await server.control.start()
        index = await server.index()
        await server.close()
        return index

    broken = 0
    for model in asyncio.run(load()):
        if model.state == "READY":
            print(f"ok      {model.name} {model.version}")
        else:
            broken += 1
            print(f"broken  {model.reason}")
    if broken:
        raise click.ClickException(f"{broken} of the repository's models cannot be served")
