"""Calls like those that came before: what they say but for their numbers is known unread.

A client that sends tensor after tensor sends the same text around the numbers each time, and to
understand that takes longer than all else that is done for a small request. That text is a key
here: of a binary request its JSON header, of a JSON request all but the elements of its one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import orjson

from serving.errors import RequestError
from serving.fronts.v2_call import InferCall, OutputWish
from serving.fronts.v2_forms import Forms
from serving.fronts.v2_numbers import Reader, reader
from serving.model import Model
from serving.types import InferRequest, Parameter, Tensors

MAX_TEXT_BYTES = 2048
MAX_PATTERNS = 128
"""Of either kind kept at once: more than clients send that do not put a new id into each."""


class _Inputs(Protocol):
    def read(self, body: bytes, start: int, end: int) -> Tensors | None:
        """The inputs, which lie there; None if they are not as they were."""
        ...


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A call but for its tensors' values."""

    inputs: _Inputs
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

    def call(
        self, model: Model, version: str, body: bytes, header_bytes: int | None
    ) -> InferCall | None:
        """The call that a body is, if its text is known and the rest fits.

        `header_bytes` is the length of a binary request's header.
        """
        if header_bytes is not None:
            start, end = header_bytes, len(body)
            pattern = self._binary.get(body[:header_bytes])
        else:
            start, end = _array(body)
            pattern = self._json.get(_around(body, start, end))
        if pattern is None or (inputs := pattern.inputs.read(body, start, end)) is None:
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
        start, end = _array(body) if header_bytes is None else (header_bytes, len(body))
        text = body[:start] if header_bytes is not None else _around(body, start, end)
        if not 0 < len(text) <= MAX_TEXT_BYTES:
            return
        inputs: _Inputs | None
        try:
            if header_bytes is not None:
                inputs = _Raw.of(request, model, end - start)
            else:
                inputs = _Json.of(request, body[:start], body[end:])
            rows = model.rows(request)
        except RequestError:
            return  # of which the caller will hear
        if inputs is None:
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


class _Raw:
    """Tensors one after the other, as bytes."""

    def __init__(self, inputs: Tensors):
        self._places: dict[str, tuple[tuple[int, ...], np.dtype[np.generic], int]] = {}
        self._byte_size = 0
        for name, tensor in inputs.items():
            self._places[name] = tensor.shape, tensor.dtype, self._byte_size
            self._byte_size += tensor.nbytes

    @classmethod
    def of(cls, request: InferRequest, model: Model, byte_size: int) -> _Raw | None:
        """For requests like this one, whose raw part has so many bytes."""
        raw = cls(request.inputs)
        model.rows(request)
        # Which has brought them into its own order.
        raw._places = {name: raw._places[name] for name in request.inputs}
        return raw if raw._byte_size == byte_size else None

    def read(self, body: bytes, start: int, end: int) -> Tensors | None:
        if end - start != self._byte_size:
            return None
        inputs: Tensors = {}
        for name, (shape, dtype, at) in self._places.items():
            inputs[name] = np.ndarray(shape, dtype, body, start + at)
        return inputs


class _Json:
    """The one array of numbers of a JSON request."""

    def __init__(self, name: str, numbers: Reader):
        self._name = name
        self._numbers = numbers

    @classmethod
    def of(cls, request: InferRequest, before: bytes, after: bytes) -> _Json | None:
        """For requests like this one, whose text has an array between these parts."""
        [(name, tensor), *others] = request.inputs.items()
        numbers = reader(tensor.dtype, tensor.shape)
        if others or numbers is None or not _is_data_between(before, after):
            return None
        return cls(name, numbers)

    def read(self, body: bytes, start: int, end: int) -> Tensors | None:
        tensor = self._numbers(body[start:end])
        return None if tensor is None else {self._name: tensor}


def _array(body: bytes) -> tuple[int, int]:
    """Where the first array lies that seems to be a tensor's data, or the one row of them."""
    start = body.find(b"[", body.find(b'"data"'))
    end = body.find(b"]", start)
    return (body.rfind(b"[", start, end), end + 1) if 0 < start < end else (0, 0)


def _around(body: bytes, start: int, end: int) -> bytes:
    """All but the array's elements; nothing if that is much."""
    if not end or len(body) - (end - start) > MAX_TEXT_BYTES:
        return b""
    return b"%b[]%b" % (body[:start], body[end:])


def _is_data_between(before: bytes, after: bytes) -> bool:
    """Whether an array between these two is all that the one input has for its data."""
    try:
        documents = [orjson.loads(before + array + after) for array in (b"[]", b"[7]")]
        found = [_row(document["inputs"][0].pop("data")) for document in documents]
    except (ValueError, LookupError, TypeError, AttributeError):
        return False
    return found == [[], [7]] and documents[0] == documents[1]


def _row(data: object) -> object:
    """What is within arrays of one element."""
    while isinstance(data, list) and len(data) == 1 and isinstance(data[0], list):
        data = data[0]
    return data
