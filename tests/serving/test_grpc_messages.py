"""ModelInferRequest to InferRequest and back, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory as SharedObject
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from serving.errors import InvalidRequest, NotFound
from serving.fronts.v2_call import InferCall, OutputWish, Placed, Region
from serving.fronts.v2_grpc_messages import check_version, parse_infer, render_infer
from serving.shared_memory import SharedMemory
from serving.types import InferResponse, Parameter, SequenceStep

BYTES = np.arange(4, dtype=np.float32).tobytes()


@pytest.fixture
def shared_object() -> Iterator[Callable[[bytes], str]]:
    """Makes POSIX shared memory objects, and returns their keys."""
    made: list[SharedObject] = []

    def make(content: bytes) -> str:
        made.append(SharedObject(create=True, size=len(content)))
        view: Any = made[-1].buf
        view[: len(content)] = content
        return f"/{made[-1].name}"

    yield make
    for shared in made:
        shared.close()
        shared.unlink()


def request(*names: str, raw: bool = True) -> Any:
    message = service_pb2.ModelInferRequest(model_name="m")
    for name in names or ("x",):
        message.inputs.add(name=name, datatype="FP32", shape=[1, 4])
        if raw:
            message.raw_input_contents.append(BYTES)
    return message


def parse(message: Any) -> InferCall:
    return parse_infer(message, SharedMemory(enabled=True))


def test_a_plain_request() -> None:
    call = parse(request("a", "b"))
    assert list(call.request.inputs) == ["a", "b"]
    assert call.request.inputs["b"].tolist() == [[0, 1, 2, 3]]
    assert call.request.outputs == ()
    assert not call.wishes
    assert call.request.sequence is None


TYPED: dict[str, tuple[str, str, list[Any]]] = {
    "BOOL": ("bool_contents", "BOOL", [True, False]),
    "INT8": ("int_contents", "INT8", [-128, 127]),
    "INT16": ("int_contents", "INT16", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", "INT32", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", "INT64", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", "UINT8", [0, 255]),
    "UINT16": ("uint_contents", "UINT16", [0, 65535]),
    "UINT32": ("uint_contents", "UINT32", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", "UINT64", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", "FP32", [0.5, -0.0]),
    "FP64": ("fp64_contents", "FP64", [0.1, -1e300]),
    "BYTES": ("bytes_contents", "BYTES", [b"", b"\0\xff"]),
}


@pytest.mark.parametrize("case", TYPED)
def test_typed_contents(case: str) -> None:
    field, datatype, values = TYPED[case]
    message = service_pb2.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[2, 1])
    getattr(tensor.contents, field).extend(values)
    assert parse(message).request.inputs["x"].tolist() == [[value] for value in values]


def test_parameters() -> None:
    message = request()
    message.parameters["sequence_id"].int64_param = 7
    message.parameters["sequence_start"].bool_param = True
    message.parameters["priority"].uint64_param = 3
    message.parameters["timeout"].int64_param = 250_000
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    values: dict[str, Parameter] = {"b": True, "i": -1, "u": 2**64 - 1, "d": 0.5, "s": "text"}
    message.parameters["b"].bool_param = True
    message.parameters["i"].int64_param = -1
    message.parameters["u"].uint64_param = 2**64 - 1
    message.parameters["d"].double_param = 0.5
    message.parameters["s"].string_param = "text"
    call = parse(message)
    assert call.request.sequence == SequenceStep(7, start=True)
    assert (call.request.priority, call.request.timeout_s) == (3, 0.25)
    assert call.request.parameters == values
    assert call.wants_empty_final


def test_inputs_in_shared_memory_have_no_raw_entry(shared_object: Callable[[bytes], str]) -> None:
    memory = SharedMemory(enabled=True)
    memory.register("region", shared_object(b"skip" + BYTES), 4, 16)
    message = request("a", "b", "c")
    del message.raw_input_contents[1]
    message.inputs[1].parameters["shared_memory_region"].string_param = "region"
    message.inputs[1].parameters["shared_memory_byte_size"].int64_param = 16
    call = parse_infer(message, memory)
    assert all(tensor.tolist() == [[0, 1, 2, 3]] for tensor in call.request.inputs.values())
    del message.raw_input_contents[:]
    del message.inputs[2], message.inputs[0]
    assert parse_infer(message, memory).request.inputs["b"].tolist() == [[0, 1, 2, 3]]
    memory.close()


def in_region(message: Any, name: str = "nowhere") -> Any:
    message.inputs[0].parameters["shared_memory_region"].string_param = name
    message.inputs[0].parameters["shared_memory_byte_size"].int64_param = 16
    return message


def with_output(message: Any, *names: str, classes: int | None = None) -> Any:
    for name in names:
        output = message.outputs.add(name=name)
        if classes is not None:
            output.parameters["classification"].int64_param = classes
    return message


def with_parameter(message: Any, key: str, kind: str, value: Any) -> Any:
    parameter = message.parameters[key]
    if kind:
        setattr(parameter, kind, value)
    return message


def with_contents(message: Any) -> Any:
    message.inputs[0].contents.fp32_contents.extend([0, 1, 2, 3])
    return message


def without_last(message: Any, *, inputs: bool = False) -> Any:
    del (message.inputs if inputs else message.raw_input_contents)[-1]
    return message


def of_type(message: Any, datatype: str) -> Any:
    message.inputs[0].datatype = datatype
    return message


REFUSED = {
    "the same input twice": (request("x", "x"), "input 'x' already exists in request"),
    "the same output twice": (with_output(request(), "y", "y"), "output 'y' already exists"),
    "both forms": (with_contents(request()), "when using raw_input_contents for 'x'"),
    "contents and a region": (
        with_contents(in_region(request(raw=False))),
        "when using shared memory for input 'x'",
    ),
    "too little raw data": (without_last(request("x", "z")), "has 1 entries for 2 inputs"),
    "too much raw data": (without_last(request(), inputs=True), "has 1 entries for 0 inputs"),
    "no class": (with_output(request(), "y", classes=0), "classification must be 1 or more"),
    "BF16 in a field": (
        of_type(with_contents(request(raw=False)), "BF16"),
        "BF16 belongs in raw_input_contents, got fp32_contents",
    ),
    "FP16 nowhere": (of_type(request(raw=False), "FP16"), "belongs in raw_input_contents"),
    "a reserved name": (
        with_parameter(request(), "triton_x", "bool_param", True),
        "'triton_x' is reserved",
    ),
    "a priority in words": (
        with_parameter(request(), "priority", "string_param", "high"),
        "priority must be an integer",
    ),
    "a parameter without a value": (
        with_parameter(request(), "mine", "", None),
        "'mine' has invalid type",
    ),
    "a negative sequence": (
        with_parameter(request(), "sequence_id", "int64_param", -1),
        "sequence_id must be an integer from 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named(case: str) -> None:
    message, problem = REFUSED[case]
    with pytest.raises(InvalidRequest, match=problem):
        parse(message)


def test_an_unknown_region() -> None:
    with pytest.raises(NotFound, match="'nowhere'"):
        parse(in_region(request(raw=False)))


@pytest.mark.parametrize("version", ["", "1", "12345678901234567890"])
def test_what_can_be_a_version(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["one", "-1", "1.0", " 1", "²", "١"])
def test_what_can_be_no_version(version: str) -> None:
    with pytest.raises(InvalidRequest, match="failed to get model version"):
        check_version(version)


def test_wishes() -> None:
    message = with_output(request(), "y", "z")
    message.outputs[0].parameters["classification"].int64_param = 2
    call = parse(message)
    assert call.request.outputs == ("y", "z")
    assert call.wishes == {"y": OutputWish(classification=2)}


def test_a_response_with_parameters() -> None:
    y = np.arange(4, dtype=np.int16).reshape(2, 2)
    parameters: dict[str, Parameter] = {
        "b": True,
        "i": -3,
        "u": 2**64 - 1,
        "d": 1.5,
        "s": "text",
    }
    message = render_infer(InferResponse("m", "2", {"y": y}, "id", parameters))
    assert (message.model_name, message.model_version, message.id) == ("m", "2", "id")
    assert (message.outputs[0].datatype, list(message.outputs[0].shape)) == ("INT16", [2, 2])
    assert message.raw_output_contents[0] == y.tobytes()
    assert message.parameters["b"].bool_param is True
    assert message.parameters["i"].int64_param == -3
    assert message.parameters["u"].uint64_param == 2**64 - 1
    assert message.parameters["d"].double_param == 1.5
    assert message.parameters["s"].string_param == "text"


def test_an_output_in_shared_memory_leaves_an_empty_entry() -> None:
    y = np.arange(4, dtype=np.float32)
    outputs = [
        Placed("a", "FP32", (4,), None, Region("r", 16, 0)),
        Placed("b", "FP32", (4,), y, None),
    ]
    message = render_infer(InferResponse("m", "1", {"a": y, "b": y}), outputs)
    assert [output.name for output in message.outputs] == ["a", "b"]
    assert list(message.raw_output_contents) == [b"", y.tobytes()]
