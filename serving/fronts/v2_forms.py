"""Answers like those that went before: all but the id and the values is written once.

A form belongs to one kind of call (see `v2_patterns`), so that only the shapes and types of what
comes back can differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from serving.fronts.asgi import Headers
from serving.fronts.v2_body import HEADER_LENGTH
from serving.fronts.v2_tensors import Buffer, to_bytes, to_json
from serving.types import InferResponse, Tensors

MAX_FORMS = 16
"""Of one kind of call; shapes of outputs may depend on values."""

Likeness = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Form:
    """The text around the values of one JSON array after the other, or the text before the raw
    bytes of all; in either case without the id, which is ahead."""

    texts: Sequence[bytes]
    headers: Headers
    is_binary: bool

    def written(self, response: InferResponse) -> tuple[list[Buffer], Headers]:
        """The parts of the body, and its headers."""
        texts, headers = self.texts, self.headers
        first = _ahead(response.id) + texts[0] if response.id else texts[0]
        parts: list[Buffer] = [first]
        if self.is_binary:
            parts += map(to_bytes, response.outputs.values())
            if response.id and len(headers) > 1:
                headers = [headers[0], (HEADER_LENGTH, b"%d" % len(first))]
            return parts, headers
        for name, tensor in response.outputs.items():
            parts.append(to_json(name, tensor))
            parts.append(texts[len(parts) // 2])
        return parts, headers


class Forms:
    """Of the answers to calls that are alike: all of them have an id, or none."""

    def __init__(self) -> None:
        self._known: dict[Likeness, Form] = {}

    def find(self, outputs: Tensors) -> Form | None:
        return self._known.get(_likeness(outputs))

    def learn(
        self, response: InferResponse, texts: Sequence[bytes], headers: Headers, *, is_binary: bool
    ) -> None:
        """Know how an answer like this was written, if its text can be another's too."""
        outputs = response.outputs
        if is_binary and (
            len(texts) > 1 or any(tensor.dtype == object for tensor in outputs.values())
        ):
            return
        if response.id:
            texts = [texts[0].removeprefix(_ahead(response.id)), *texts[1:]]
        if len(self._known) >= MAX_FORMS:
            del self._known[next(iter(self._known))]
        self._known[_likeness(outputs)] = Form(texts, headers, is_binary)


def _ahead(id: str) -> bytes:
    """What an answer begins with that has an id."""
    return b'{"id":' + orjson.dumps(id)


def _likeness(outputs: Tensors) -> Likeness:
    likeness: list[object] = []
    for tensor in outputs.values():
        likeness += (tensor.dtype.num, tensor.shape)
    return tuple(likeness)
