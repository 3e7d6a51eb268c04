"""What both v2 fronts share beyond tensors: parameters, and where outputs are put.

Both hand their parameters over as plain values; where they come from is the front's to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from serving.errors import InvalidRequest, Malformed, shown
from serving.fronts.classification import classify
from serving.fronts.v2_tensors import Buffer, check_size, datatype_of, from_bytes, to_bytes
from serving.shared_memory import RequestMemory, SharedMemory
from serving.types import Array, InferRequest, InferResponse, Parameter, SequenceStep, TensorSpec

if TYPE_CHECKING:
    from serving.fronts.v2_forms import Forms

MAX_INTEGER = 2**64 - 1
MAX_SEQUENCE_ID_BYTES = 128


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a registered shared memory region: the caller's place for one tensor."""

    name: str
    byte_size: int
    offset: int


@dataclass(frozen=True, slots=True)
class OutputWish:
    """How the caller wants one output."""

    binary: bool | None = None
    """None: as the request says for all outputs."""
    classification: int = 0
    """How many classes; 0 for the tensor itself."""
    region: Region | None = None


@dataclass(slots=True)
class InferCall:
    """A parsed request, and how its answers are to be written."""

    request: InferRequest
    wishes: dict[str, OutputWish] = field(default_factory=dict)
    binary_by_default: bool = False
    wants_empty_final: bool = False
    forms: Forms | None = None
    """How answers to calls that are like this one were written (HTTP)."""

    def is_binary(self, output: str) -> bool:
        """Whether an output is to follow as raw bytes (HTTP)."""
        wish = self.wishes.get(output)
        return self.binary_by_default if wish is None or wish.binary is None else wish.binary


