"""Answers like those that went before: all but the values is written once.

A form belongs to one kind of call (see `v2_patterns`), so that only the shapes and types of what
comes back can differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.fronts.asgi import Headers
from serving.fronts.v2_tensors import Buffer, to_bytes, to_json
from serving.types import Tensors

MAX_FORMS = 16
"""Of one kind of call; shapes of outputs may depend on values."""

Likeness = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Form:
    """The text around the values of one JSON array after the other, or the text before the raw
    bytes of all."""

    texts: Sequence[bytes]
    headers: Headers
    is_binary: bool

    def parts(self, outputs: Tensors) -> list[Buffer]:
        """The parts of the body."""
        if self.is_binary:
            return [*self.texts, *map(to_bytes, outputs.values())]
        texts = self.texts
        parts: list[Buffer] = [texts[0]]
        for name, tensor in outputs.items():
            parts.append(to_json(name, tensor))
            parts.append(texts[len(parts) // 2])
        return parts


class Forms:
    """Of the answers to calls that are alike."""

    def __init__(self) -> None:
        self._known: dict[Likeness, Form] = {}

    def find(self, outputs: Tensors) -> Form | None:
        return self._known.get(_likeness(outputs))

    def learn(
        self, outputs: Tensors, texts: Sequence[bytes], headers: Headers, *, is_binary: bool
    ) -> None:
        """Know how an answer with such outputs was written, if its text can be another's too."""
        if is_binary and (
            len(texts) > 1 or any(tensor.dtype == object for tensor in outputs.values())
        ):
            return
        if len(self._known) >= MAX_FORMS:
            del self._known[next(iter(self._known))]
        self._known[_likeness(outputs)] = Form(texts, headers, is_binary)


def _likeness(outputs: Tensors) -> Likeness:
    likeness: list[object] = []
    for tensor in outputs.values():
        likeness += (tensor.dtype.num, tensor.shape)
    return tuple(likeness)
