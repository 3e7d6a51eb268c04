"""What the headers of a call say, before anything of it has come."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

import grpc

from serving.errors import shown
from serving.fronts.compression import ENCODINGS
from serving.fronts.grpc_blocks import IDENTITY
from serving.fronts.grpc_rpc import Metadata, Rpc, Rpcs
from serving.fronts.http2.connection import MAX_LIST_BYTES
from serving.fronts.http2.frames import Code, StreamFault
from serving.fronts.http2.headers import Headers

_CONTENT_TYPE = re.compile(rb"application/grpc(\+proto)?(;.*)?", re.IGNORECASE | re.DOTALL)
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_NOT_IN_A_NAME = re.compile(rb"[\x00-\x20A-Z:\x7f-\xff]")
_NOT_IN_A_VALUE = re.compile(rb"[\0\r\n]")
"""Elsewhere, such as in a log, they would end what is one value here (RFC 9113, 8.2.1)."""
_OF_A_CONNECTION = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
_ENTRY_BYTES = 32
"""That the protocol adds to the length of each header."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no call. `http_status` is for callers who do not speak gRPC."""

    code: grpc.StatusCode
    message: str
    http_status: int = 200


@dataclass(frozen=True, slots=True)
class Head:
    """Either `rpc` or `refusal` is set."""

    rpc: Rpc | None = None
    refusal: Refusal | None = None
    metadata: Metadata = ()
    timeout_s: float | None = None
    encoding: str = IDENTITY
    """Of messages that say they are compressed."""


def read_head(headers: Headers, rpcs: Rpcs) -> Head:
    """Raises `StreamFault` for what is no request of HTTP/2."""
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    size = 0
    for name, value in headers:
        size += len(name) + len(value) + _ENTRY_BYTES
        if _NOT_IN_A_VALUE.search(value):
            raise StreamFault(Code.PROTOCOL_ERROR, "a header has a value that it must not have")
        if name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or fields:
                raise StreamFault(Code.PROTOCOL_ERROR, "pseudo-headers are not as they must be")
            pseudo[name] = value
        elif not name or _NOT_IN_A_NAME.search(name) or name in _OF_A_CONNECTION:
            raise StreamFault(Code.PROTOCOL_ERROR, "a header has a name that it must not have")
        else:
            fields.append((name, value))
    if not pseudo.keys() >= {b":method", b":scheme", b":path"}:
        # Trailers; or nothing that could be answered.
        return _refused(grpc.StatusCode.INTERNAL, "the request has no method or path", 400)
    if size > MAX_LIST_BYTES:
        return _refused(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"metadata has {size} bytes, of {MAX_LIST_BYTES} at most",
        )
    return _read(pseudo, fields, rpcs)


def _read(pseudo: dict[bytes, bytes], fields: Headers, rpcs: Rpcs) -> Head:
    metadata: list[tuple[str, str | bytes]] = []
    timeout_s = None
    encoding = IDENTITY
    is_grpc = False
    for name, value in fields:
        if name == b"content-type":
            is_grpc = _CONTENT_TYPE.fullmatch(value) is not None
        elif name == b"grpc-timeout":
            match = _TIMEOUT.fullmatch(value)
            if match is None:
                return _invalid(f"grpc-timeout cannot be {shown(value.decode('latin-1'))}")
            timeout_s = int(match[1]) * _SECONDS[match[2]]
        elif name == b"grpc-encoding":
            encoding = value.decode("latin-1")
        elif name == b"te" or name.startswith(b"grpc-"):
            continue
        elif name.endswith(b"-bin"):
            try:
                key = name.decode("latin-1")
                metadata += [(key, _from_base64(part)) for part in value.split(b",")]
            except binascii.Error:
                return _invalid(f"metadata {shown(key)} is not base64")
        else:
            metadata.append((name.decode("latin-1"), value.decode("latin-1")))
    if not is_grpc:
        return _refused(grpc.StatusCode.INTERNAL, "the content is not application/grpc", 415)
    if pseudo[b":method"] != b"POST":
        return _refused(grpc.StatusCode.INTERNAL, "the method is not POST", 405)
    rpc = rpcs.get(pseudo[b":path"].decode("latin-1"))
    if rpc is None:
        return _refused(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    if encoding not in (*ENCODINGS, IDENTITY):
        return _refused(
            grpc.StatusCode.UNIMPLEMENTED,
            f"grpc-encoding {shown(encoding)} is not supported;"
            f" expected one of {', '.join(ENCODINGS)}",
        )
    return Head(rpc, None, tuple(metadata), timeout_s, encoding)


def _from_base64(text: bytes) -> bytes:
    """With or without the padding at the end."""
    return base64.b64decode(text.strip() + b"=" * (-len(text.strip()) % 4), validate=True)


def _invalid(message: str) -> Head:
    return _refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def _refused(code: grpc.StatusCode, message: str, http_status: int = 200) -> Head:
    return Head(refusal=Refusal(code, message, http_status))
