"""What is asked over HTTP, by topic."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from tests.support import sample
from tests.triton.models import DATATYPES, PYTHON_MODEL, identity_graph, onnx_file
from tests.triton.wire import HEADER, Http, Own, Step, Together

Topic = Mapping[str, Step | tuple[Step, ...]]
Json = dict[str, Any]

SHARED_KEY = "/slipway_differential"
SHARED_BYTES = 8192
PAGE = 4096
"""Triton maps a region as it is, so that one can begin at a page only."""


def get(path: str, **headers: str) -> Http:
    return Http("GET", path, headers=headers)


def post(path: str, document: Any = None, **headers: str) -> Http:
    """A document is sent as JSON, bytes as they are."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Http("POST", path, b"" if document is None else body, headers)


def tensor(name: str, datatype: str, shape: Any, data: Any = None, **parameters: Any) -> Json:
    result = {"name": name, "datatype": datatype, "shape": shape}
    if parameters:
        result["parameters"] = parameters
    if data is not None:
        result["data"] = data
    return result


def infer(model: str, inputs: Any, outputs: Any = None, **others: Any) -> Http:
    document = {"inputs": inputs} | others
    if outputs is not None:
        document["outputs"] = outputs
    return post(f"/v2/models/{model}/infer", document)


def binary(
    model: str, document: Json, *contents: bytes, header: str | None = None, **headers: str
) -> Http:
    text = json.dumps(document).encode()
    length = str(len(text)) if header is None else header
    body = text + b"".join(contents)
    return Http("POST", f"/v2/models/{model}/infer", body, {HEADER: length} | headers)


def raw(model: str, content: bytes) -> Http:
    return Http("POST", f"/v2/models/{model}/infer", content, {HEADER: "0"})


def without(document: Json, *keys: str) -> Json:
    return {key: value for key, value in document.items() if key not in keys}


def content_of(values: np.ndarray[Any, Any]) -> bytes:
    """A tensor as the protocol puts it in bytes."""
    return framed(values.flat) if values.dtype == object else values.tobytes()


