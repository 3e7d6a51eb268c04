"""TLS for a port: who the server says it is, and which callers may come in."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.errors import OperatorError
from serving.settings import Settings


@dataclass(frozen=True)
class Tls:
    """Of `flags`, "--http" or "--grpc", for messages. The files are PEM."""

    flags: Literal["--http", "--grpc"]
    certificate: Path
    """The server's, and after it those of the authorities between it and one that callers trust."""
    key: Path
    callers: Path | None
    """Certificates of authorities, of which each caller's must come; None lets everybody in."""

    def context(self, protocols: Sequence[str]) -> ssl.SSLContext:
        """For a listener that speaks one of `protocols`, by their names in ALPN.

        Raises `OperatorError` for files that do not do.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(list(protocols))
        certificate, key = f"{self.flags}-server-cert", f"{self.flags}-server-key"
        _check(certificate, self.certificate)
        _check(key, self.key)
        try:
            # Without a password OpenSSL would ask for it at the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except ssl.SSLError as error:
            raise OperatorError(
                f"{certificate} {self.certificate} and {key} {self.key} are not a certificate and"
                f" its key, without a password, in PEM: {error.reason or error}"
            ) from error
        if self.callers is not None:
            root = f"{self.flags}-root-cert"
            _check(root, self.callers)
            try:
                context.load_verify_locations(self.callers)
            except ssl.SSLError as error:
                raise OperatorError(
                    f"{root} {self.callers} has no certificates in PEM: {error.reason or error}"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def of_http(settings: Settings) -> Tls | None:
    """What an operator wants for HTTP. Raises `OperatorError` for half of it."""
    given = (settings.http_server_cert, settings.http_server_key, settings.http_root_cert)
    if given == (None, None, None):
        return None
    return _whole("--http", *given)


def of_grpc(settings: Settings) -> Tls | None:
    """The same for gRPC, by Triton's flags."""
    certificate, key = settings.grpc_server_cert, settings.grpc_server_key
    callers = settings.grpc_root_cert
    if settings.grpc_use_ssl_mutual:
        if callers is None:
            raise OperatorError("--grpc-use-ssl-mutual true needs --grpc-root-cert")
        return _whole("--grpc", certificate, key, callers)
    if settings.grpc_use_ssl:
        if callers is not None:
            raise OperatorError("--grpc-root-cert needs --grpc-use-ssl-mutual true")
        return _whole("--grpc", certificate, key, None)
    if (certificate, key, callers) != (None, None, None):
        raise OperatorError(
            "certificates and keys for gRPC need --grpc-use-ssl true or --grpc-use-ssl-mutual true"
        )
    return None


def _whole(
    flags: Literal["--http", "--grpc"],
    certificate: Path | None,
    key: Path | None,
    callers: Path | None,
) -> Tls:
    if certificate is None or key is None:
        missing = "cert" if certificate is None else "key"
        raise OperatorError(f"TLS needs a certificate and its key: {flags}-server-{missing}")
    return Tls(flags, certificate, key, callers)


def _check(flag: str, file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise OperatorError(f"{flag} {file}: {error.strerror}") from error
