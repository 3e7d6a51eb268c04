"""JSON headers of binary requests that came before: what they say is known without reading them.

A client that sends tensor after tensor sends the same header each time, and to understand one takes
longer than all else that is done for a small request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from serving.fronts.v2_call import InferCall, OutputWish
from serving.types import Array, InferRequest, Parameter

MAX_HEADER_BYTES = 2048
MAX_PATTERNS = 512
"""Kept at once, which is more than clients send that do not put a new id into each."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    count: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A call but for its model and its tensors' values."""

    tensors: tuple[_Tensor, ...]
    byte_size: int
    """Of all tensors."""
    outputs: tuple[str, ...]
    id: str
    priority: int
    timeout_s: float
    parameters: Mapping[str, Parameter]
    wishes: dict[str, OutputWish]
    binary_by_default: bool


class Patterns:
    """The latest headers of calls that were understood."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Pattern] = {}

    def call(self, model: str, version: str, header: bytes, body: bytes) -> InferCall | None:
        """The call of a body that begins with a header, if that is known and the rest fits."""
        pattern = self._known.get(header)
        at = len(header)
        if pattern is None or pattern.byte_size != len(body) - at:
            return None
        inputs: dict[str, Array] = {}
        for tensor in pattern.tensors:
            values = np.frombuffer(body, tensor.dtype, tensor.count, at)
            inputs[tensor.name] = values.reshape(tensor.shape)
            at += tensor.byte_size
        request = InferRequest(
            model,
            inputs,
            version,
            pattern.outputs,
            pattern.id,
            pattern.priority,
            pattern.timeout_s,
            parameters=pattern.parameters,
        )
        return InferCall(request, pattern.wishes, pattern.binary_by_default)

    def learn(self, header: bytes, body: bytes, call: InferCall) -> None:
        """Know a header that made this call, if numbers are all that follows and is asked for."""
        request = call.request
        byte_size = len(body) - len(header)
        if (
            len(header) > MAX_HEADER_BYTES
            or request.sequence is not None
            or any(tensor.dtype == object or not tensor.size for tensor in request.inputs.values())
            or sum(tensor.nbytes for tensor in request.inputs.values()) != byte_size
            or any(wish.region or wish.classification for wish in call.wishes.values())
        ):
            return
        if len(self._known) >= MAX_PATTERNS:
            del self._known[next(iter(self._known))]
        self._known[header] = _Pattern(
            tuple(
                _Tensor(name, tensor.dtype, tensor.shape, tensor.size, tensor.nbytes)
                for name, tensor in request.inputs.items()
            ),
            byte_size,
            request.outputs,
            request.id,
            request.priority,
            request.timeout_s,
            request.parameters,
            call.wishes,
            call.binary_by_default,
        )
