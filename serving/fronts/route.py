"""The calls that a server lives for, ahead of the router: whole body in, whole answer out.

No validation framework sees a tensor, and no dependency or wrapper costs more than the call does.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import ClassVar, NoReturn

from starlette.types import Receive, Scope, Send

from serving.calls import Front
from serving.errors import RequestError
from serving.fronts.asgi import (
    JSON,
    Headers,
    HttpCall,
    call_of,
    check_post,
    describe,
    error_body,
    read_body,
    respond,
    too_large,
)
from serving.fronts.restricted import Restrictions
from serving.fronts.v2_tensors import Buffer
from serving.ledger import Cancellable
from serving.server import Server

Answer = tuple[int, list[Buffer], Headers]
"""Status, the parts of the body, headers but for its length."""


@dataclass(slots=True)
class Body:
    """What came after the head of a call. It is held until it is taken, and no longer: of a long
    recording, what is heard of it takes long, and the file is needed no more."""

    content: bytes

    def take(self) -> bytes:
        content, self.content = self.content, b""
        return content


class PredictRoute(ABC):
    """A POST to a model, which its `target` names and, in a second group, its version."""

    front: ClassVar[Front]
    operation: ClassVar[str]
    target: ClassVar[re.Pattern[str]]

    def __init__(
        self,
        server: Server,
        max_body_bytes: int,
        restrictions: Restrictions,
        statuses: Mapping[str, int],
    ):
        self.server = server
        self.max_body_bytes = max_body_bytes
        self._restrictions = restrictions
        self._statuses = statuses

    @property
    def is_restricted(self) -> bool:
        """Whether a caller may need a key."""
        return bool(self._restrictions.keys)

    def match(self, path: str) -> tuple[str, str] | None:
        """The model's name and version if this is the path of such a call."""
        found = self.target.fullmatch(path)
        return (found[1], found[2] or "") if found else None

    async def __call__(
        self, name: str, version: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        call = call_of(scope, self.front, self.operation)
        try:
            check_post(scope, self._restrictions, "inference")
            body = Body(await self._read(call, name, version, receive))
        except Exception as error:
            answer = self.refusal(error, call)
        else:
            call.received = monotonic()
            answer = await self.answer(call, name, version, body)
        await respond(send, *answer)

    def begin(
        self,
        call: HttpCall,
        name: str,
        version: str,
        body: bytes,
        reply: Callable[[Answer], None],
    ) -> Cancellable | None:
        """Have a call answered, all of which has come: `reply` is told the answer, be it at once.

        None without an answer: this call must be waited for, with `answer`.
        """
        try:
            if len(body) > self.max_body_bytes:
                self._refuse_length(call, name, version)
            return self._begin(call, name, version, body, reply)
        except Exception as error:
            reply(self.refusal(error, call))
            return None

    async def answer(self, call: HttpCall, name: str, version: str, body: Body) -> Answer:
        """What a call comes to, all of which has come."""
        try:
            if len(body.content) > self.max_body_bytes:
                self._refuse_length(call, name, version)
            return 200, *await self._answer(call, name, version, body)
        except Exception as error:
            return self.refusal(error, call)

    def _begin(
        self,
        call: HttpCall,
        name: str,
        version: str,
        body: bytes,
        reply: Callable[[Answer], None],
    ) -> Cancellable | None:
        """As `begin`. What keeps it from an answer is raised, counted."""
        return None

    @abstractmethod
    async def _answer(
        self, call: HttpCall, name: str, version: str, body: Body
    ) -> tuple[list[Buffer], Headers]:
        """The parts of the body, and headers. What keeps it from an answer is raised, counted."""

    def refusal(self, error: Exception, call: HttpCall) -> Answer:
        """What a caller is told whose call failed so."""
        status, message, headers = describe(error, self._statuses)
        return status, [error_body(message)], [*headers, (b"content-type", JSON)]

    def _refuse_length(self, call: HttpCall, name: str, version: str) -> NoReturn:
        error = too_large(self.max_body_bytes)
        self.server.note_invalid(error, call, name, version)
        raise error

    async def _read(self, call: HttpCall, name: str, version: str, receive: Receive) -> bytes:
        try:
            return await read_body(receive, self.max_body_bytes)
        except RequestError as error:
            self.server.note_invalid(error, call, name, version)
            raise
