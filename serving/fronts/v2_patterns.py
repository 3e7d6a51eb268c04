"""Calls like those that came before: what they say but for their numbers is known unread.

A client that sends tensor after tensor sends the same text around the numbers each time, and to
understand that takes longer than all else that is done for a small request. That text is a key
here: of a binary request its JSON header, of a JSON request all but its tensors' elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving.errors import RequestError
from serving.fronts.v2_arrays import cut, without_data
from serving.fronts.v2_call import InferCall, OutputWish
from serving.fronts.v2_forms import Forms
from serving.fronts.v2_numbers import Reader, reader
from serving.model import Model
from serving.types import InferRequest, Parameter, Tensors

MAX_TEXT_BYTES = 2048
MAX_PATTERNS = 128
"""Of either kind kept at once: more than clients send that do not put a new id into each."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A call but for its tensors' values."""

    inputs: _Raw | _Json
    rows: int
    """That the model has found, so that it need not look at the tensors again."""
    outputs: tuple[str, ...]
    id: str
    priority: int
    timeout_s: float
    parameters: Mapping[str, Parameter]
    wishes: dict[str, OutputWish]
    binary_by_default: bool
    forms: Forms = field(default_factory=Forms)


class Patterns:
    """The latest calls to one version of a model that were understood."""

    def __init__(self) -> None:
        self._binary: dict[bytes, _Pattern] = {}
        self._json: dict[bytes, _Pattern] = {}
        self._latest: _Pattern | None = None
        """Of JSON."""

    def call(
        self, model: Model, version: str, body: bytes, header_bytes: int | None
    ) -> InferCall | None:
        """The call that a body is, if its text is known and the rest fits.

        `header_bytes` is the length of a binary request's header.
        """
        if header_bytes is not None:
            pattern = self._binary.get(body[:header_bytes])
            inputs = None if pattern is None else pattern.inputs.read(body)
        else:
            pattern = self._latest
            inputs = None if pattern is None else pattern.inputs.read(body)
            if inputs is None:
                pattern = self._json.get(_text(cut(body)[0]))
                if pattern is not None:
                    self._latest = pattern
                    inputs = pattern.inputs.read(body)
        if pattern is None or inputs is None:
            return None
        request = InferRequest(
            model.config.name,
            inputs,
            version,
            pattern.outputs,
            pattern.id,
            pattern.priority,
            pattern.timeout_s,
            parameters=pattern.parameters,
            rows=pattern.rows,
        )
        return InferCall(request, pattern.wishes, pattern.binary_by_default, forms=pattern.forms)

    def learn(self, model: Model, body: bytes, header_bytes: int | None, call: InferCall) -> None:
        """Know the text of the body that made this call, if all it is about is numbers."""
        request = call.request
        if (
            request.sequence is not None
            or any(tensor.dtype == object or not tensor.size for tensor in request.inputs.values())
            or any(wish.region or wish.classification for wish in call.wishes.values())
        ):
            return
        sent = request.inputs
        try:
            rows = model.rows(request)
        except RequestError:
            return  # of which the caller will hear
        # In the order of the text, and in the model's.
        order = list(request.inputs)
        inputs: _Raw | _Json | None
        if header_bytes is not None:
            text = body[:header_bytes]
            inputs = _Raw.of(sent, order, len(body), header_bytes)
        else:
            pieces, _ = cut(body)
            text = _text(pieces)
            inputs = _Json.of(sent, order, pieces)
        if inputs is None or not 0 < len(text) <= MAX_TEXT_BYTES:
            return
        known = self._json if header_bytes is None else self._binary
        if len(known) >= MAX_PATTERNS:
            del known[next(iter(known))]
        known[text] = _Pattern(
            inputs,
            rows,
            request.outputs,
            request.id,
            request.priority,
            request.timeout_s,
            request.parameters,
            call.wishes,
            call.binary_by_default,
        )


_Place = tuple[tuple[int, ...], np.dtype[np.generic], int]
"""A tensor's shape and type, and where in the body it begins."""


class _Raw:
    """Tensors one after the other, as bytes behind a header."""

    def __init__(self, places: Mapping[str, _Place], end: int):
        self._places = places
        self._end = end

    @classmethod
    def of(
        cls, sent: Tensors, order: Sequence[str], body_bytes: int, header_bytes: int
    ) -> _Raw | None:
        """For tensors like these, in a body of so many bytes, to be read in this order."""
        places: dict[str, _Place] = {}
        end = header_bytes
        for name, tensor in sent.items():
            places[name] = tensor.shape, tensor.dtype, end
            end += tensor.nbytes
        return cls({name: places[name] for name in order}, end) if end == body_bytes else None

    def read(self, body: bytes) -> Tensors | None:
        """The inputs; None if they are not as they were."""
        if len(body) != self._end:
            return None
        inputs: Tensors = {}
        for name, (shape, dtype, at) in self._places.items():
            inputs[name] = np.ndarray(shape, dtype, body, at)
        return inputs


class _Json:
    """Tensors of numbers, each an array between two pieces of text."""

    def __init__(self, pieces: Sequence[bytes], readers: Mapping[str, tuple[int, Reader]]):
        self._first, *self._between, self._last = pieces
        self._readers = readers

    @classmethod
    def of(cls, sent: Tensors, order: Sequence[str], pieces: Sequence[bytes]) -> _Json | None:
        """For tensors like these, whose text is these pieces, to be read in this order."""
        readers: dict[str, tuple[int, Reader]] = {}
        for place, (name, tensor) in enumerate(sent.items()):
            read = reader(tensor.dtype, tensor.shape)
            if read is None:
                return None
            readers[name] = place, read
        if len(pieces) != len(readers) + 1 or without_data(pieces) is None:
            return None
        return cls(pieces, {name: readers[name] for name in order})

    def read(self, body: bytes) -> Tensors | None:
        """The inputs; None if they are not as they were."""
        if not (body.startswith(self._first) and body.endswith(self._last)):
            return None
        at = len(self._first)
        arrays = []
        for piece in self._between:
            end = body.find(piece, at)
            if end < 0:
                return None
            arrays.append(body[at:end])
            at = end + len(piece)
        arrays.append(body[at : len(body) - len(self._last)])
        inputs: Tensors = {}
        for name, (place, read) in self._readers.items():
            tensor = read(arrays[place])
            if tensor is None:
                return None
            inputs[name] = tensor
        return inputs


def _text(pieces: Sequence[bytes]) -> bytes:
    """All but the arrays' elements; nothing if there are none, or it is much."""
    if len(pieces) == 1 or sum(map(len, pieces)) > MAX_TEXT_BYTES:
        return b""
    return b"[]".join(pieces)
