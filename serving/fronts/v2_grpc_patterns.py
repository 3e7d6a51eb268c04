"""ModelInferRequests that are like an earlier one: what they say is known without reading them.

A client that sends tensor after tensor sends the same bytes each time but for an id and values, and
to understand them takes longer than all else that is done for a small request. protobuf says the
same of the same bytes, so whatever agrees with an earlier message in all but those is understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

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


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    count: int
    before: bytes
    """What stands before its values: the tag and their length."""
    at: int
    """Where its values begin, from the end of the message's head."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A call but for its id and its tensors' values."""

    tensors: tuple[_Tensor, ...]
    model_name: str
    model_version: str
    outputs: tuple[str, ...]
    priority: int
    timeout_s: float
    parameters: Mapping[str, Parameter]


class Patterns:
    """The latest messages that were understood, without their ids and values."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes, int], _Pattern] = {}
        self._heads: dict[int, int] = {}
        """By the bytes of a message after its id: how many of them are no values."""

    def call(self, data: bytes) -> InferCall | None:
        """The call of a message, if all but its id and values is known."""
        found = _id_of(data)
        if found is None:
            return None
        begin, end = found
        size = len(data) - end
        head_size = self._heads.get(size)
        if head_size is None:
            return None
        at = end + head_size
        pattern = self._known.get((data[:begin], data[end:at], size))
        if pattern is None:
            return None
        inputs: dict[str, Array] = {}
        for tensor in pattern.tensors:
            values_at = at + tensor.at
            if not data.startswith(tensor.before, values_at - len(tensor.before)):
                return None
            values = np.frombuffer(data, tensor.dtype, tensor.count, values_at)
            inputs[tensor.name] = values.reshape(tensor.shape)
        id = ""
        if end > begin:
            try:
                id = data[begin + 2 : end].decode()
            except UnicodeDecodeError:  # which protobuf refuses
                return None
        return InferCall(
            InferRequest(
                pattern.model_name,
                inputs,
                pattern.model_version,
                pattern.outputs,
                id,
                pattern.priority,
                pattern.timeout_s,
                parameters=pattern.parameters,
            )
        )

    def learn(self, data: bytes, message: Any, call: InferCall) -> None:
        """Know a message that made this call, if it is written the usual way.

        That is in the order of its fields, all inputs numbers in raw_input_contents, at the end,
        and nothing special asked for.
        """
        request = call.request
        tensors = request.inputs.values()
        found = _id_of(data)
        if (
            found is None
            or len(data) > MAX_MESSAGE_BYTES
            or call.wishes
            or call.wants_empty_final
            or request.sequence is not None
            or len(message.raw_input_contents) != len(request.inputs)
            or any(tensor.dtype == object or not tensor.size for tensor in tensors)
            or data != message.SerializeToString()
        ):
            return
        begin, end = found
        values_size = sum(1 + len(varint(each.nbytes)) + each.nbytes for each in tensors)
        head_size = len(data) - end - values_size
        if begin + head_size > MAX_HEAD_BYTES:
            return
        if len(self._known) >= MAX_PATTERNS:
            self._known.clear()
            self._heads.clear()
        size = len(data) - end
        self._heads[size] = head_size
        self._known[data[:begin], data[end : end + head_size], size] = _Pattern(
            _tensors(request.inputs),
            request.model_name,
            request.model_version,
            request.outputs,
            request.priority,
            request.timeout_s,
            request.parameters,
        )


def _id_of(data: bytes) -> tuple[int, int] | None:
    """Where the field `id` begins and ends in a message that begins in the usual way.

    Both are the same if there is none. None for any other message.
    """
    size = len(data)
    at = 0
    for tag in (_MODEL_NAME, _MODEL_VERSION):
        if at + 1 < size and data[at] == tag:
            if data[at + 1] >= 128:
                return None
            at += 2 + data[at + 1]
        elif tag == _MODEL_NAME:
            return None
    if at + 1 < size and data[at] == _ID:
        end = at + 2 + data[at + 1]
        return (at, end) if data[at + 1] < 128 and end <= size else None
    return (at, at) if at <= size else None


def _tensors(inputs: Mapping[str, Array]) -> tuple[_Tensor, ...]:
    tensors = []
    at = 0
    for name, values in inputs.items():
        before = bytes([_RAW]) + varint(values.nbytes)
        at += len(before)
        tensors.append(_Tensor(name, values.dtype, values.shape, values.size, before, at))
        at += values.nbytes
    return tuple(tensors)