@dataclass(slots=True)
class Placed:
    """One output as the response shows it; either `tensor` or `region` is set."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    tensor: Array | None
    region: Region | None
    """The shared memory that holds it; the response carries no data then."""


def region_of(where: str, parameters: Mapping[str, object]) -> Region | None:
    """The shared memory that a tensor's parameters name, if any; `where` starts messages.

    Raises `InvalidRequest` for a name without a size or a size without a name, and for negative
    numbers; `Malformed` for values of a wrong type.
    """
    if "shared_memory_region" not in parameters:
        for key in ("shared_memory_byte_size", "shared_memory_offset"):
            if key in parameters:
                raise InvalidRequest(f"{where}.{key} is set, but shared_memory_region is not")
        return None
    name = parameters["shared_memory_region"]
    if not isinstance(name, str):
        raise Malformed(f"{where}.shared_memory_region must be a string, got {shown(name)}")
    if not name:
        raise InvalidRequest(f"{where}.shared_memory_region must name a region, got ''")
    if "shared_memory_byte_size" not in parameters:
        raise InvalidRequest(
            f"{where}.shared_memory_byte_size is required with a shared_memory_region"
        )
    return Region(
        name,
        _integer(where, parameters, "shared_memory_byte_size"),
        _integer(where, parameters, "shared_memory_offset"),
    )


def output_wish(where: str, parameters: Mapping[str, object]) -> OutputWish:
    """What a requested output's parameters ask for; `where` starts messages.

    Unknown parameters are ignored. `classification` 0 means off; a front whose protocol says
    otherwise checks that itself.

    Raises `InvalidRequest` for what cannot be, `Malformed` for values of a wrong type.
    """
    if not parameters:
        return _NO_WISH
    binary = _flag(where, parameters, "binary_data") if "binary_data" in parameters else None
    classes = _integer(where, parameters, "classification")
    region = region_of(where, parameters)
    if classes and region is not None:
        raise InvalidRequest(
            f"{where}: classification cannot be combined with shared_memory_region"
        )
    return OutputWish(binary, classes, region)


def request_parameters(
    request: InferRequest, parameters: Mapping[str, object]
) -> tuple[bool, bool]:
    """Put a request's parameters where they belong: `sequence`, `priority`, `timeout_s`, and
    what the protocol does not know into `parameters`.

    Returns `binary_data_output` (HTTP's) and `triton_enable_empty_final_response`. Flags of a
    sequence without an id, or with an id of 0 or "", leave `sequence` None.

    Raises `InvalidRequest` for reserved names, and for numbers out of range; for values of a wrong
    type `Malformed` where the protocol gives the type, `InvalidRequest` where any scalar will do.
    """
    if not parameters:
        return False, False
    others: dict[str, Parameter] = {}
    for key, value in parameters.items():
        if key in _KNOWN:
            continue
        if key == "headers" or key.startswith("triton_"):
            raise InvalidRequest(
                f"parameter {shown(key)} is reserved: 'headers' and names that start with 'triton_'"
                " should not be specified"
            )
        if not isinstance(value, str | int | float | bool):
            raise InvalidRequest(
                f"parameter {shown(key)} has invalid type: expected a string, a number or"
                f" a boolean, got {shown(value)}"
            )
        others[key] = value
    request.parameters = others
    request.priority = _integer(_WHERE, parameters, "priority")
    request.timeout_s = _integer(_WHERE, parameters, "timeout") / 1e6
    request.sequence = _sequence(parameters)
    return (
        _flag(_WHERE, parameters, "binary_data_output"),
        _flag(_WHERE, parameters, "triton_enable_empty_final_response"),
    )


def check_wishes(
    call: InferCall, outputs: Sequence[TensorSpec], shared_memory: SharedMemory
) -> None:
    """Refuse, before anything is computed, what could not be answered afterwards.

    Raises `NotFound` for an unknown region; `InvalidRequest` for a part that is not within its
    region, and for an output (of those the model has) that can have no classes.
    """
    if not call.wishes:
        return
    texts = {spec.name for spec in outputs if spec.datatype == "BYTES"}
    for name, wish in call.wishes.items():
        if wish.region is not None:
            shared_memory.check(wish.region.name, wish.region.offset, wish.region.byte_size)
        elif wish.classification and name in texts:
            raise InvalidRequest(
                f"classification of output {name!r} needs numbers, but it is BYTES"
            )


def read_region(
    memory: RequestMemory, name: str, datatype: str, shape: tuple[int, ...], region: Region
) -> Array:
    """An input that lies in shared memory, copied out of it.

    Raises `NotFound` for an unknown region; `InvalidRequest` for bytes that do not make the
    declared tensor, or that are not within the region; `TooLarge` for more than a request may read.
    """
    # Before anything is read: how much is read is otherwise the caller's word only.
    check_size(name, datatype, shape, region.byte_size)
    raw = memory.read(region.name, region.offset, region.byte_size)
    return from_bytes(name, datatype, shape, raw)


def place(
    call: InferCall,
    response: InferResponse,
    *,
    labels: Callable[[str], Sequence[str]],
    shared_memory: SharedMemory,
    batched: bool,
) -> list[Placed]:
    """The outputs of a response as its caller wants them, in the response's order.

    Classes take the place of tensors (`labels` gives an output's class names, `batched` says
    whether the model has a batch dimension), and tensors for shared memory are written there.

    Raises `InvalidRequest` for an output that has no classes, or does not fit its place in shared
    memory; `NotFound` for a region that is unknown, or unregistered since. Nothing is written then,
    except before an error of shared memory itself.
    """
    placed: list[Placed] = []
    writes: list[tuple[Region, Buffer]] = []
    for name, output in response.outputs.items():
        wish = call.wishes.get(name, _NO_WISH)
        tensor: Array | None = output
        if wish.classification:
            tensor = output = classify(name, output, wish.classification, labels(name), batched)
        elif wish.region is not None:
            writes.append((wish.region, to_bytes(output)))
            tensor = None
        placed.append(Placed(name, datatype_of(output), output.shape, tensor, wish.region))
    for region, data in writes:
        shared_memory.write(region.name, region.offset, region.byte_size, data)
    return placed


_WHERE = "parameters"
_NO_WISH = OutputWish()
_KNOWN = frozenset(
    {
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "priority",
        "timeout",
        "binary_data_output",
        "triton_enable_empty_final_response",
    }
)


def _sequence(parameters: Mapping[str, object]) -> SequenceStep | None:
    start = _flag(_WHERE, parameters, "sequence_start")
    end = _flag(_WHERE, parameters, "sequence_end")
    correlation: int | str
    value = parameters.get("sequence_id", 0)
    if isinstance(value, str):
        if len(value.encode(errors="replace")) > MAX_SEQUENCE_ID_BYTES:
            raise InvalidRequest(
                f"{_WHERE}.sequence_id must have at most {MAX_SEQUENCE_ID_BYTES} bytes,"
                f" got {shown(value)}"
            )
        correlation = value
    else:
        correlation = _integer(_WHERE, parameters, "sequence_id", "an integer or a string")
    return SequenceStep(correlation, start, end) if correlation else None


def _flag(where: str, parameters: Mapping[str, object], key: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise Malformed(f"{where}.{key} must be true or false, got {shown(value)}")
    return value


def _integer(
    where: str, parameters: Mapping[str, object], key: str, expected: str = "an integer"
) -> int:
    """An integer of 0 or more; 0 if it is not given."""
    value: Any = parameters.get(key, 0)
    if type(value) is not int:
        raise Malformed(f"{where}.{key} must be {expected}, got {shown(value)}")
    if not 0 <= value <= MAX_INTEGER:
        raise InvalidRequest(
            f"{where}.{key} must be an integer from 0 to {MAX_INTEGER}, got {shown(value)}"
        )
    return value
