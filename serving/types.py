"""What passes between a front and a model: tensors, their specs, and when things happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from serving.calls import Call, Front, Trace

Array = npt.NDArray[Any]
Tensors = dict[str, Array]
Parameter = str | int | float | bool

DYNAMIC = -1
"""A dimension whose size each request chooses."""

# Open Inference Protocol datatype -> the numpy type that carries it. BYTES elements are `bytes`.
NUMPY_TYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
DATATYPES: Mapping[np.dtype[Any], str] = {dtype: name for name, dtype in NUMPY_TYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model, as a caller sees it.

    `shape` includes the batch dimension (as `DYNAMIC`) when the model batches.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    """An input that a request may leave out."""

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape fits."""
        return len(shape) == len(self.shape) and all(
            want in (DYNAMIC, got) for want, got in zip(self.shape, shape, strict=True)
        )


@dataclass(slots=True)
class Stamps:
    """When one request reached each stage, in seconds of the monotonic clock; 0 is "not reached".

    Metrics, traces and response timings are all derived from these.
    """

    received: float = 0.0
    queued: float = 0.0
    batched: float = 0.0
    """Chosen for a batch; the wait in the queue ends."""
    started: float = 0.0
    """Inputs stacked; the engine starts."""
    computed: float = 0.0
    """The engine returned."""
    answered: float = 0.0
    """The outputs were cut into rows and handed back."""
    looked_up: float = 0.0
    """The response cache was asked; the time before it is the model's, if it has a cache."""
    cached: bool = False
    """The cache had the answer: the stages from `queued` to `computed` were not reached."""
    sent: float = 0.0
    """The front handed the whole answer to the transport."""


class Run(NamedTuple):
    """One run of an engine: its rows, and when its stages began and ended (see `Stamps`)."""

    rows: int
    batched: float
    started: float
    computed: float
    answered: float
    elements: int = 0
    """Of the inputs that are padded to the longest: what its requests have, and the padding."""
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Iteration:
    """One turn of all requests that run together, a step each, and the seconds that it took."""

    suspended: int
    seconds: float
    work: Work


@dataclass(slots=True)
class Work:
    """What a model that answers in steps has computed, in tokens or what else it counts in."""

    made: int = 0
    """Generated."""
    taken_in: int = 0
    """Encoded or prefilled."""
    padding: int = 0
    """Computed on top, because inputs of different lengths were taken in together."""


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """A request's place in a sequence of requests. Integer ids and text ids never collide."""

    id: int | str
    start: bool = False
    end: bool = False


@dataclass(slots=True)
class InferRequest:
    """One call for a prediction, whatever protocol it came by.

    `inputs` keeps the caller's tensors with their batch dimension. `outputs` names what is wanted;
    empty means everything. `timeout_s` and `priority` are the caller's wishes (0 is "none"): the
    model's queue policy decides what they are worth. `deadline`, in seconds of the monotonic
    clock, is no wish: nobody listens any more after it.
    """

    model_name: str
    inputs: Tensors
    model_version: str = ""
    outputs: tuple[str, ...] = ()
    id: str = ""
    priority: int = 0
    timeout_s: float = 0.0
    deadline: float = inf
    sequence: SequenceStep | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    """What the protocol does not know, for the model."""
    stamps: Stamps = field(default_factory=Stamps)
    call: Call | None = None
    """What it is asked for; None if the server itself asks."""
    rows: int = 0
    """That its model has found in such a request before; 0 for one that it has to look at."""
    trace: Trace | None = None
    """What is noted of it; None if it is not traced."""

    def asked_by(self, call: Call) -> None:
        """Say that this is the first request that is made for a call."""
        self.call = call
        self.stamps.received = call.received
        if self.id:
            call.identify(self.id)

    @property
    def front(self) -> Front:
        return Front.INTERNAL if self.call is None else self.call.front


@dataclass(slots=True)
class InferResponse:
    """The answer, or one of several: output tensors by name, in the model's order."""

    model_name: str
    model_version: str
    outputs: Tensors
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
