"""The headers and trailers that gRPC's answers are made of."""

from __future__ import annotations

from urllib.parse import quote

import grpc

from serving.fronts.compression import ENCODINGS
from serving.fronts.http2.headers import write_block

IDENTITY = "identity"
SUCCESS = write_block(
    [
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-accept-encoding", ",".join((IDENTITY, *ENCODINGS)).encode()),
    ]
)
"""HTTP's: whether the call succeeds is for the trailers to say."""
OK = write_block([(b"grpc-status", b"0")])
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def status_block(code: grpc.StatusCode, details: str) -> bytes:
    number: int = code.value[0]
    fields = [(b"grpc-status", str(number).encode())]
    if details:
        fields.append((b"grpc-message", quote(details, safe=_PRINTABLE).encode()))
    return write_block(fields)
