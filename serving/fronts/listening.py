"""Ports, and how many may come to them."""

from __future__ import annotations

import resource
import socket
from contextlib import suppress

from serving.errors import OperatorError

SILENT_S = 300
"""After so long TCP asks a caller who says nothing whether it is there."""


def allow_connections() -> None:
    """Let as many be open as the system allows this process, each of which is a file to it: by
    default only a few of them are, for programs that cannot bear more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # for a system that says "any number" and does not mean it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bind(host: str, port: int) -> socket.socket:
    """Take the port, and refuse connections until there is something to answer them.

    Raises `OperatorError`.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Its connections are as it is: of a caller whose machine is gone only TCP can tell.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_S)
        if listener.family is socket.AF_INET6:
            # "::" is every address of both families, as it is for gRPC.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OperatorError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener
