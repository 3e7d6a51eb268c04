"""ModelInferRequest and ModelInferResponse: from the wire to `InferRequest`, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from serving.errors import InvalidRequest
from serving.fronts.v2_call import (
    InferCall,
    OutputWish,
    Placed,
    output_wish,
    read_region,
    region_of,
    request_parameters,
)
from serving.fronts.v2_tensors import check_spec, datatype_of, from_bytes, to_bytes
from serving.shared_memory import SharedMemory
from serving.types import (
    NUMPY_TYPES,
    Array,
    InferRequest,
    InferResponse,
    Parameter,
    Tensors,
    TensorSpec,
)

# Datatype -> the field of InferTensorContents that carries it. The others travel as raw bytes only.
_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def check_version(version: str) -> None:
    """Raises `InvalidRequest` for what can be no version; empty is the latest."""
    if version and not (version.isascii() and version.isdecimal()):
        raise InvalidRequest(
            f"failed to get model version from specified version string {version[:40]!r},"
            " version should be an integral value > 0"
        )


def parse_infer(message: Any, shared_memory: SharedMemory) -> InferCall:
    """Translate a ModelInferRequest. Raises `RequestError` naming the field."""
    outputs, wishes = _outputs(message.outputs)
    request = InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        inputs=_inputs(message, shared_memory),
        outputs=outputs,
    )
    call = InferCall(request, wishes)
    if message.parameters:
        _, call.wants_empty_final = request_parameters(request, _plain(message.parameters))
    return call


def render_infer(response: InferResponse, outputs: Iterable[Placed] | None = None) -> Any:
    """Translate a response into a ModelInferResponse; by default with its tensors as they are."""
    message = service_pb2.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    if outputs is None:
        for name, tensor in response.outputs.items():
            message.outputs.add(name=name, datatype=datatype_of(tensor), shape=tensor.shape)
            message.raw_output_contents.append(bytes(to_bytes(tensor)))
    else:
        for output in outputs:
            message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
            # Clients find an output's bytes by its index, so one in shared memory leaves a gap.
            raw = b"" if output.tensor is None else bytes(to_bytes(output.tensor))
            message.raw_output_contents.append(raw)
    for key, value in response.parameters.items():
        _set(message.parameters[key], value)
    return message


def render_spec(spec: TensorSpec) -> Any:
    """Translate a tensor's spec into a TensorMetadata."""
    return service_pb2.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.datatype, shape=spec.shape
    )


def _inputs(message: Any, shared_memory: SharedMemory) -> Tensors:
    raw = message.raw_input_contents
    if raw:
        for item in message.inputs:
            if item.HasField("contents"):
                raise InvalidRequest(
                    "contents field must not be specified when using raw_input_contents for"
                    f" {item.name!r} for model {message.model_name!r}"
                )
        needed = sum("shared_memory_region" not in item.parameters for item in message.inputs)
        if len(raw) != needed:
            raise InvalidRequest(
                f"raw_input_contents has {len(raw)} entries for {needed} inputs that need one"
            )
    rest = iter(raw)
    memory = shared_memory.for_request()
    inputs: Tensors = {}
    for item in message.inputs:
        name = item.name
        if name in inputs:
            raise InvalidRequest(f"input {name!r} already exists in request")
        datatype, shape = check_spec(name, item.datatype, item.shape)
        region = (
            region_of(f"parameters of input {name!r}", _plain(item.parameters))
            if item.parameters
            else None
        )
        if item.HasField("contents") and region:
            raise InvalidRequest(
                f"contents field must not be specified when using shared memory for input {name!r}"
            )
        if region is not None:
            inputs[name] = read_region(memory, name, datatype, shape, region)
        elif not raw:
            inputs[name] = _typed(item, datatype, shape)
        else:
            inputs[name] = from_bytes(name, datatype, shape, next(rest))
    return inputs


def _typed(item: Any, datatype: str, shape: tuple[int, ...]) -> Array:
    """A tensor from the typed field of its datatype."""
    expected = _CONTENTS.get(datatype)
    for descriptor, _ in item.contents.ListFields():
        if descriptor.name != expected:
            raise InvalidRequest(
                f"unexpected explicit tensor data for input {item.name!r}: {datatype} belongs in"
                f" {expected or 'raw_input_contents'}, got {descriptor.name}"
            )
    if expected is None:
        raise InvalidRequest(f"{datatype} of input {item.name!r} belongs in raw_input_contents")
    elements = list(getattr(item.contents, expected))
    if len(elements) != np.prod(shape, dtype=object):
        raise InvalidRequest(
            f"unable to find data for input tensor {item.name!r}: {expected} has {len(elements)}"
            f" elements, but shape {list(shape)} takes {np.prod(shape, dtype=object)}"
        )
    try:
        return np.array(elements, NUMPY_TYPES[datatype]).reshape(shape)
    except OverflowError:
        raise InvalidRequest(f"data of input {item.name!r} has values outside {datatype}") from None


def _outputs(requested: Any) -> tuple[tuple[str, ...], dict[str, OutputWish]]:
    """The names of the requested outputs, and what is wished of those that are no plain tensors."""
    wishes: dict[str, OutputWish] = {}
    names: dict[str, None] = {}
    for output in requested:
        name = output.name
        if name in names:
            raise InvalidRequest(f"output {name!r} already exists in request")
        names[name] = None
        if output.parameters:
            where = f"parameters of output {name!r}"
            parameters = _plain(output.parameters)
            wish = wishes[name] = output_wish(where, parameters)
            if "classification" in parameters and not wish.classification:
                raise InvalidRequest(f"{where}.classification must be 1 or more, got 0")
    return tuple(names), wishes


def _plain(parameters: Any) -> dict[str, object]:
    """InferParameters by key; None for one that has no value."""
    return {
        key: getattr(parameter, choice)
        if (choice := parameter.WhichOneof("parameter_choice"))
        else None
        for key, parameter in parameters.items()
    }


def _set(parameter: Any, value: Parameter) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        if value < 2**63:
            parameter.int64_param = value
        else:
            parameter.uint64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value
