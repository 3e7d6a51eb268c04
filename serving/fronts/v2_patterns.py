"""Calls like those that came before: what they say but for their ids and numbers is known unread.

A client that sends tensor after tensor sends the same text around the numbers each time, some with
an id in it, and to understand that takes longer than all else that is done for a small request.
That text is a key here: of a binary request its JSON header, of a JSON request all but its tensors'
elements.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from serving.errors import RequestError
from serving.fronts.v2_arrays import cut, without_data
from serving.fronts.v2_call import InferCall, OutputWish
from serving.fronts.v2_forms import Forms
from serving.fronts.v2_numbers import Reader, reader
from serving.model import Model
from serving.types import InferRequest, Parameter, Tensors

T = TypeVar("T")

MAX_TEXT_BYTES = 2048
MAX_PATTERNS = 128
"""Of either kind kept at once: more than clients send that put nothing new into each but an id."""

_KEY = b'"id"'
_CHARACTERS = rb"[ !#-\[\]-~]{1,128}"
_ID = re.compile(_CHARACTERS)
"""That stands for itself in JSON."""
_WITH_ID = re.compile(_KEY + rb'\s*:\s*"(' + _CHARACTERS + rb')"')
_ID_GAP = b"\0"
"""Where an id was. No JSON has such a byte."""

_NUMBERS = b"[]"
"""Where the elements of an array were."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A call but for its tensors' values, and for its id where others may have another."""

    rows: int
    """That the model has found, so that it need not look at the tensors again."""
    outputs: tuple[str, ...]
    id: str | None
    """None if each call has its own."""
    priority: int
    timeout_s: float
    parameters: Mapping[str, Parameter]
    wishes: dict[str, OutputWish]
    binary_by_default: bool
    forms: Forms = field(default_factory=Forms)


