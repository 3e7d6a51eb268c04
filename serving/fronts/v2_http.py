"""Infer of Open Inference Protocol v2 over HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from serving.calls import Front
from serving.errors import RequestError, Unsupported
from serving.fronts.asgi import Headers, HttpCall
from serving.fronts.compression import ENCODINGS, choose, compress, decompress
from serving.fronts.route import Answer, Body, PredictRoute
from serving.fronts.v2_body import HEADER_LENGTH, parse_infer, render_infer
from serving.fronts.v2_call import InferCall
from serving.fronts.v2_patterns import Patterns
from serving.fronts.v2_tensors import Buffer
from serving.ledger import Asked, Cancellable
from serving.model import Model
from serving.types import InferResponse

_SMALL_BYTES = 1 << 16
"""What is packed without a thread of its own."""


class InferRoute(PredictRoute):
    """POST /v2/models/{name}[/versions/{version}]/infer"""

    front = Front.V2_HTTP
    operation = "/v2/models/{model}/infer"
    target = re.compile(r"/v2/models/([^/]+)(?:/versions/([0-9]+))?/infer")

    def refusal(self, error: Exception, call: HttpCall) -> Answer:
        status, parts, headers = super().refusal(error, call)
        if isinstance(error, Unsupported) and b"content-encoding" in call.headers:
            headers = [*headers, (b"accept-encoding", ", ".join(ENCODINGS).encode())]
        return status, parts, headers

    def _begin(
        self,
        caller: HttpCall,
        name: str,
        version: str,
        body: bytes,
        reply: Callable[[Answer], None],
    ) -> Cancellable | None:
        headers = caller.headers
        if b"content-encoding" in headers:
            return None
        try:
            loaded = self.server.loaded(name, version)
            model = loaded.model
            if model.queue is None:
                return None
            call = self._parsed(model, version, body, headers.get(HEADER_LENGTH))
        except RequestError as error:
            self.server.note_invalid(error, caller, name, version)
            raise
        call.request.asked_by(caller)
        asked = _Asked(self, caller, call, reply)
        self.server.ask(asked, loaded)
        return asked

    async def _answer(
        self, caller: HttpCall, name: str, version: str, whole: Body
    ) -> tuple[list[Buffer], Headers]:
        asked = caller.headers
        body = whole.take()
        try:
            if b"content-encoding" in asked:
                encoding = asked[b"content-encoding"].decode("latin-1")
                body = await asyncio.to_thread(decompress, encoding, body, self.max_body_bytes)
            model = self.server.model(name, version)
            call = self._parsed(model, version, body, asked.get(HEADER_LENGTH))
        except RequestError as error:
            self.server.note_invalid(error, caller, name, version)
            raise
        call.request.asked_by(caller)
        response = await self.server.infer(call.request)
        parts, headers = render_infer(call, model, response, self.server.shared_memory)
        coding = _coding(caller)
        if coding is None:
            return parts, headers
        if _are_small(parts):
            return _packed(coding, parts, headers)
        return await asyncio.to_thread(_packed, coding, parts, headers)

    def _parsed(
        self, model: Model, version: str, body: bytes, header_length: bytes | None
    ) -> InferCall:
        """As `parse_infer` does, which is asked where the text is a new one."""
        header_bytes = None
        if header_length is not None:
            if len(header_length) > 9 or not header_length.isdigit():
                return parse_infer(model, version, body, header_length, self.server.shared_memory)
            header_bytes = int(header_length)
        patterns = model.memory(Patterns)
        call = patterns.call(model, version, body, header_bytes)
        if call is None:
            call = parse_infer(model, version, body, header_length, self.server.shared_memory)
            patterns.learn(model, body, header_bytes, call)
        return call


class _Asked(Asked):
    """A call that a model has been asked for."""

    __slots__ = ("_call", "_caller", "_packing", "_reply", "_route")

    def __init__(
        self,
        route: InferRoute,
        caller: HttpCall,
        call: InferCall,
        reply: Callable[[Answer], None],
    ):
        super().__init__(call.request)
        self._route = route
        self._caller = caller
        self._call = call
        self._reply = reply

    def answered(self, response: InferResponse) -> None:
        model, shared_memory = self.loaded.model, self._route.server.shared_memory
        try:
            parts, headers = render_infer(self._call, model, response, shared_memory)
            coding = _coding(self._caller)
            if coding is not None:
                if not _are_small(parts):
                    # Kept, for the loop does not.
                    self._packing = asyncio.create_task(self._pack(coding, parts, headers))
                    return
                parts, headers = _packed(coding, parts, headers)
        except Exception as error:
            self.failed(error)
        else:
            self._reply((200, parts, headers))

    def failed(self, error: Exception) -> None:
        self._reply(self._route.refusal(error, self._caller))

    async def _pack(self, coding: str, parts: list[Buffer], headers: Headers) -> None:
        try:
            parts, headers = await asyncio.to_thread(_packed, coding, parts, headers)
        except Exception as error:
            self.failed(error)
        else:
            self._reply((200, parts, headers))


def _coding(caller: HttpCall) -> str | None:
    """In which an answer is sent; None for as it is."""
    accepted = caller.headers.get(b"accept-encoding")
    return None if accepted is None else choose(accepted.decode("latin-1"))


def _are_small(parts: list[Buffer]) -> bool:
    return sum(map(len, parts)) <= _SMALL_BYTES


def _packed(coding: str, parts: list[Buffer], headers: Headers) -> tuple[list[Buffer], Headers]:
    return [compress(coding, parts)], [*headers, (b"content-encoding", coding.encode())]
