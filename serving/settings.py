"""How one process is run. Made once by the command line, from its options and the environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Names and defaults are Triton's wherever Triton has the flag."""

    model_repository: Path

    # Where to listen. Port 0 takes any free one; the log says which.
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002

    # What a model that cannot be loaded means for the rest.
    exit_on_error: bool = True
    strict_readiness: bool = True

    # Bounds.
    max_input_bytes: int = 64 * 1024 * 1024
    exit_timeout_s: float = 30.0