def framed(elements: Iterable[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def values_of(datatype: str) -> np.ndarray[Any, Any]:
    if datatype == "BF16":
        return np.array([[0.0, 1.5, -2.0, 3e38]], ml_dtypes.bfloat16)
    return sample(datatype, (1, 4))


ROW = list(range(16))
A, B = tensor("INPUT0", "INT32", [1, 16], ROW), tensor("INPUT1", "INT32", [1, 16], ROW)
ROW_BYTES = np.arange(16, dtype=np.int32).tobytes()
A_BINARY = tensor("INPUT0", "INT32", [1, 16], binary_data_size=64)
B_BINARY = tensor("INPUT1", "INT32", [1, 16], binary_data_size=64)
SIMPLE = infer("simple", [A, B])
FP32 = tensor("INPUT", "FP32", [1, 1], [1.5])


def fp32(shape: Any, data: Any = None, **parameters: Any) -> list[Json]:
    return [tensor("INPUT", "FP32", shape, data, **parameters)]


def a(**changes: Any) -> Http:
    """The request to `simple` with fields of its first input changed."""
    return infer("simple", [A | changes, B])


HEALTH: Topic = {
    "live": get("/v2/health/live"),
    "ready": get("/v2/health/ready"),
    "HEAD": Http("HEAD", "/v2/health/live"),
    "POST": Http("POST", "/v2/health/live"),
    "trailing slash": get("/v2/health/live/"),
    "query string": get("/v2/health/ready?verbose=1"),
    "unknown kind": get("/v2/health/alive"),
    "model": get("/v2/models/simple/ready"),
    "model, version": get("/v2/models/simple/versions/1/ready"),
    "unknown model": get("/v2/models/nobody/ready"),
    "unknown version": get("/v2/models/simple/versions/9/ready"),
    "model not loaded": get("/v2/models/spare/ready"),
    "version that is not a number": get("/v2/models/simple/versions/one/ready"),
}

METADATA: Topic = {
    "model": get("/v2/models/simple"),
    "model, version": get("/v2/models/simple/versions/1"),
    "several versions": get("/v2/models/versions"),
    "several versions, one": get("/v2/models/versions/versions/1"),
    "dynamic shape": get("/v2/models/flexible"),
    "strings": get("/v2/models/identity-BYTES"),
    "no batching": get("/v2/models/plain"),
    "optional input": get("/v2/models/optional"),
    "decoupled": get("/v2/models/decoupled"),
    "unknown model": get("/v2/models/nobody"),
    "unknown version": get("/v2/models/simple/versions/9"),
    "version 0": get("/v2/models/simple/versions/0"),
    "version beyond 64 bits": get("/v2/models/simple/versions/99999999999999999999"),
    "negative version": get("/v2/models/simple/versions/-1"),
    "model not loaded": get("/v2/models/spare"),
    "escaped name": get("/v2/models/sim%70le"),
    "POST": post("/v2/models/simple", {}),
    "DELETE": Http("DELETE", "/v2/models/simple"),
    "trailing slash": get("/v2/models/simple/"),
}

DESCRIPTION: Topic = {
    "server": get("/v2"),
    "server, trailing slash": get("/v2/"),
    "server, POST": post("/v2", {}),
    "config": get("/v2/models/simple/config"),
    "config, version": get("/v2/models/simple/versions/1/config"),
    "config, version policy": get("/v2/models/versions/config"),
    "config, dynamic batching": get("/v2/models/hurried/config"),
    "config, unknown model": get("/v2/models/nobody/config"),
    "config, unknown version": get("/v2/models/simple/versions/9/config"),
    "config, model not loaded": get("/v2/models/spare/config"),
    "config, POST": post("/v2/models/simple/config", {}),
    "stats": (SIMPLE, get("/v2/models/simple/stats")),
    "stats, version": (SIMPLE, get("/v2/models/simple/versions/1/stats")),
    "stats, all": (SIMPLE, get("/v2/models/stats")),
    "stats, unknown model": get("/v2/models/nobody/stats"),
    "stats, unknown version": get("/v2/models/simple/versions/9/stats"),
    "unknown path": get("/v2/nothing"),
    "unknown path of a model": get("/v2/models/simple/nothing"),
    "outside": get("/v3"),
}

INDEX: Topic = {
    "all": post("/v2/repository/index"),
    "empty object": post("/v2/repository/index", {}),
    "ready": post("/v2/repository/index", {"ready": True}),
    "not ready": post("/v2/repository/index", {"ready": False}),
    "named repository": post("/v2/repository/mine/index", {}),
    "GET": get("/v2/repository/index"),
    "malformed": post("/v2/repository/index", b"{"),
    "ready is not a bool": post("/v2/repository/index", {"ready": "yes"}),
    "array": post("/v2/repository/index", []),
}

INFER: Topic = {
    "all outputs": SIMPLE,
    "one output": infer("simple", [A, B], [{"name": "OUTPUT1"}]),
    "outputs in another order": infer("simple", [A, B], [{"name": "OUTPUT1"}, {"name": "OUTPUT0"}]),
    "inputs in another order": infer("simple", [B, A]),
    "no outputs listed": infer("simple", [A, B], []),
    "same output twice": infer("simple", [A, B], [{"name": "OUTPUT1"}, {"name": "OUTPUT1"}]),
    "id": infer("simple", [A, B], id="forty-two"),
    "empty id": infer("simple", [A, B], id=""),
    "batch of 8": infer(
        "simple",
        [
            tensor("INPUT0", "INT32", [8, 16], ROW * 8),
            tensor("INPUT1", "INT32", [8, 16], ROW * 8),
        ],
    ),
    "nested data": infer("simple", [A | {"data": [ROW]}, B]),
    "nested beside the shape": infer("plain", fp32([2, 3], [[1, 2], [3, 4], [5, 6]])),
    "unevenly nested": infer("plain", fp32([2, 3], [[1, 2, 3, 4], 5, [6]])),
    "deeply nested": infer("plain", fp32([2, 3], [[[[[1, 2, 3, 4, 5, 6]]]]])),
    "two dynamic dimensions": infer("flexible", fp32([2, 2], [1, 2, 3, 4])),
    "zero-size dimension": infer("identity-FP32", fp32([1, 0], [])),
    "zero-size dimension, no batching": infer("flexible", fp32([0, 3], [])),
    "zero-size strings": infer("identity-BYTES", [tensor("INPUT", "BYTES", [1, 0], [])]),
    "batch of 0": infer("identity-FP32", fp32([0, 4], [])),
    "scalar": infer("plain", fp32([], [1.0])),
    "version": post("/v2/models/simple/versions/1/infer", {"inputs": [A, B]}),
    "older version": post("/v2/models/versions/versions/1/infer", {"inputs": [FP32]}),
    "latest version": infer("versions", [FP32]),
    "unknown version": post("/v2/models/simple/versions/9/infer", {"inputs": [A, B]}),
    "version that is not a number": post("/v2/models/simple/versions/x/infer", {"inputs": [A, B]}),
    "unknown model": infer("nobody", [A, B]),
    "model not loaded": infer("spare", fp32([1, 4], [1, 2, 3, 4])),
    "model fails": infer("raises", [FP32]),
    "decoupled model": infer("decoupled", [tensor("INPUT", "INT32", [1], [5])]),
    "optional input given": infer(
        "optional",
        [tensor("REQUIRED", "FP32", [1], [1]), tensor("OPTIONAL", "FP32", [1], [2])],
    ),
    "optional input left out": infer("optional", [tensor("REQUIRED", "FP32", [1], [1])]),
    "required input left out": infer("optional", [tensor("OPTIONAL", "FP32", [1], [1])]),
    "GET": get("/v2/models/simple/infer"),
    "PUT": Http("PUT", "/v2/models/simple/infer", SIMPLE.body),
    "trailing slash": post("/v2/models/simple/infer/", SIMPLE.body),
    "query string": post("/v2/models/simple/infer?x=1", SIMPLE.body),
    "unrelated content type": post(
        "/v2/models/simple/infer", SIMPLE.body, **{"Content-Type": "text/csv"}
    ),
    "chunked": post("/v2/models/simple/infer", SIMPLE.body, **{"Transfer-Encoding": "chunked"}),
    "expects to continue": post("/v2/models/simple/infer", SIMPLE.body, Expect="100-continue"),
}

VALUES: Topic = {
    "NaN and infinities": infer(
        "identity-FP32", fp32([1, 3], [float("nan"), float("inf"), float("-inf")])
    ),
    "negative zero and denormal": infer(
        "identity-FP64", [tensor("INPUT", "FP64", [1, 3], [-0.0, 5e-324, 1.7976931348623157e308])]
    ),
    "beyond the largest float": infer("identity-FP32", fp32([1, 1], [1e300])),
    "integer for a float": infer("identity-FP32", fp32([1, 2], [1, -2])),
    "fraction for an integer": a(data=[1.5] * 16),
    "whole float for an integer": a(data=[1.0] * 16),
    "bool for an integer": a(data=[True] * 16),
    "string for an integer": a(data=["1"] * 16),
    "null for an integer": a(data=[None] * 16),
    "object for an integer": a(data=[{}] * 16),
    "integer beyond the type": a(data=[2**31] * 16),
    "integer beyond 64 bits": a(data=[2**64] * 16),
    "small integer beyond the type": infer(
        "identity-INT8", [tensor("INPUT", "INT8", [1, 1], [200])]
    ),
    "negative for an unsigned": infer("identity-UINT8", [tensor("INPUT", "UINT8", [1, 1], [-1])]),
    "number for a bool": infer("identity-BOOL", [tensor("INPUT", "BOOL", [1, 2], [1, 0])]),
    "string for a float": infer("identity-FP32", fp32([1, 1], ["1.5"])),
    "number for a string": infer("identity-BYTES", [tensor("INPUT", "BYTES", [1, 1], [1])]),
    "characters of all kinds": infer(
        "identity-BYTES", [tensor("INPUT", "BYTES", [1, 3], ["größe", '"\\\n\t\0', "\U0001f6a2"])]
    ),
    "half a surrogate pair": post(
        "/v2/models/identity-BYTES/infer",
        b'{"inputs":[{"name":"INPUT","datatype":"BYTES","shape":[1,1],"data":["\\ud800"]}]}',
    ),
    "bytes that are not text, as JSON": binary(
        "identity-BYTES",
        {"inputs": [tensor("INPUT", "BYTES", [1, 1], binary_data_size=6)]},
        framed([b"\xff\xfe"]),
    ),
    "FP16 to JSON": binary(
        "identity-FP16", {"inputs": [tensor("INPUT", "FP16", [1, 2], binary_data_size=4)]}, bytes(4)
    ),
    "BF16 to JSON": binary(
        "identity-BF16", {"inputs": [tensor("INPUT", "BF16", [1, 2], binary_data_size=4)]}, bytes(4)
    ),
}

MALFORMED: Topic = {
    "empty body": post("/v2/models/simple/infer"),
    "not JSON": post("/v2/models/simple/infer", b"{"),
    "text after JSON": post("/v2/models/simple/infer", SIMPLE.body + b"x"),
    "space around JSON": post("/v2/models/simple/infer", b" \n" + SIMPLE.body + b"\n "),
    "byte order mark": post("/v2/models/simple/infer", b"\xef\xbb\xbf" + SIMPLE.body),
    "not UTF-8": post("/v2/models/simple/infer", b'{"id":"\xff","inputs":[]}'),
    "array": post("/v2/models/simple/infer", []),
    "string": post("/v2/models/simple/infer", "x"),
    "null": post("/v2/models/simple/infer", b"null"),
    "no inputs": post("/v2/models/simple/infer", {}),
    "inputs null": infer("simple", None),
    "inputs an object": infer("simple", A),
    "inputs empty": infer("simple", []),
    "input a string": infer("simple", ["INPUT0"]),
    "unknown key": infer("simple", [A, B], nonsense={"x": [1]}),
    "unknown key of an input": a(nonsense=1),
    "name missing": infer("simple", [without(A, "name"), B]),
    "name a number": a(name=1),
    "name empty": a(name=""),
    "datatype missing": infer("simple", [without(A, "datatype"), B]),
    "datatype a number": a(datatype=1),
    "datatype unknown": a(datatype="INT33"),
    "datatype in lower case": a(datatype="int32"),
    "datatype of the configuration": a(datatype="TYPE_INT32"),
    "shape missing": infer("simple", [without(A, "shape"), B]),
    "shape a number": a(shape=16),
    "shape of strings": a(shape=["1", "16"]),
    "shape of floats": a(shape=[1.0, 16.0]),
    "shape of bools": a(shape=[True, 16]),
    "shape null": a(shape=None),
    "data missing": infer("simple", [without(A, "data"), B]),
    "data null": infer("simple", [A | {"data": None}, B]),
    "data a number": a(data=1),
    "data a string": a(data="1"),
    "data an object": a(data={"0": 1}),
    "parameters an array": infer("simple", [A, B], parameters=[]),
    "parameters null": infer("simple", [A, B], parameters=None),
    "parameters of an input an array": a(parameters=[]),
    "outputs an object": infer("simple", [A, B], {"name": "OUTPUT0"}),
    "output a string": infer("simple", [A, B], ["OUTPUT0"]),
    "output without a name": infer("simple", [A, B], [{}]),
    "parameters of an output an array": infer(
        "simple", [A, B], [{"name": "OUTPUT0", "parameters": []}]
    ),
    "id a number": infer("simple", [A, B], id=7),
    "id null": infer("simple", [A, B], id=None),
}

INVALID: Topic = {
    "missing input": infer("simple", [A]),
    "unknown input": infer("simple", [A, B | {"name": "INPUT2"}]),
    "one input too many": infer("simple", [A, B, B | {"name": "INPUT2"}]),
    "same input twice": infer("simple", [A, A]),
    "unknown output": infer("simple", [A, B], [{"name": "OUTPUT2"}]),
    "wrong datatype": a(datatype="FP32", data=[0.5] * 16),
    "too few elements": a(data=ROW[:15]),
    "too many elements": a(data=[*ROW, 16]),
    "no elements": a(data=[]),
    "wrong size": a(shape=[1, 8], data=ROW[:8]),
    "no batch dimension": a(shape=[16]),
    "one dimension too many": a(shape=[1, 1, 16]),
    "no dimensions": a(shape=[]),
    "wrong size, no batching": infer("plain", fp32([3, 2], [1, 2, 3, 4, 5, 6])),
    "batch dimension, no batching": infer("plain", fp32([1, 2, 3], [1, 2, 3, 4, 5, 6])),
    "negative dimension": a(shape=[1, -16]),
    "two negative dimensions": a(shape=[-1, -16]),
    "minus one": infer("identity-FP32", fp32([1, -1], [1])),
    "dimension beyond 64 bits": a(shape=[1, 2**64]),
    "dimension beyond 63 bits": a(shape=[1, 2**63]),
    # As JSON, such shapes end Triton 2.51.
    "product beyond 64 bits": binary(
        "flexible", {"inputs": fp32([2**32, 2**32], binary_data_size=4)}, bytes(4)
    ),
    "bytes beyond 64 bits": binary(
        "flexible", {"inputs": fp32([2**33 + 1, 2**31], binary_data_size=4)}, bytes(4)
    ),
    "batch of 9": infer(
        "simple",
        [tensor("INPUT0", "INT32", [9, 16], ROW * 9), tensor("INPUT1", "INT32", [9, 16], ROW * 9)],
    ),
    "batches differ": infer("simple", [A, tensor("INPUT1", "INT32", [2, 16], ROW * 2)]),
}

BINARY_OUT = {"parameters": {"binary_data_output": True}}
BINARY: Topic = {
    "in": binary("simple", {"inputs": [A_BINARY, B_BINARY]}, ROW_BYTES, ROW_BYTES),
    "out": infer("simple", [A, B], **BINARY_OUT),
    "in and out": binary(
        "simple", {"inputs": [A_BINARY, B_BINARY]} | BINARY_OUT, ROW_BYTES, ROW_BYTES
    ),
    "one input of two": binary("simple", {"inputs": [A, B_BINARY]}, ROW_BYTES),
    "one output of two": infer(
        "simple",
        [A, B],
        [{"name": "OUTPUT0", "parameters": {"binary_data": True}}, {"name": "OUTPUT1"}],
    ),
    "output overrides request": infer(
        "simple",
        [A, B],
        [{"name": "OUTPUT0", "parameters": {"binary_data": False}}, {"name": "OUTPUT1"}],
        **BINARY_OUT,
    ),
    "zero-size out": infer("identity-FP32", fp32([1, 0], []), **BINARY_OUT),
    "zero-size in": binary("identity-FP32", {"inputs": fp32([1, 0], binary_data_size=0)}),
    "header without binary data": Http(
        "POST", "/v2/models/simple/infer", SIMPLE.body, {HEADER: str(len(SIMPLE.body))}
    ),
    "no header": Http(
        "POST",
        "/v2/models/simple/infer",
        json.dumps({"inputs": [A_BINARY, B]}).encode() + ROW_BYTES,
    ),
    "size without binary data": infer("simple", [A_BINARY, B]),
    "both data and size": binary("simple", {"inputs": [A_BINARY | {"data": ROW}, B]}, ROW_BYTES),
    "header beyond the body": binary("simple", {"inputs": [A, B]}, header="99999"),
    "header one beyond the body": binary(
        "simple", {"inputs": [A, B]}, header=str(len(SIMPLE.body) + 1)
    ),
    "header negative": binary("simple", {"inputs": [A, B]}, header="-1"),
    "header not a number": binary("simple", {"inputs": [A, B]}, header="ten"),
    "header starts as a number": binary("simple", {"inputs": [A, B]}, header="10x"),
    "header beyond 64 bits": binary("simple", {"inputs": [A, B]}, header="99999999999999999999"),
    "header empty": binary("simple", {"inputs": [A, B]}, header=""),
    "header cuts JSON": binary("simple", {"inputs": [A, B]}, header="10"),
    "truncated": binary("simple", {"inputs": [A_BINARY, B_BINARY]}, ROW_BYTES, ROW_BYTES[:-1]),
    "excess": binary("simple", {"inputs": [A_BINARY, B_BINARY]}, ROW_BYTES, ROW_BYTES, b"x"),
    "excess after JSON data": binary("simple", {"inputs": [A, B]}, b"xx"),
    "size too small": binary(
        "simple", {"inputs": [A_BINARY | {"parameters": {"binary_data_size": 60}}, B]}, bytes(60)
    ),
    "size too large": binary(
        "simple", {"inputs": [A_BINARY | {"parameters": {"binary_data_size": 68}}, B]}, bytes(68)
    ),
    "size 0": binary("simple", {"inputs": [A_BINARY | {"parameters": {"binary_data_size": 0}}, B]}),
    "size negative": binary(
        "simple", {"inputs": [A_BINARY | {"parameters": {"binary_data_size": -64}}, B]}, bytes(64)
    ),
    "size a string": binary(
        "simple", {"inputs": [A_BINARY | {"parameters": {"binary_data_size": "64"}}, B]}, bytes(64)
    ),
    "size a fraction": binary(
        "simple", {"inputs": [A_BINARY | {"parameters": {"binary_data_size": 64.5}}, B]}, bytes(64)
    ),
    "binary_data a string": infer(
        "simple", [A, B], [{"name": "OUTPUT0", "parameters": {"binary_data": "true"}}]
    ),
    "binary_data a number": infer(
        "simple", [A, B], [{"name": "OUTPUT0", "parameters": {"binary_data": 1}}]
    ),
    "binary_data_output a string": infer("simple", [A, B], parameters={"binary_data_output": "x"}),
    "unknown parameter of an output": infer(
        "simple", [A, B], [{"name": "OUTPUT0", "parameters": {"color": "red"}}]
    ),
    "raw": raw("identity-FP32", np.arange(4, dtype=np.float32).tobytes()),
    "raw, no batching": raw("plain", np.arange(6, dtype=np.float32).tobytes()),
    "raw string": raw("text", b"no length in front"),
    "raw empty string": raw("text", b""),
    "raw strings of any number": raw("identity-BYTES", b"abc"),
    "raw of no bytes": raw("identity-FP32", b""),
    "raw of half an element": raw("identity-FP32", bytes(6)),
    "raw of the wrong size": raw("plain", bytes(20)),
    "raw, two dynamic dimensions": raw("flexible", bytes(16)),
    "raw, two inputs": raw("simple", ROW_BYTES),
    "raw, unknown model": raw("nobody", bytes(4)),
}


def strings(content: bytes, shape: list[int], *, out: bool = True) -> Http:
    source = tensor("INPUT", "BYTES", shape, binary_data_size=len(content))
    return binary("identity-BYTES", {"inputs": [source]} | (BINARY_OUT if out else {}), content)


STRINGS: Topic = {
    "several": strings(framed([b"", b"a", b"\0\xff"]), [1, 3]),
    "to JSON": strings(framed([b"", b"a", "ß".encode()]), [1, 3], out=False),
    "from JSON": infer(
        "identity-BYTES", [tensor("INPUT", "BYTES", [1, 2], ["", "ß"])], **BINARY_OUT
    ),
    "none": strings(b"", [1, 0]),
    "one too few": strings(framed([b"a"]), [1, 2]),
    "one too many": strings(framed([b"a"] * 3), [1, 2]),
    "length cut": strings(framed([b"a"]) + b"\1\0", [1, 2]),
    "element cut": strings(framed([b"abc"])[:-1], [1, 1]),
    "length beyond the data": strings(b"\xff\xff\xff\xffab", [1, 1]),
    "no data": strings(b"", [1, 1]),
}


def typed(datatype: str) -> dict[str, Step]:
    values = values_of(datatype)
    content = content_of(values)
    source = tensor("INPUT", datatype, [1, 4], binary_data_size=len(content))
    sent: list[Any] = [
        value.decode() if isinstance(value, bytes) else value for value in values.flatten().tolist()
    ]
    return {
        f"{datatype}, binary": binary(
            f"identity-{datatype}", {"inputs": [source]} | BINARY_OUT, content
        ),
        f"{datatype}, JSON": infer(
            f"identity-{datatype}", [tensor("INPUT", datatype, [1, 4], sent)]
        ),
    }


TYPES: Topic = {name: case for each in DATATYPES for name, case in typed(each).items()}


def classify(k: Any, model: str = "labels", rows: int = 1, **parameters: Any) -> Http:
    values: list[float] = [0.5, 3.25, -1.0, 1e-5] * rows
    shape = [rows, 4]
    datatype = "FP32"
    if model == "plain-labels":
        datatype, shape, values = "INT32", [4], [5, -1, 7, 5]
    output = {"name": "OUTPUT", "parameters": {"classification": k} | parameters}
    return infer(model, [tensor("INPUT", datatype, shape, values)], [output])


CLASSIFICATION: Topic = {
    "the best": classify(1),
    "two": classify(2),
    "all": classify(4),
    "more than there are": classify(10),
    "off": classify(0),
    "batch of 3": classify(2, rows=3),
    "binary": classify(2, binary_data=True),
    "without labels or batching": classify(2, "plain-labels"),
    "equal values": infer(
        "labels",
        fp32([1, 4], [1, 2, 2, 1]),
        [{"name": "OUTPUT", "parameters": {"classification": 4}}],
    ),
    "large and small values": infer(
        "labels",
        fp32([1, 4], [1e30, -1e-30, 123456.789, 0.1]),
        [{"name": "OUTPUT", "parameters": {"classification": 4}}],
    ),
    "two outputs": infer(
        "simple",
        [A, B],
        [{"name": "OUTPUT0", "parameters": {"classification": 3}}, {"name": "OUTPUT1"}],
    ),
    "negative": classify(-1),
    "string": classify("2"),
    "fraction": classify(1.5),
    "bool": classify(True),
    "beyond 64 bits": classify(2**64),
}


def with_parameters(**parameters: Any) -> Http:
    return infer("simple", [A, B], parameters=parameters)


def queued(model: str, **parameters: Any) -> Http:
    return infer(model, [FP32], parameters=parameters)


PARAMETERS: Topic = {
    "string": with_parameters(color="red"),
    "integer": with_parameters(count=3),
    "negative integer": with_parameters(count=-3),
    "integer beyond 63 bits": with_parameters(count=2**63),
    "bool": with_parameters(fast=True),
    "double": with_parameters(ratio=0.5),
    "null": with_parameters(nothing=None),
    "array": with_parameters(many=[1]),
    "object": with_parameters(deep={"x": 1}),
    "reserved prefix": with_parameters(triton_thing=1),
    "reserved headers": with_parameters(headers="x"),
    "of an input": a(parameters={"color": "red"}),
    "of an input, array": a(parameters={"color": ["red"]}),
    "priority": queued("hurried", priority=1),
    "priority beyond the levels": queued("hurried", priority=9),
    "priority without levels": with_parameters(priority=1),
    "priority 0": with_parameters(priority=0),
    "priority a string": with_parameters(priority="1"),
    "priority a fraction": with_parameters(priority=1.5),
    "priority negative": with_parameters(priority=-1),
    "timeout": with_parameters(timeout=1_000_000),
    "timeout a string": with_parameters(timeout="1"),
    "timeout negative": with_parameters(timeout=-1),
    "sequence_id without sequences": with_parameters(sequence_id=5),
    "sequence_start without sequences": with_parameters(sequence_start=True),
    "sequence_start a string": with_parameters(sequence_start="yes"),
    "queue full": Together((queued("crowded"),) * 8),
    "timeout in the queue": Together((queued("hurried"),) * 5),
    "shorter timeout of the request": Together((queued("hurried", timeout=20_000),) * 3),
}


def compressed(encoding: str, body: bytes, **headers: str) -> Http:
    return post("/v2/models/simple/infer", body, **{"Content-Encoding": encoding}, **headers)


def accepting(encodings: str) -> Http:
    return post("/v2/models/simple/infer", SIMPLE.body, **{"Accept-Encoding": encodings})


BINARY_BODY = binary("simple", {"inputs": [A_BINARY, B_BINARY]} | BINARY_OUT, ROW_BYTES, ROW_BYTES)
COMPRESSION: Topic = {
    "gzip in": compressed("gzip", gzip.compress(SIMPLE.body)),
    "deflate in": compressed("deflate", zlib.compress(SIMPLE.body)),
    "gzip in, binary": compressed(
        "gzip", gzip.compress(BINARY_BODY.body), **{HEADER: BINARY_BODY.headers[HEADER]}
    ),
    "gzip out": accepting("gzip"),
    "deflate out": accepting("deflate"),
    "either out": accepting("gzip, deflate"),
    "weighted out": accepting("gzip;q=0.2, deflate;q=0.8"),
    "gzip refused": accepting("gzip;q=0"),
    "identity out": accepting("identity"),
    "brotli out": accepting("br"),
    "anything out": accepting("*"),
    "gzip out, binary": Http(
        "POST",
        "/v2/models/simple/infer",
        BINARY_BODY.body,
        {**BINARY_BODY.headers, "Accept-Encoding": "gzip"},
    ),
    "gzip out, error": post("/v2/models/nobody/infer", SIMPLE.body, **{"Accept-Encoding": "gzip"}),
    "identity in": compressed("identity", SIMPLE.body),
    "brotli in": compressed("br", SIMPLE.body),
    "two encodings in": compressed("gzip, gzip", gzip.compress(gzip.compress(SIMPLE.body))),
    "not compressed": compressed("gzip", SIMPLE.body),
    "compressed data cut": compressed("gzip", gzip.compress(SIMPLE.body)[:-20]),
    "raw deflate in": compressed("deflate", zlib.compress(SIMPLE.body)[2:-4]),
}

SHM = "/v2/systemsharedmemory"


def register(region: str, **fields: Any) -> Http:
    document = {"key": SHARED_KEY, "offset": 0, "byte_size": SHARED_BYTES} | fields
    wanted = {key: value for key, value in document.items() if value is not None}
    return post(f"{SHM}/region/{region}/register", wanted)


def unregister(region: str) -> Http:
    return post(f"{SHM}/region/{region}/unregister", {})


def in_region(name: str, offset: int = 0, size: int = 64) -> Json:
    return {
        "shared_memory_region": name,
        "shared_memory_offset": offset,
        "shared_memory_byte_size": size,
    }


def shared(parameters: Json, outputs: Any = None) -> tuple[Step, ...]:
    """One inference whose first input is in shared memory."""
    request = infer("simple", [without(A, "data") | {"parameters": parameters}, B], outputs)
    return register("a"), request, unregister("a")


def shared_output(parameters: Json) -> tuple[Step, ...]:
    """One that writes its output there, and one that reads that as its input."""
    write = infer("simple", [A, B], [{"name": "OUTPUT0", "parameters": parameters}])
    read = infer("simple", [without(A, "data") | {"parameters": in_region("a", 64)}, B])
    return register("a"), write, read, unregister("a")


SHARED_MEMORY: Topic = {
    "none registered": get(f"{SHM}/status"),
    "register": (
        register("a"),
        get(f"{SHM}/status"),
        get(f"{SHM}/region/a/status"),
        unregister("a"),
        get(f"{SHM}/status"),
    ),
    "with an offset": (
        register("a", offset=PAGE, byte_size=PAGE),
        get(f"{SHM}/status"),
        unregister("a"),
    ),
    "unregister all": (
        register("a"),
        post(f"{SHM}/unregister", {}),
        get(f"{SHM}/status"),
    ),
    "same name twice": (register("a"), register("a"), unregister("a")),
    "unknown region's status": get(f"{SHM}/region/nobody/status"),
    "unregister an unknown region": unregister("nobody"),
    "no key": register("a", key=None),
    "no size": register("a", byte_size=None),
    "no offset": (register("a", offset=None), get(f"{SHM}/status"), unregister("a")),
    "unknown key": register("a", key="/slipway_nothing"),
    "size a string": register("a", byte_size="8192"),
    "size beyond the object": register("a", byte_size=2**40),
    "offset beyond the object": register("a", offset=2**40),
    "malformed": post(f"{SHM}/region/a/register", b"{"),
    "status, POST": post(f"{SHM}/status", {}),
    "register, GET": get(f"{SHM}/region/a/register"),
    "CUDA, none registered": get("/v2/cudasharedmemory/status"),
    "CUDA, no handle": post("/v2/cudasharedmemory/region/a/register", {"byte_size": 64}),
    "CUDA, unregister": post("/v2/cudasharedmemory/unregister", {}),
    "input": shared(in_region("a")),
    "input at an offset": shared(in_region("a", PAGE)),
    "input, size differs from the shape": shared(in_region("a", 0, 60)),
    "input, beyond the region": shared(in_region("a", SHARED_BYTES - 32)),
    "input, offset beyond the region": shared(in_region("a", 2**40)),
    "input, negative offset": shared(in_region("a", -64)),
    "input, unknown region": shared(in_region("nobody")),
    "input, no size": shared({"shared_memory_region": "a"}),
    "input, both data and region": (
        register("a"),
        a(parameters=in_region("a")),
        unregister("a"),
    ),
    "output": shared_output(in_region("a", 64)),
    "output, too small": shared_output(in_region("a", 64, 60)),
    "output, larger than needed": shared_output(in_region("a", 64, 100)),
    "output, beyond the region": shared_output(in_region("a", SHARED_BYTES - 32)),
    "output, unknown region": shared_output(in_region("nobody")),
}


def load(model: str, document: Any = None) -> Http:
    return post(f"/v2/repository/models/{model}/load", {} if document is None else document)


def unload(model: str, document: Any = None) -> Http:
    return post(f"/v2/repository/models/{model}/unload", {} if document is None else document)


def load_with(model: str, **parameters: Any) -> Http:
    return load(model, {"parameters": parameters})


def spare_config(backend: str, **fields: Any) -> str:
    kinds = [{"name": name, "data_type": "TYPE_FP32", "dims": [4]} for name in ("INPUT", "OUTPUT")]
    base = {"backend": backend, "input": kinds[:1], "output": kinds[1:], "max_batch_size": 8}
    return json.dumps(base | fields)


SPARE = infer("spare", fp32([1, 4], [1, 2, 3, 4]))
GRAPH = base64.b64encode(onnx_file(identity_graph("FP32", (4,), batched=True))).decode()
PYTHON = base64.b64encode(PYTHON_MODEL.read_bytes()).decode()


def configured(model: str, **fields: Any) -> Own:
    return Own(
        load_with(model, config=spare_config("python", **fields)),
        load_with(model, config=spare_config("onnxruntime", **fields)),
    )


def with_files(model: str, directory: str = "1") -> Own:
    python = {"config": spare_config("python"), f"file:{directory}/model.py": PYTHON}
    graph = {"config": spare_config("onnxruntime"), f"file:{directory}/model.onnx": GRAPH}
    return Own(load_with(model, **python), load_with(model, **graph))


REPOSITORY: Topic = {
    "load and unload": (
        load("spare"),
        post("/v2/repository/models/spare/load"),
        get("/v2/models/spare/ready"),
        SPARE,
        unload("spare"),
        get("/v2/models/spare/ready"),
    ),
    "load, unknown model": load("nobody"),
    "load, model that cannot be": (
        load_with("spare", config=spare_config("nothing")),
        get("/v2/models/spare/ready"),
        get("/v2/health/ready"),
        load("spare"),
        get("/v2/health/ready"),
        unload("spare"),
    ),
    "load, GET": get("/v2/repository/models/spare/load"),
    "load, malformed": load("spare", b"{"),
    "load, parameters an array": load("spare", {"parameters": []}),
    "load, named repository": post("/v2/repository/mine/models/spare/load", {}),
    "load, config": (
        configured("spare", max_batch_size="16"),
        get("/v2/models/spare/config"),
        infer("spare", fp32([16, 4], [0.0] * 64)),
        unload("spare"),
    ),
    "load, config not a string": load_with("spare", config={"max_batch_size": 1}),
    "load, config not JSON": load_with("spare", config="{"),
    "load, config with an unknown field": load_with("spare", config='{"color": "red"}'),
    "load, config empty": load_with("spare", config=""),
    "load, unknown parameter": load_with("spare", color="red"),
    "load, files": (
        with_files("from-files", "7"),
        get("/v2/models/from-files"),
        infer("from-files", fp32([1, 4], [1, 2, 3, 4])),
        unload("from-files"),
    ),
    "load, file without config": load_with("spare", **{"file:1/model.onnx": GRAPH}),
    "load, file not base64": (
        load_with("spare", config=spare_config("python"), **{"file:1/model.py": "!"}),
        load("spare"),
        unload("spare"),
    ),
    "load, file outside": with_files("spare", "../1"),
    "load, absolute file": (with_files("spare", "/1"), unload("spare")),
    "unload, unknown model": unload("nobody"),
    "unload, never loaded": unload("spare"),
    "unload, without a body": post("/v2/repository/models/spare/unload"),
    "unload, dependents": unload("spare", {"parameters": {"unload_dependents": True}}),
    "unload, dependents a string": unload("spare", {"parameters": {"unload_dependents": "x"}}),
    "unload, malformed": unload("spare", b"{"),
    "unload, GET": get("/v2/repository/models/spare/unload"),
}

SETTING = "/v2/trace/setting"
MODEL_SETTING = "/v2/models/simple/trace/setting"
TRACE: Topic = {
    "get": get(SETTING),
    "get, model": get(MODEL_SETTING),
    "get, unknown model": get("/v2/models/nobody/trace/setting"),
    "get, version": get("/v2/models/simple/versions/1/trace/setting"),
    "post": (
        post(SETTING, {"trace_rate": "5", "trace_count": "10", "log_frequency": "3"}),
        get(MODEL_SETTING),
        post(SETTING, {"trace_rate": None, "trace_count": None, "log_frequency": None}),
    ),
    "post, model": (
        post(MODEL_SETTING, {"trace_rate": "7"}),
        get(SETTING),
        post(MODEL_SETTING, {"trace_rate": None}),
    ),
    "post, level": (
        post(MODEL_SETTING, {"trace_level": ["TIMESTAMPS"]}),
        post(MODEL_SETTING, {"trace_level": ["OFF"]}),
        post(MODEL_SETTING, {"trace_level": None}),
    ),
    "post, unknown level": post(MODEL_SETTING, {"trace_level": ["ALL"]}),
    "post, level a string": post(MODEL_SETTING, {"trace_level": "TIMESTAMPS"}),
    "post, file": post(SETTING, {"trace_file": "x"}),
    "post, rate not a number": post(SETTING, {"trace_rate": "often"}),
    "post, rate a number": post(SETTING, {"trace_rate": 5}),
    "post, unknown setting": post(SETTING, {"color": "red"}),
    "post, unknown model": post("/v2/models/nobody/trace/setting", {"trace_rate": "1"}),
    "post, malformed": post(SETTING, b"{"),
    "post, nothing": post(SETTING, {}),
    "DELETE": Http("DELETE", SETTING),
}

LOGGING: Topic = {
    "get": get("/v2/logging"),
    "post": (
        post("/v2/logging", {"log_verbose_level": 1, "log_info": False}),
        get("/v2/logging"),
        post("/v2/logging", {"log_verbose_level": 0, "log_info": True}),
    ),
    "post, format": (
        post("/v2/logging", {"log_format": "ISO8601"}),
        post("/v2/logging", {"log_format": "default"}),
    ),
    "post, unknown format": post("/v2/logging", {"log_format": "pretty"}),
    "post, file": post("/v2/logging", {"log_file": "x"}),
    "post, bool a string": post("/v2/logging", {"log_info": "true"}),
    "post, level a string": post("/v2/logging", {"log_verbose_level": "1"}),
    "post, level a bool": post("/v2/logging", {"log_verbose_level": True}),
    "post, level negative": post("/v2/logging", {"log_verbose_level": -1}),
    "post, unknown setting": post("/v2/logging", {"color": "red"}),
    "post, malformed": post("/v2/logging", b"{"),
    "DELETE": Http("DELETE", "/v2/logging"),
}


def generate(model: str, document: Any) -> Http:
    return post(f"/v2/models/{model}/generate", document)


def generate_stream(model: str, document: Any) -> Http:
    return post(f"/v2/models/{model}/generate_stream", document)


GENERATE: Topic = {
    "string": generate("text", {"INPUT": "hello"}),
    "id": generate("text", {"INPUT": "hello", "id": "seven"}),
    "list": generate("identity-INT32", {"INPUT": [1, 2, 3]}),
    "float": generate("versions", {"INPUT": 1.5}),
    "version": post("/v2/models/versions/versions/1/generate", {"INPUT": 1.5}),
    "two inputs": generate("simple", {"INPUT0": ROW, "INPUT1": ROW}),
    "input among parameters": generate("text", {"parameters": {"INPUT": "hello"}}),
    "parameters": generate("text", {"INPUT": "hello", "color": "red", "count": 3, "fast": True}),
    "missing input": generate("text", {}),
    "array parameter": generate("text", {"INPUT": "hello", "many": [1]}),
    "nested list": generate("identity-INT32", {"INPUT": [[1, 2]]}),
    "wrong type": generate("text", {"INPUT": 5}),
    "fraction for an integer": generate("identity-INT32", {"INPUT": [1.5]}),
    "unknown model": generate("nobody", {"INPUT": "hello"}),
    "malformed": generate("text", b"{"),
    "empty body": generate("text", b""),
    "array": generate("text", []),
    "GET": get("/v2/models/text/generate"),
    "model fails": generate("raises", {"INPUT": 1.5}),
    "decoupled, one response": generate("decoupled", {"INPUT": [5]}),
    "decoupled, two responses": generate("decoupled", {"INPUT": [5, 6]}),
    "decoupled, no response": generate("decoupled", {"INPUT": []}),
    "stream": generate_stream("decoupled", {"INPUT": [5, 6, 7]}),
    "stream, id": generate_stream("decoupled", {"INPUT": [5, 6], "id": "seven"}),
    "stream, one response": generate_stream("text", {"INPUT": "hello"}),
    "stream, no response": generate_stream("decoupled", {"INPUT": []}),
    "stream, model fails": generate_stream("raises", {"INPUT": 1.5}),
    "stream, missing input": generate_stream("decoupled", {}),
    "stream, unknown model": generate_stream("nobody", {}),
    "stream, malformed": generate_stream("decoupled", b"{"),
}


def step_of(sequence: Any, value: int = 1, **flags: Any) -> Http:
    parameters = {"sequence_id": sequence} | {
        f"sequence_{key}": flag for key, flag in flags.items()
    }
    return infer("sequence", [tensor("INPUT", "INT32", [1, 1], [value])], parameters=parameters)


SEQUENCE: Topic = {
    "from start to end": (step_of(11, 1, start=True), step_of(11, 2), step_of(11, 3, end=True)),
    "text for an id": (step_of("eleven", 1, start=True), step_of("eleven", 2, end=True)),
    "two at once": (
        step_of(12, 1, start=True),
        step_of(13, 10, start=True),
        step_of(12, 2),
        step_of(13, 20, end=True),
        step_of(12, 3, end=True),
    ),
    "started again": (
        step_of(14, 1, start=True),
        step_of(14, 2, start=True),
        step_of(14, 3, end=True),
    ),
    "start and end at once": (step_of(15, 4, start=True, end=True), step_of(15, 1)),
    "not started": step_of(16),
    "goes on after the end": (step_of(17, 1, start=True), step_of(17, 1, end=True), step_of(17)),
    "no id": infer("sequence", [tensor("INPUT", "INT32", [1, 1], [1])]),
    "no id, start": infer(
        "sequence",
        [tensor("INPUT", "INT32", [1, 1], [1])],
        parameters={"sequence_start": True},
    ),
    "id 0": step_of(0, start=True),
    "empty id": step_of("", start=True),
    "negative id": step_of(-1, start=True, end=True),
    "fraction for an id": step_of(1.5, start=True),
    "bool for an id": step_of(True, start=True),
    "start a number": step_of(18, start=1),
    "batch of 2": infer(
        "sequence",
        [tensor("INPUT", "INT32", [2, 1], [1, 2])],
        parameters={"sequence_id": 19, "sequence_start": True, "sequence_end": True},
    ),
}

TOPICS: Mapping[str, Topic] = {
    "health": HEALTH,
    "metadata": METADATA,
    "description": DESCRIPTION,
    "index": INDEX,
    "infer": INFER,
    "values": VALUES,
    "malformed": MALFORMED,
    "invalid": INVALID,
    "binary": BINARY,
    "strings": STRINGS,
    "types": TYPES,
    "classification": CLASSIFICATION,
    "parameters": PARAMETERS,
    "compression": COMPRESSION,
    "shared memory": SHARED_MEMORY,
    "repository": REPOSITORY,
    "trace": TRACE,
    "logging": LOGGING,
    "generate": GENERATE,
    "sequence": SEQUENCE,
}
