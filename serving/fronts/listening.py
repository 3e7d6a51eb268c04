"""Ports."""

from __future__ import annotations

import socket

from serving.errors import OperatorError

SILENT_S = 300
"""After so long TCP asks a caller who says nothing whether it is there."""


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
