"""ModelInferRequests that are like an earlier one: what they say is known without reading them.

A client that sends tensor after tensor sends the same bytes each time but for an id and values, and
to understand them takes longer than all else that is done for a small request. protobuf says the
same of the same bytes, so whatever agrees with an earlier message in all but those is understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar
from weakref import ref

import numpy as np

from serving.errors import RequestError
from serving.fronts.v2_call import InferCall
from serving.fronts.v2_grpc_bytes import varint
from serving.types import Array, InferRequest, Parameter

MAX_HEAD_BYTES = 2048
MAX_MESSAGE_BYTES = 1 << 17
"""What is longer takes so long that it does not matter how it is read."""
MAX_PATTERNS = 512
"""Kept at once, which is more than clients send that put nothing new into each but an id."""

# Tags: the number of a field, and that its length follows.
_MODEL_NAME, _MODEL_VERSION, _ID, _RAW = (number << 3 | 2 for number in (1, 2, 3, 7))


class Judge(Protocol):
    """A model, as far as it says whether a request is one for it."""

    def rows(self, request: InferRequest) -> int:
        """How many the request has. Brings its inputs into an order; raises `RequestError`."""
        ...


M = TypeVar("M", bound=Judge)


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    before: bytes
    """What stands before its values: the tag and their length. It is checked but for the first."""
    at: int
    """Where its values begin, after those of the first."""


@dataclass(frozen=True, slots=True)
class _Pattern(Generic[M]):
    """A request but for its id and its tensors' values."""

    model: ref[M]
    rows: int
    """That the model has found, so that it need not look at the tensors again; 0 if it must."""

    size: int
    """Of the message without an id."""
    first: _Tensor
    others: tuple[_Tensor, ...]
    model_name: str
    model_version: str
    outputs: tuple[str, ...]
    priority: int
    timeout_s: float
    parameters: Mapping[str, Parameter]


class Patterns(Generic[M]):
    """The latest messages that were understood, without their ids and values."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Pattern[M]] = {}
        """By all that stands before the first tensor's values, but an id."""
        self._heads: dict[int, int] = {}
        """By the bytes of a message without an id: how many of them that is."""

    def request(self, data: bytes) -> tuple[InferRequest, M | None] | None:
        """The request of a message, if all but its id and values is known, and the model that took
        one like it, if that is still there."""
        size, id = len(data), ""
        at = self._heads.get(size, 0)
        pattern = self._known.get(data[:at])
        if pattern is None or pattern.size != size:
            begin, end = _id_of(data)
            at = self._heads.get(size - (end - begin), 0) + end - begin
            pattern = self._known.get(data[:begin] + data[end:at])
            if pattern is None or pattern.size != size - (end - begin):
                return None
            try:
                id = data[begin + 2 : end].decode()
            except UnicodeDecodeError:  # which protobuf refuses
                return None
        first = pattern.first
        inputs: dict[str, Array] = {first.name: np.ndarray(first.shape, first.dtype, data, at)}
        for tensor in pattern.others:
            values_at = at + tensor.at
            if not data.startswith(tensor.before, values_at - len(tensor.before)):
                return None
            inputs[tensor.name] = np.ndarray(tensor.shape, tensor.dtype, data, values_at)
        request = InferRequest(
            pattern.model_name,
            inputs,
            pattern.model_version,
            pattern.outputs,
            id,
            pattern.priority,
            pattern.timeout_s,
            parameters=pattern.parameters,
            rows=pattern.rows,
        )
        return request, pattern.model()

    def learn(self, data: bytes, message: Any, call: InferCall, model: M) -> None:
        """Know a message that made this call, if it is written the usual way, and one for `model`.

        That is in the order of its fields, all inputs numbers in raw_input_contents, at the end,
        and nothing special asked for.
        """
        request = call.request
        arrays = request.inputs.values()
        if (
            len(data) > MAX_MESSAGE_BYTES
            or call.wishes
            or call.wants_empty_final
            or request.sequence is not None
            or not arrays
            or len(message.raw_input_contents) != len(arrays)
            or any(array.dtype == object or not array.size for array in arrays)
            or data != message.SerializeToString()
        ):
            return
        names = list(request.inputs)
        first, *others = _tensors(request.inputs)
        last = others[-1] if others else first
        begin, end = _id_of(data)
        size = len(data) - (end - begin)
        head_size = size - last.at - request.inputs[last.name].nbytes
        if head_size > MAX_HEAD_BYTES or bool(request.id) != (end > begin):
            return
        try:
            rows = model.rows(request)
        except RequestError:
            return  # of which the caller will hear
        if len(self._known) >= MAX_PATTERNS:
            self._known.clear()
            self._heads.clear()
        self._heads[size] = head_size
        self._known[(data[:begin] + data[end:])[:head_size]] = _Pattern(
            ref(model),
            rows if list(request.inputs) == names else 0,
            size,
            first,
            tuple(others),
            request.model_name,
            request.model_version,
            request.outputs,
            request.priority,
            request.timeout_s,
            request.parameters,
        )


def _id_of(data: bytes) -> tuple[int, int]:
    """Where the field `id` begins and ends in a message that begins in the usual way.

    Both are the same if there is none, or a long one.
    """
    size = len(data)
    at = 0
    for tag in (_MODEL_NAME, _MODEL_VERSION):
        if at + 1 < size and data[at] == tag:
            if data[at + 1] >= 128:
                return at, at
            at += 2 + data[at + 1]
    if at + 1 < size and data[at] == _ID and data[at + 1] < 128:
        return at, min(size, at + 2 + data[at + 1])
    return at, at


def _tensors(inputs: Mapping[str, Array]) -> list[_Tensor]:
    tensors: list[_Tensor] = []
    at = 0
    for name, values in inputs.items():
        before = bytes([_RAW]) + varint(values.nbytes)
        if tensors:
            at += len(before)
        tensors.append(_Tensor(name, values.dtype, values.shape, before, at))
        at += values.nbytes
    return tensors
