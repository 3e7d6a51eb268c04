"""Bodies of infer of Open Inference Protocol v2 over HTTP: JSON, and raw tensors behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson

from serving.errors import InvalidRequest, Malformed, RequestError
from serving.fronts.asgi import JSON, Headers
from serving.fronts.json_body import (
    as_list,
    as_object,
    field,
    optional,
    parse,
    parse_object,
    required,
)
from serving.fronts.v2_arrays import cut, without_data
from serving.fronts.v2_call import (
    InferCall,
    OutputWish,
    check_wishes,
    output_wish,
    place,
    read_region,
    region_of,
    request_parameters,
)
from serving.fronts.v2_numbers import reader
from serving.fronts.v2_tensors import (
    Buffer,
    check_spec,
    from_bytes,
    from_json,
    raw_tensor,
    to_bytes,
    to_json,
)
from serving.model import Model
from serving.shared_memory import SharedMemory
from serving.types import NUMPY_TYPES, Array, InferRequest, InferResponse, Tensors

HEADER_LENGTH = b"inference-header-content-length"

_GAP = b"\0"
"""Where the elements of a tensor come. No JSON has such a byte."""

_MANY_BYTES = 1 << 12
"""Of JSON from which on its tensors' data is taken apart from it."""


def parse_infer(
    model: Model,
    version: str,
    body: bytes,
    header_length: bytes | None,
    shared_memory: SharedMemory,
) -> InferCall:
    """Translate a body: JSON and, after as many bytes as the header says, raw tensors.

    Raises `RequestError` naming the field, what was expected and what came.
    """
    if header_length == b"0":
        return _raw_call(model, version, body)
    json_length = len(body) if header_length is None else _length(header_length, len(body))
    if header_length is None and len(body) >= _MANY_BYTES:
        pieces, arrays = cut(body)
        if (document := without_data(pieces)) is not None:
            with suppress(RequestError):
                return _call(model, version, document, arrays, body[:0], shared_memory)
            # What is wrong is told of the whole.
    view = memoryview(body)
    document = parse_object(view[:json_length])
    return _call(model, version, document, [], view[json_length:], shared_memory)


def _call(
    model: Model,
    version: str,
    document: Mapping[str, Any],
    arrays: Sequence[bytes],
    raw: Buffer,
    shared_memory: SharedMemory,
) -> InferCall:
    """What a document asks for whose inputs' data are these arrays, if there are any, and whose
    raw tensors come behind it."""
    wishes = _wishes(document)
    request = InferRequest(
        model_name=model.config.name,
        model_version=version,
        id=optional("the request", document, "id", ""),
        inputs=_inputs(document, arrays, raw, shared_memory),
        outputs=tuple(wishes),
    )
    call = InferCall(request, wishes)
    if "parameters" in document:
        parameters = as_object("parameters", document["parameters"])
        call.binary_by_default, _ = request_parameters(request, parameters)
    check_wishes(call, model.config.outputs, shared_memory)
    return call


def render_infer(
    call: InferCall, model: Model, response: InferResponse, shared_memory: SharedMemory
) -> tuple[list[Buffer], Headers]:
    """The parts of the body, and its headers. Writes what is wanted in shared memory there."""
    if call.forms is not None and (form := call.forms.find(response.outputs)) is not None:
        return form.written(response)
    outputs: list[dict[str, Any]] = []
    listed: list[tuple[str, Array]] = []
    raw: list[Buffer] = []
    config = model.config
    for placed in place(
        call,
        response,
        labels=lambda name: config.labels.get(name, ()),
        shared_memory=shared_memory,
        batched=config.max_batch_size > 0,
    ):
        output: dict[str, Any] = {
            "name": placed.name,
            "datatype": placed.datatype,
            "shape": placed.shape,
        }
        if placed.tensor is not None and call.is_binary(placed.name):
            raw.append(to_bytes(placed.tensor))
            output["parameters"] = {"binary_data_size": len(raw[-1])}
        elif placed.tensor is not None:
            listed.append((placed.name, placed.tensor))
            output["data"] = orjson.Fragment(_GAP)
        outputs.append(output)
    document: dict[str, Any] = {"id": response.id} if response.id else {}
    document["model_name"] = response.model_name
    document["model_version"] = response.model_version
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    document["outputs"] = outputs
    texts = orjson.dumps(document).split(_GAP)
    header: list[Buffer] = [texts[0]]
    for (name, tensor), text in zip(listed, texts[1:], strict=True):
        header += (to_json(name, tensor), text)
    headers: Headers = [(b"content-type", JSON)]
    if any(raw):
        length = sum(map(len, header))
        headers = [
            (b"content-type", b"application/octet-stream"),
            (HEADER_LENGTH, str(length).encode()),
        ]
    if call.forms is not None and not response.parameters:
        call.forms.learn(response, texts, headers, is_binary=bool(raw))
    return [*header, *raw], headers


