"""Heads of requests that came before: what they say is known without parsing them.

A client that sends request after request sends the same head each time, and to parse one and look
at what it says takes longer than to answer a small request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serving.fronts.route import PredictRoute

END = b"\r\n\r\n"
MAX_HEAD_BYTES = 2048
MAX_HEADS = 512
"""Kept at once, which is more than clients send that do not put something new into each."""

_OF_ONE_CALL = frozenset({b"x-request-id", b"traceparent", b"tracestate", b"transfer-encoding"})
"""A head that has one of these is not sent twice, or does not tell the length of its body."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a call says that a connection can answer."""

    route: PredictRoute
    name: str
    version: str
    headers: Mapping[bytes, bytes]
    keep_alive: bool

    @property
    def body_bytes(self) -> int | None:
        """Of the body; None if nobody has told."""
        if b"transfer-encoding" in self.headers:
            return None
        return int(self.headers.get(b"content-length", b"0"))


class KnownHeads:
    """The latest that were understood, byte for byte."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Head, int]] = {}

    def find(self, request: bytes) -> tuple[Head, int, bytes] | None:
        """Of a request whose head is known: that, the length of the body, and what came of it."""
        size = request.find(END) + len(END)
        known = self._known.get(request[:size])
        if known is None or known[1] < len(request) - size:
            return None
        return known[0], known[1], request[size:]

    def learn(self, request: bytes, head: Head) -> None:
        """Know what the head of a request, which begins these bytes, was understood to say."""
        raw = request[: request.find(END) + len(END)]
        length = head.body_bytes
        if (
            length is not None
            and len(raw) <= MAX_HEAD_BYTES
            and _OF_ONE_CALL.isdisjoint(head.headers)
            and _is_whole(raw)
        ):
            if len(self._known) >= MAX_HEADS:
                del self._known[next(iter(self._known))]
            self._known[raw] = head, length


def _is_whole(raw: bytes) -> bool:
    """Whether these bytes are a head and no more, whatever a lenient parser passes over before one,
    and takes for an end of line."""
    return (
        raw.startswith(b"POST ")
        and raw.endswith(END)
        and raw.count(b"\n") == raw.count(b"\r") == raw.count(b"\r\n")
    )
