"""Infer of Open Inference Protocol v2 over HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from serving.calls import Front
from serving.errors import InvalidRequest, Malformed, RequestError, Unsupported
from serving.fronts.asgi import (
    JSON,
    Headers,
    HttpCall,
)
from serving.fronts.compression import ENCODINGS, choose, compress, decompress
from serving.fronts.json_body import as_list, as_object, field, optional, parse_object, required
from serving.fronts.route import Answer, Body, PredictRoute, Work
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
from serving.fronts.v2_patterns import Patterns
from serving.fronts.v2_tensors import (
    Buffer,
    check_spec,
    from_bytes,
    from_json,
    raw_tensor,
    to_bytes,
    to_json,
)
from serving.ledger import Asked
from serving.model import Model
from serving.shared_memory import SharedMemory
from serving.types import Array, InferRequest, InferResponse, Tensors

HEADER_LENGTH = b"inference-header-content-length"

_GAP = b"\0"
"""Where the elements of a tensor come. No JSON has such a byte."""

_SMALL_BYTES = 1 << 16
"""What is packed without a thread of its own."""


class InferRoute(PredictRoute):
    """POST /v2/models/{name}[/versions/{version}]/infer"""

    front = Front.V2_HTTP
    operation = "/v2/models/{model}/infer"
    target = re.compile(r"/v2/models/([^/]+)(?:/versions/([0-9]+))?/infer")

    def refusal(self, error: Exception, call: HttpCall) -> Answer:
        status, parts, headers = super().refusal(error, call)
        if isinstance(error, Unsupported) and b"content-encoding" in call.headers:
            headers = [*headers, (b"accept-encoding", ", ".join(ENCODINGS).encode())]
        return status, parts, headers

    def _begin(
        self,
        caller: HttpCall,
        name: str,
        version: str,
        body: bytes,
        reply: Callable[[Answer], None],
    ) -> Work | None:
        headers = caller.headers
        if b"content-encoding" in headers or b"accept-encoding" in headers:
            return None
        try:
            loaded = self.server.loaded(name, version)
            model = loaded.model
            if model.queue is None:
                return None
            call = self._parsed(model, version, body, headers.get(HEADER_LENGTH))
        except RequestError as error:
            self.server.note_invalid(error, caller, name, version)
            raise
        call.request.asked_by(caller)
        asked = _Asked(self, caller, call, reply)
        self.server.ask(asked, loaded)
        return asked

    async def _answer(
        self, caller: HttpCall, name: str, version: str, whole: Body
    ) -> tuple[list[Buffer], Headers]:
        asked = caller.headers
        body = whole.take()
        try:
            if b"content-encoding" in asked:
                encoding = asked[b"content-encoding"].decode("latin-1")
                body = await asyncio.to_thread(decompress, encoding, body, self.max_body_bytes)
            model = self.server.model(name, version)
            call = self._parsed(model, version, body, asked.get(HEADER_LENGTH))
        except RequestError as error:
            self.server.note_invalid(error, caller, name, version)
            raise
        call.request.asked_by(caller)
        response = await self.server.infer(call.request)
        parts, headers = render_infer(call, model, response, self.server.shared_memory)
        if b"accept-encoding" in asked:
            coding = choose(asked[b"accept-encoding"].decode("latin-1"))
            if coding is not None:
                parts = [await _packed(coding, parts)]
                headers = [*headers, (b"content-encoding", coding.encode())]
        return parts, headers

    def _parsed(
        self, model: Model, version: str, body: bytes, header_length: bytes | None
    ) -> InferCall:
        """As `parse_infer` does, which is asked where the text is a new one."""
        header_bytes = None
        if header_length is not None:
            if len(header_length) > 9 or not header_length.isdigit():
                return parse_infer(model, version, body, header_length, self.server.shared_memory)
            header_bytes = int(header_length)
        patterns = model.memory(Patterns)
        call = patterns.call(model, version, body, header_bytes)
        if call is None:
            call = parse_infer(model, version, body, header_length, self.server.shared_memory)
            patterns.learn(model, body, header_bytes, call)
        return call


class _Asked(Asked):
    """A call that a model has been asked for."""

    __slots__ = ("_call", "_caller", "_reply", "_route")

    def __init__(
        self,
        route: InferRoute,
        caller: HttpCall,
        call: InferCall,
        reply: Callable[[Answer], None],
    ):
        super().__init__(call.request)
        self._route = route
        self._caller = caller
        self._call = call
        self._reply = reply

    def answered(self, response: InferResponse) -> None:
        model, shared_memory = self.loaded.model, self._route.server.shared_memory
        try:
            answer: Answer = 200, *render_infer(self._call, model, response, shared_memory)
        except Exception as error:
            self.failed(error)
        else:
            self._reply(answer)

    def failed(self, error: Exception) -> None:
        self._reply(self._route.refusal(error, self._caller))


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
    view = memoryview(body)
    json_length = len(body) if header_length is None else _length(header_length, len(body))
    document = parse_object(view[:json_length])
    wishes = _wishes(document)
    request = InferRequest(
        model_name=model.config.name,
        model_version=version,
        id=optional("the request", document, "id", ""),
        inputs=_inputs(document, view[json_length:], shared_memory),
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
        return form.parts(response.outputs), form.headers
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
        call.forms.learn(response.outputs, texts, headers, is_binary=bool(raw))
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


def _inputs(document: Mapping[str, Any], raw: memoryview, shared_memory: SharedMemory) -> Tensors:
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
            inputs[name] = from_json(name, datatype, shape, item["data"])
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


async def _packed(coding: str, parts: list[Buffer]) -> bytes:
    if sum(map(len, parts)) <= _SMALL_BYTES:
        return compress(coding, parts)
    return await asyncio.to_thread(compress, coding, parts)