class Patterns:
    """The latest calls to one version of a model that were understood."""

    def __init__(self) -> None:
        self._binary: dict[bytes, tuple[_Raw, _Pattern]] = {}
        self._json: dict[bytes, tuple[_Json, _Pattern]] = {}
        self._latest: tuple[_Json, _Pattern] | None = None

    def call(
        self, model: Model, version: str, body: bytes, header_bytes: int | None
    ) -> InferCall | None:
        """The call that a body is, if its text is known and the rest fits.

        `header_bytes` is the length of a binary request's header.
        """
        if header_bytes is None:
            found = self._json_call(body)
        else:
            found = self._binary_call(body, header_bytes)
        if found is None:
            return None
        pattern, inputs, own_id = found
        id = own_id if pattern.id is None else pattern.id
        if id is None:
            return None
        request = InferRequest(
            model.config.name,
            inputs,
            version,
            pattern.outputs,
            id,
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
            or not request.inputs
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
        pieces = cut(body)[0] if header_bytes is None else [body[:header_bytes]]
        if not 0 < sum(map(len, pieces)) <= MAX_TEXT_BYTES:
            return
        text = _NUMBERS.join(pieces)
        with_gap = _with_gap(text, request.id)
        pattern = _Pattern(
            rows,
            request.outputs,
            request.id if with_gap is None else None,
            request.priority,
            request.timeout_s,
            request.parameters,
            call.wishes,
            call.binary_by_default,
        )
        if header_bytes is None:
            json = _Json.of(sent, order, pieces, has_id=with_gap is not None)
            if json is not None:
                _keep(self._json, with_gap or text, (json, pattern))
        else:
            raw = _Raw.of(sent, order, len(body) - header_bytes)
            if raw is not None:
                _keep(self._binary, with_gap or text, (raw, pattern))

    def _json_call(self, body: bytes) -> _Known | None:
        known = self._latest
        values = None if known is None else known[0].read(body)
        if known is None or values is None:
            pieces, _ = cut(body)
            if sum(map(len, pieces)) > MAX_TEXT_BYTES:
                return None
            text = _NUMBERS.join(pieces)
            known = self._json.get(text)
            if known is None and (apart := _without_id(text)) is not None:
                known = self._json.get(apart[0])
            if known is None or (values := known[0].read(body)) is None:
                return None
            self._latest = known
        return known[1], *values

    def _binary_call(self, body: bytes, header_bytes: int) -> _Known | None:
        if header_bytes > MAX_TEXT_BYTES:
            return None
        header, id = body[:header_bytes], None
        known = self._binary.get(header)
        if known is None and (apart := _without_id(header)) is not None:
            text, id = apart
            known = self._binary.get(text)
        if known is None or (inputs := known[0].read(body, header_bytes)) is None:
            return None
        return known[1], inputs, id


_Known = tuple[_Pattern, Tensors, str | None]
"""What is known of a call, its inputs, and its id where each has its own."""

_Place = tuple[tuple[int, ...], np.dtype[np.generic], int]
"""A tensor's shape and type, and where behind the header it begins."""


class _Raw:
    """Tensors one after the other, as bytes behind a header."""

    def __init__(self, places: Mapping[str, _Place], size: int):
        self._places = places
        self._size = size

    @classmethod
    def of(cls, sent: Tensors, order: Sequence[str], size: int) -> _Raw | None:
        """For tensors like these, so many bytes in all, to be read in this order."""
        places: dict[str, _Place] = {}
        end = 0
        for name, tensor in sent.items():
            places[name] = tensor.shape, tensor.dtype, end
            end += tensor.nbytes
        return cls({name: places[name] for name in order}, end) if end == size else None

    def read(self, body: bytes, header_bytes: int) -> Tensors | None:
        """The inputs; None if they are not as they were."""
        if len(body) - header_bytes != self._size:
            return None
        inputs: Tensors = {}
        for name, (shape, dtype, at) in self._places.items():
            inputs[name] = np.ndarray(shape, dtype, body, header_bytes + at)
        return inputs


class _Json:
    """Tensors of numbers, each an array between two pieces of text, and so is the id, if it may be
    another."""

    def __init__(
        self, pieces: Sequence[bytes], readers: Mapping[str, tuple[int, Reader]], id_at: int | None
    ):
        self._first, *self._between, self._last = pieces
        self._readers = readers
        self._id_at = id_at

    @classmethod
    def of(
        cls, sent: Tensors, order: Sequence[str], pieces: Sequence[bytes], *, has_id: bool
    ) -> _Json | None:
        """For tensors like these, whose text is these pieces, to be read in this order."""
        if len(pieces) != len(sent) + 1 or without_data(pieces) is None:
            return None
        id_at = None
        if has_id:
            id_at = next(at for at, piece in enumerate(pieces) if _KEY in piece)
            apart = _without_id(pieces[id_at])
            assert apart is not None
            pieces = [*pieces[:id_at], *apart[0].split(_ID_GAP), *pieces[id_at + 1 :]]
        readers: dict[str, tuple[int, Reader]] = {}
        for place, (name, tensor) in enumerate(sent.items()):
            read = reader(tensor.dtype, tensor.shape)
            if read is None:
                return None
            readers[name] = place + (id_at is not None and id_at <= place), read
        return cls(pieces, {name: readers[name] for name in order}, id_at)

    def read(self, body: bytes) -> tuple[Tensors, str | None] | None:
        """The inputs, and the id if it may be another; None if they are not as they were."""
        if not (body.startswith(self._first) and body.endswith(self._last)):
            return None
        at = len(self._first)
        found = []
        for piece in self._between:
            end = body.find(piece, at)
            if end < 0:
                return None
            found.append(body[at:end])
            at = end + len(piece)
        found.append(body[at : len(body) - len(self._last)])
        id = None
        if self._id_at is not None:
            if _ID.fullmatch(found[self._id_at]) is None:
                return None
            id = found[self._id_at].decode()
        inputs: Tensors = {}
        for name, (place, read) in self._readers.items():
            tensor = read(found[place])
            if tensor is None:
                return None
            inputs[name] = tensor
        return inputs, id


def _keep(known: dict[bytes, T], text: bytes, new: T) -> None:
    """Know a text, in place of the one that has been known for longest if they are many."""
    if len(known) >= MAX_PATTERNS:
        del known[next(iter(known))]
    known[text] = new


def _without_id(text: bytes) -> tuple[bytes, str] | None:
    """A text with a gap in place of what seems to be its call's id, and that; None without one."""
    found = _WITH_ID.search(text)
    if found is None:
        return None
    start, end = found.span(1)
    return text[:start] + _ID_GAP + text[end:], found[1].decode()


def _with_gap(text: bytes, id: str) -> bytes | None:
    """A text with a gap in place of its call's id, which any other may take; None if there is more
    to the text than that."""
    apart = _without_id(text)
    # Then this is the one key of that name, of the whole call, and what is behind it is its value.
    is_plain = text.count(_KEY) == 1 and b"\\" not in text
    return apart[0] if apart is not None and is_plain and apart[1] == id else None
