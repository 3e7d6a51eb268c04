"""A caller's mistakes: a 4xx that names the field, with no path and no traceback in it."""

from __future__ import annotations

import io
import json
import struct
import zlib
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.errors import SlipwayError
from serving.fronts.asgi import HTTP_STATUS, TRITON_STATUS
from serving.fronts.v2_grpc import GRPC_STATUS
from tests.support import RunningServer, call


def post(
    server: RunningServer, path: str, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    status, answer = call(server.http_port, "POST", path, body, headers)
    return status, json.loads(answer)


def infer(**changes: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    request: dict[str, Any] = {"inputs": [tensor]}
    for key, value in changes.items():
        target = request if key in ("inputs", "outputs", "parameters", "id") else tensor
        if value is None:
            del target[key]
        else:
            target[key] = value
    return json.dumps(request).encode()


def with_both() -> bytes:
    document = json.loads(infer())
    document["inputs"][0]["parameters"] = {"binary_data_size": 16}
    return json.dumps(document).encode()


def with_region(**changes: Any) -> bytes:
    document = json.loads(infer(data=None))
    (tensor,) = document["inputs"]
    if "data" in changes:
        tensor["data"] = changes.pop("data")
    parameters = {"shared_memory_region": "a", "shared_memory_byte_size": 16, **changes}
    tensor["parameters"] = {key: value for key, value in parameters.items() if value is not None}
    return json.dumps(document).encode()


BAD_REQUESTS: dict[str, tuple[str, bytes, dict[str, str], int, str]] = {
    "unknown model": ("nobody", infer(), {}, 404, "unknown model: 'nobody' is not found"),
    "unknown version": ("double/versions/7", infer(), {}, 404, "version 7 is not found"),
    "version that is no number": ("double/versions/one", infer(), {}, 404, "Not Found"),
    "wrong name": ("double", infer(name="z"), {}, 400, "unexpected inference input 'z'"),
    "no name": ("double", infer(name=None), {}, 400, "inputs[0] has no 'name'"),
    "wrong type of name": ("double", infer(name=3), {}, 400, "inputs[0].name must be a string"),
    "wrong dtype": ("double", infer(datatype="FP64"), {}, 400, "data-type is 'FP64', but model"),
    "bogus dtype": ("double", infer(datatype="FLOAT"), {}, 400, "invalid datatype for input 'x'"),
    "wrong shape": (
        "double",
        infer(shape=[2, 2]),
        {},
        400,
        "unexpected shape for input 'x' for model 'double'. Expected [-1,4], got [2,2]. NOTE:",
    ),
    "negative shape": ("double", infer(shape=[-1, 4]), {}, 400, "invalid shape for input 'x'"),
    "overflowing shape": ("double", infer(shape=[2**40, 2**40]), {}, 400, "overflows"),
    "too few elements": ("double", infer(data=[1]), {}, 400, "has 1 elements"),
    "no rows": ("double", infer(shape=[0, 4], data=[]), {}, 400, "at least 1"),
    "too many rows": (
        "double",
        infer(shape=[65, 4], data=[0] * 260),
        {},
        400,
        "batch-size must be <= 64",
    ),
    "text among numbers": ("double", infer(data=["1", 2, 3, 4]), {}, 400, "must be numbers"),
    "no data": ("double", infer(data=None), {}, 400, "only one of the following fields"),
    "missing input": ("double", infer(inputs=[]), {}, 400, "missing required input(s) ['x']"),
    "no inputs": ("double", infer(inputs=None), {}, 400, "no 'inputs'"),
    "inputs not a list": ("double", infer(inputs={}), {}, 400, "inputs must be an array"),
    "unknown output": (
        "double",
        infer(outputs=[{"name": "z"}]),
        {},
        400,
        "unexpected inference output 'z'",
    ),
    "id not a string": ("double", infer(id=7), {}, 400, ".id must be a string"),
    "priority not a number": (
        "double",
        infer(parameters={"priority": "high"}),
        {},
        400,
        "parameters.priority must be an integer",
    ),
    "classification that is no number": (
        "double",
        infer(outputs=[{"name": "y", "parameters": {"classification": "2"}}]),
        {},
        400,
        "outputs[0].parameters.classification must be an integer",
    ),
    "output wanted twice": (
        "double",
        infer(outputs=[{"name": "y"}, {"name": "y"}]),
        {},
        400,
        "output 'y' already exists in request",
    ),
    "input given twice": (
        "double",
        infer(inputs=json.loads(infer())["inputs"] * 2),
        {},
        400,
        "input 'x' already exists in request",
    ),
    "shared memory that nobody registered": (
        "double",
        with_region(),
        {},
        404,
        "Unable to find shared memory region: 'a'",
    ),
    "shared memory without a size": (
        "double",
        with_region(shared_memory_byte_size=None),
        {},
        400,
        "shared_memory_byte_size is required",
    ),
    "data and shared memory": (
        "double",
        with_region(data=[1, 2, 3, 4]),
        {},
        400,
        "But set 'data' 'shared_memory_region' for input 'x'",
    ),
    "not JSON": ("double", b"not JSON", {}, 400, "failed to parse the request JSON buffer"),
    "empty": ("double", b"", {}, 400, "failed to parse the request JSON buffer"),
    "JSON but no object": ("double", b"[]", {}, 400, "the request must be a JSON object"),
    "nested without end": ("double", b"[" * 250_000, {}, 400, "failed to parse"),
    "data and binary data": (
        "double",
        (json_part := with_both()) + b"\0" * 16,
        {"Inference-Header-Content-Length": str(len(json_part))},
        400,
        "only one of the following fields",
    ),
    "zero times overflow": (
        "double",
        infer(shape=[0, 2**62, 2**62], data=[]),
        {},
        400,
        "overflows",
    ),
    "a name that is a deep tree": (
        "double",
        b'{"inputs":[{"name":' + b"[" * 900 + b"]" * 900 + b"}]}",
        {},
        400,
        "inputs[0].name must be a string, got an array",
    ),
    "many empty arrays": (
        "double",
        infer(data=[[] for _ in range(100_000)]),
        {},
        400,
        "has 100000 elements or more",
    ),
    "half a surrogate pair, and NaN": (
        "double",
        b'{"id":"\\ud800","inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}',
        {},
        400,
        "failed to parse",
    ),
    "a timeout of 400 digits, and NaN": (
        "double",
        b'{"parameters":{"timeout":1' + b"0" * 400 + b'},"inputs":[NaN]}',
        {},
        400,
        "failed to parse",
    ),
    "header beyond the body": (
        "double",
        infer(),
        {"Inference-Header-Content-Length": "9999"},
        400,
        "inference header size should be in range",
    ),
    "header that is no number": (
        "double",
        infer(),
        {"Inference-Header-Content-Length": "-1"},
        400,
        "inference header size should be in range",
    ),
    "compressed": ("double", infer(), {"Content-Encoding": "br"}, 501, "Content-Encoding 'br'"),
    "not as compressed as it says": (
        "double",
        infer(),
        {"Content-Encoding": "gzip"},
        400,
        "not gzip data",
    ),
    "raw bytes of another size": (
        "double",
        b"\0" * 15,
        {"Inference-Header-Content-Length": "0"},
        400,
        "takes 16 bytes, got 15",
    ),
}


def binary_request(declared: int, sent: int) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "x",
        "shape": [1, 4],
        "datatype": "FP32",
        "parameters": {"binary_data_size": declared},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + b"\0" * sent, {"Inference-Header-Content-Length": str(len(header))}


for name, declared, sent, problem in (
    ("truncated binary", 16, 7, "unexpected size for input 'x'"),
    ("too much binary", 16, 17, "unexpected additional input data"),
    ("binary of another size", 12, 12, "takes 16 bytes, got 12"),
    ("negative binary size", -4, 12, "binary_data_size must be 0 or more, got -4"),
):
    body, headers = binary_request(declared, sent)
    BAD_REQUESTS[name] = ("double", body, headers, 400, problem)


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_http_names_what_is_wrong(server: RunningServer, case: str) -> None:
    model, body, headers, status, problem = BAD_REQUESTS[case]
    got_status, answer = post(server, f"/v2/models/{model}/infer", body, headers)
    print(f"{case}: {got_status} {answer['error']}")
    assert got_status == status
    assert problem in answer["error"]
    assert_tells_nothing_private(answer["error"])


def png(size: tuple[int, int], mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header promises that many pixels, with next to none behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


BAD_IMAGES = {
    "empty": (b"", 400, "the body is empty"),
    "text": (b"I am not an image", 400, "the body is not an image"),
    "pdf": (b"%PDF-1.7", 400, "the body is not an image"),
    "1 pixel": (png((1, 1)), 400, "1×1 pixels; expected at least 4"),
    "100 megapixels": (png((10_000, 10_000), "1"), 413, "100 megapixels; the limit is 25"),
    "a promise of 4 gigapixels": (png_header(65_000, 65_000), 413, "megapixels"),
    "cut short": (png((64, 64), "RGB")[:60], 400, "damaged or cut short"),
    "less than its header says": (png_header(400, 400), 400, "damaged or cut short"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_what_is_no_usable_image(server: RunningServer, case: str) -> None:
    body, status, problem = BAD_IMAGES[case]
    got_status, answer = post(server, "/models/digits", body, {"Content-Type": "image/png"})
    print(f"{case}: {got_status} {answer['error']}")
    assert got_status == status
    assert problem in answer["error"]
    assert_tells_nothing_private(answer["error"])


BAD_TASK_CALLS = {
    "no inputs": (b"{}", 400, "expected a JSON object with 'inputs'"),
    "inputs no base64": (b'{"inputs": "#!"}', 400, "a string in base64"),
    "inputs no string": (b'{"inputs": 3}', 400, "a string in base64"),
    "not JSON": (b"{", 400, "the body is not JSON"),
    "unknown parameter": (
        b'{"inputs": "AAAA", "parameters": {"topk": 1}}',
        400,
        "parameters.topk: Extra inputs are not permitted",
    ),
    "top_k of 0": (
        b'{"inputs": "AAAA", "parameters": {"top_k": 0}}',
        400,
        "parameters.top_k: Input should be greater than 0, got 0",
    ),
}


@pytest.mark.parametrize("case", BAD_TASK_CALLS)
def test_task_calls_that_do_not_fit(server: RunningServer, case: str) -> None:
    body, status, problem = BAD_TASK_CALLS[case]
    headers = {"Content-Type": "application/json"}
    got_status, answer = post(server, "/models/digits", body, headers)
    assert (got_status, problem in answer["error"]) == (status, True), answer
    assert_tells_nothing_private(answer["error"])


def test_a_model_without_a_task_says_how_to_ask_it(server: RunningServer) -> None:
    status, answer = post(server, "/models/double", b"")
    assert status == 501
    assert "/v2/models/double/infer" in answer["error"]
    assert post(server, "/models/nobody", b"")[0] == 404


def test_a_body_over_the_limit_is_refused(server: RunningServer) -> None:
    status, answer = post(server, "/v2/models/double/infer", b" " * (64 * 2**20 + 1))
    assert status == 413
    assert "over the limit of 67108864 bytes" in answer["error"]


def grpc_request(**changes: Any) -> Any:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])
    request = service_pb2.ModelInferRequest(model_name="double", inputs=[tensor])
    request.raw_input_contents.append(b"\0" * 16)
    for key, value in changes.items():
        if key == "raw":
            del request.raw_input_contents[:]
            request.raw_input_contents.extend(value)
        elif key == "contents":
            request.inputs[0].contents.fp64_contents.append(value)
        elif key == "shape":
            request.inputs[0].shape[:] = value
        elif hasattr(tensor, key):
            setattr(request.inputs[0], key, value)
        else:
            setattr(request, key, value)
    return request


BAD_MESSAGES = {
    "zero times overflow": (
        grpc_request(shape=[0, 2**62, 2**62], raw=[b""]),
        "INVALID_ARGUMENT",
        "overflows",
    ),
    "a very long name": (grpc_request(name="z" * 20_000), "INVALID_ARGUMENT", "unexpected"),
    "a long name of wide letters": (
        grpc_request(name="\N{ROCKET}" * 20_000),
        "INVALID_ARGUMENT",
        "unexpected",
    ),
    "unknown model": (grpc_request(model_name="nobody"), "NOT_FOUND", "unknown model"),
    "unknown version": (grpc_request(model_version="7"), "NOT_FOUND", "version 7"),
    "wrong name": (grpc_request(name="z"), "INVALID_ARGUMENT", "unexpected inference input 'z'"),
    "wrong dtype": (grpc_request(datatype="INT32"), "INVALID_ARGUMENT", "data-type is 'INT32'"),
    "wrong shape": (grpc_request(shape=[4, 1]), "INVALID_ARGUMENT", "unexpected shape"),
    "too many rows": (
        grpc_request(shape=[65, 4], raw=[b"\0" * 65 * 16]),
        "INVALID_ARGUMENT",
        "batch-size must be <= 64",
    ),
    "truncated binary": (grpc_request(raw=[b"\0" * 15]), "INVALID_ARGUMENT", "got 15"),
    "too many tensors": (grpc_request(raw=[b"\0" * 16] * 2), "INVALID_ARGUMENT", "has 2 entries"),
    "nothing": (grpc_request(raw=[]), "INVALID_ARGUMENT", "unable to find data"),
    "both forms": (grpc_request(contents=1.0), "INVALID_ARGUMENT", "contents field must not"),
    "wrong field": (grpc_request(raw=[], contents=1.0), "INVALID_ARGUMENT", "fp32_contents"),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_grpc_names_what_is_wrong(server: RunningServer, case: str) -> None:
    message, status, problem = BAD_MESSAGES[case]
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refusal:
            stub.ModelInfer(message)
    assert refusal.value.code().name == status
    details = str(refusal.value.details())
    assert problem in details
    assert_tells_nothing_private(details)


def assert_tells_nothing_private(message: str) -> None:
    assert "Traceback" not in message
    assert ".py" not in message
    assert not any(word.startswith("/") and not word.startswith("/v2") for word in message.split())


fields = st.sampled_from(
    ["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id", "timeout"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(fields, children, max_size=4),
    max_leaves=12,
)
tensor_like = st.fixed_dictionaries(
    {
        "name": st.just("x"),
        "shape": json_values | st.lists(st.integers(0, 5), max_size=3),
        "datatype": st.sampled_from(["FP32", "BYTES", "INT8", "BOOL", "x"]) | json_values,
        "data": json_values,
    }
)
documents = json_values | st.fixed_dictionaries(
    {"inputs": st.lists(tensor_like, max_size=2)},
    optional={"id": json_values, "parameters": json_values, "outputs": json_values},
)


@given(documents.map(json.dumps).map(str.encode) | st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_body_makes_the_server_fail(server: RunningServer, body: bytes) -> None:
    status, answer = post(server, "/v2/models/double/infer", body)
    assert status in (200, 400, 501), answer


def test_grpc_answers_unimplemented_quietly(server: RunningServer) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        ask: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelDance")
        with pytest.raises(grpc.RpcError) as refusal:
            ask(b"")
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert [line for line in server.log if "NotImplementedError" in str(line)] == []


def every_code() -> set[str]:
    def below(kind: type[SlipwayError]) -> set[str]:
        return {kind.code}.union(*(below(child) for child in kind.__subclasses__()))

    return below(SlipwayError)


def test_every_error_code_has_a_status_on_both_fronts() -> None:
    assert set(HTTP_STATUS) == set(TRITON_STATUS) == set(GRPC_STATUS) == every_code()