def _raw_call(model: Model, version: str, body: bytes) -> InferCall:
    """The call that a body of nothing but one tensor's bytes stands for."""
    specs = model.config.inputs
    if len(specs) != 1:
        raise InvalidRequest(
            f"a raw request needs a model with one input, but {model.config.name!r}"
            f" has {len(specs)}"
        )
    tensor = raw_tensor(specs[0], body, model.config.max_batch_size > 0)
    request = InferRequest(model.config.name, {specs[0].name: tensor}, model_version=version)
    return InferCall(request, binary_by_default=True)


def _length(header: bytes, body_length: int) -> int:
    """Where the JSON ends."""
    length = int(header) if len(header) < 20 and header.isdigit() else 0
    if not 0 < length <= body_length:
        raise InvalidRequest(
            f"inference header size should be in range (0, {body_length}],"
            f" got: {header.decode('latin-1'):.20}"
        )
    return length


def _listed(
    name: str, datatype: str, shape: tuple[int, ...], data: object, text: bytes | None
) -> Array:
    """A tensor from JSON arrays, or from their text."""
    if text is not None:
        read = reader(NUMPY_TYPES[datatype], shape)
        if read is not None and (tensor := read(text)) is not None:
            return tensor
        data = parse(text)
    return from_json(name, datatype, shape, data)


def _wishes(document: Mapping[str, Any]) -> dict[str, OutputWish]:
    wishes: dict[str, OutputWish] = {}
    for index, item in enumerate(as_list("outputs", document.get("outputs", []))):
        where = f"outputs[{index}]"
        name = field(where, as_object(where, item), "name", str)
        if name in wishes:
            raise InvalidRequest(f"output {name!r} already exists in request")
        where += ".parameters"
        wishes[name] = output_wish(where, as_object(where, item.get("parameters", {})))
    return wishes


def _inputs(
    document: Mapping[str, Any],
    arrays: Sequence[bytes],
    raw: Buffer,
    shared_memory: SharedMemory,
) -> Tensors:
    inputs: Tensors = {}
    memory = shared_memory.for_request()
    for index, item in enumerate(as_list("inputs", required("the request", document, "inputs"))):
        where = f"inputs[{index}]"
        name = field(where, as_object(where, item), "name", str)
        if name in inputs:
            raise InvalidRequest(f"input {name!r} already exists in request")
        datatype, shape = check_spec(
            name, required(where, item, "datatype"), required(where, item, "shape")
        )
        where += ".parameters"
        parameters = as_object(where, item.get("parameters", {}))
        region = region_of(where, parameters)
        is_binary = "binary_data_size" in parameters
        if ("data" in item) + is_binary + (region is not None) != 1:
            _refuse_sources(name, "data" in item, is_binary, region is not None)
        if region is not None:
            inputs[name] = read_region(memory, name, datatype, shape, region)
        elif is_binary:
            size = field(where, parameters, "binary_data_size", int)
            if size < 0:
                raise Malformed(f"{where}.binary_data_size must be 0 or more, got {size}")
            if size > len(raw):
                raise InvalidRequest(
                    f"unexpected size for input {name!r}: binary_data_size is {size},"
                    f" but {len(raw)} bytes are left in the body"
                )
            inputs[name] = from_bytes(name, datatype, shape, raw[:size])
            raw = raw[size:]
        else:
            text = arrays[index] if arrays else None
            inputs[name] = _listed(name, datatype, shape, item["data"], text)
    if len(raw):
        raise InvalidRequest(
            f"unexpected additional input data: {len(raw)} bytes follow the last binary input"
        )
    return inputs


def _refuse_sources(name: str, data: bool, binary: bool, region: bool) -> None:
    given = {"'data'": data, "'binary_data_size'": binary, "'shared_memory_region'": region}
    names = " ".join(source for source, is_set in given.items() if is_set)
    raise InvalidRequest(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in"
        " 'parameters', 'shared_memory_region' in 'parameters'. But"
        f" {f'set {names}' if names else 'no field is set'} for input {name!r}"
    )
