"""How one process is run. Made once by the command line, from its options and the environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Names and defaults are Triton's wherever Triton has the flag."""

    model_repositories: tuple[Path, ...]
    server_name: str = "slipway"

    # Where to listen. Port 0 takes any free one; the log says which.
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    grpc_front: str = "native"

    # TLS for HTTP and gRPC. With a root certificate callers need one of theirs.
    http_server_cert: Path | None = None
    http_server_key: Path | None = None
    http_root_cert: Path | None = None
    grpc_use_ssl: bool = False
    grpc_use_ssl_mutual: bool = False
    grpc_server_cert: Path | None = None
    grpc_server_key: Path | None = None
    grpc_root_cert: Path | None = None

    # Which models are loaded, and who may change that.
    control_mode: str = "none"
    load_models: tuple[str, ...] = ()
    poll_s: float = 15.0

    # What a model that cannot be loaded means for the rest.
    exit_on_error: bool = True
    strict_readiness: bool = True

    # Bounds.
    max_input_bytes: int = 64 * 1024 * 1024
    exit_timeout_s: float = 30.0
    cache: tuple[str, ...] = ()

    # What callers may do.
    allow_client_shm: bool = False
    http_restricted: tuple[str, ...] = ()
    grpc_restricted: tuple[str, ...] = ()
    triton_strict: bool = False

    # What is told of it.
    allow_metrics: bool = True
    metrics: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()
    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose: int = 0
    log_format: str = "default"
    log_file: str = ""
