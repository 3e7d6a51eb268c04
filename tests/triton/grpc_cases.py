"""What is asked over gRPC, by topic."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as v2

from tests.triton.http_cases import (
    GRAPH,
    PYTHON,
    ROW,
    ROW_BYTES,
    SHARED_BYTES,
    SHARED_KEY,
    content_of,
    framed,
    spare_config,
    values_of,
)
from tests.triton.models import DATATYPES
from tests.triton.wire import Grpc, Own, Step, Stream, Together

Topic = Mapping[str, Step | tuple[Step, ...]]
Value = bool | int | float | str


def call(rpc: str, **fields: Any) -> Grpc:
    return Grpc(rpc, getattr(v2, f"{rpc}Request")(**fields))


def parameter(value: Value | v2.InferParameter) -> v2.InferParameter:
    if isinstance(value, v2.InferParameter):
        return value
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    return v2.InferParameter(**{kinds[type(value)]: value})


def tensor(
    name: str,
    datatype: str,
    shape: Sequence[int],
    *,
    contents: Mapping[str, Any] | None = None,
    **parameters: Value,
) -> Any:
    message = v2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents is not None:
        message.contents.CopyFrom(v2.InferTensorContents(**contents))
    for key, value in parameters.items():
        message.parameters[key].CopyFrom(parameter(value))
    return message


def output(name: str, **parameters: Value) -> Any:
    message = v2.ModelInferRequest.InferRequestedOutputTensor(name=name)
    for key, value in parameters.items():
        message.parameters[key].CopyFrom(parameter(value))
    return message


def request(
    model: str,
    inputs: Sequence[Any],
    raw: Sequence[bytes] = (),
    outputs: Sequence[Any] = (),
    *,
    parameters: Mapping[str, Any] | None = None,
    version: str = "",
    id: str = "",
) -> Any:
    message = v2.ModelInferRequest(
        model_name=model,
        model_version=version,
        id=id,
        inputs=inputs,
        outputs=outputs,
        raw_input_contents=raw,
    )
    for key, value in (parameters or {}).items():
        message.parameters[key].CopyFrom(parameter(value))
    return message


def infer(*arguments: Any, **fields: Any) -> Grpc:
    return Grpc("ModelInfer", request(*arguments, **fields))


A, B = tensor("INPUT0", "INT32", [1, 16]), tensor("INPUT1", "INT32", [1, 16])
BOTH = [ROW_BYTES, ROW_BYTES]
SIMPLE = infer("simple", [A, B], BOTH)
A_TYPED = tensor("INPUT0", "INT32", [1, 16], contents={"int_contents": ROW})
B_TYPED = tensor("INPUT1", "INT32", [1, 16], contents={"int_contents": ROW})
FLOAT = np.array([1.5], np.float32).tobytes()
FP32 = tensor("INPUT", "FP32", [1, 1])


def floats(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


def simple(**parameters: Any) -> Grpc:
    return infer("simple", [A, B], BOTH, parameters=parameters)


def first(shape: Sequence[int], content: bytes, datatype: str = "INT32") -> Grpc:
    """The request to `simple` with another first input."""
    return infer("simple", [tensor("INPUT0", datatype, shape), B], [content, ROW_BYTES])


HEALTH: Topic = {
    "live": call("ServerLive"),
    "ready": call("ServerReady"),
    "model": call("ModelReady", name="simple"),
    "model, version": call("ModelReady", name="simple", version="1"),
    "unknown model": call("ModelReady", name="nobody"),
    "unknown version": call("ModelReady", name="simple", version="9"),
    "model not loaded": call("ModelReady", name="spare"),
    "version that is not a number": call("ModelReady", name="simple", version="one"),
    "no name": call("ModelReady"),
    "standard health check": Grpc("Check", b"", "grpc.health.v1.Health"),
    "standard health check of a service": Grpc(
        "Check", b"\n\x1einference.GRPCInferenceService", "grpc.health.v1.Health"
    ),
    "unknown method": Grpc("Nothing", b""),
    "unknown service": Grpc("ServerLive", b"", "inference.Nobody"),
    "not a message": Grpc("ModelReady", b"\xff\xff\xff"),
}

METADATA: Topic = {
    "model": call("ModelMetadata", name="simple"),
    "model, version": call("ModelMetadata", name="simple", version="1"),
    "several versions": call("ModelMetadata", name="versions"),
    "dynamic shape": call("ModelMetadata", name="flexible"),
    "optional input": call("ModelMetadata", name="optional"),
    "unknown model": call("ModelMetadata", name="nobody"),
    "unknown version": call("ModelMetadata", name="simple", version="9"),
    "version that is not a number": call("ModelMetadata", name="simple", version="x"),
    "version beyond 64 bits": call("ModelMetadata", name="simple", version="9" * 20),
    "model not loaded": call("ModelMetadata", name="spare"),
    "no name": call("ModelMetadata"),
}

DESCRIPTION: Topic = {
    "server": call("ServerMetadata"),
    "config": call("ModelConfig", name="simple"),
    "config, unknown model": call("ModelConfig", name="nobody"),
    "config, unknown version": call("ModelConfig", name="simple", version="9"),
    "stats": (SIMPLE, call("ModelStatistics", name="simple")),
    "stats, unknown model": call("ModelStatistics", name="nobody"),
    "stats, unknown version": call("ModelStatistics", name="simple", version="9"),
    "stats, version that is not a number": call("ModelStatistics", name="simple", version="x"),
}

INDEX: Topic = {
    "all": call("RepositoryIndex"),
    "ready": call("RepositoryIndex", ready=True),
    "named repository": call("RepositoryIndex", repository_name="mine"),
}

INFER: Topic = {
    "all outputs": SIMPLE,
    "one output": infer("simple", [A, B], BOTH, [output("OUTPUT1")]),
    "outputs in another order": infer(
        "simple", [A, B], BOTH, [output("OUTPUT1"), output("OUTPUT0")]
    ),
    "same output twice": infer("simple", [A, B], BOTH, [output("OUTPUT1"), output("OUTPUT1")]),
    "id": infer("simple", [A, B], BOTH, id="forty-two"),
    "version": infer("simple", [A, B], BOTH, version="1"),
    "older version": infer("versions", [FP32], [FLOAT], version="1"),
    "latest version": infer("versions", [FP32], [FLOAT]),
    "unknown version": infer("simple", [A, B], BOTH, version="9"),
    "version that is not a number": infer("simple", [A, B], BOTH, version="x"),
    "unknown model": infer("nobody", [A, B], BOTH),
    "no model": infer("", [A, B], BOTH),
    "model not loaded": infer("spare", [tensor("INPUT", "FP32", [1, 4])], [bytes(16)]),
    "model fails": infer("raises", [FP32], [FLOAT]),
    "decoupled model": infer("decoupled", [tensor("INPUT", "INT32", [1])], [bytes(4)]),
    "typed contents": infer("simple", [A_TYPED, B_TYPED]),
    "typed and raw contents": infer("simple", [A_TYPED, B], [ROW_BYTES]),
    "typed and as many raw contents": infer("simple", [A_TYPED, B], BOTH),
    "wrong typed contents": infer(
        "simple",
        [tensor("INPUT0", "INT32", [1, 16], contents={"fp32_contents": [1] * 16}), B_TYPED],
    ),
    "two typed contents": infer(
        "simple",
        [
            tensor(
                "INPUT0", "INT32", [1, 16], contents={"int_contents": ROW, "fp32_contents": [1]}
            ),
            B_TYPED,
        ],
    ),
    "too few typed contents": infer(
        "simple", [tensor("INPUT0", "INT32", [1, 16], contents={"int_contents": [1]}), B_TYPED]
    ),
    "too many typed contents": infer(
        "simple",
        [tensor("INPUT0", "INT32", [1, 16], contents={"int_contents": [*ROW, 16]}), B_TYPED],
    ),
    "typed contents beyond the type": infer(
        "identity-INT8", [tensor("INPUT", "INT8", [1, 1], contents={"int_contents": [200]})]
    ),
    "no contents": infer("simple", [A, B]),
    "empty typed contents": infer(
        "simple", [tensor("INPUT0", "INT32", [1, 16], contents={}), B_TYPED]
    ),
    "too few raw contents": infer("simple", [A, B], BOTH[:1]),
    "too many raw contents": infer("simple", [A, B], [*BOTH, ROW_BYTES]),
    "zero-size dimension": infer("identity-FP32", [tensor("INPUT", "FP32", [1, 0])], [b""]),
    "zero-size typed contents": infer(
        "identity-FP32", [tensor("INPUT", "FP32", [1, 0], contents={})]
    ),
    "optional input left out": infer("optional", [tensor("REQUIRED", "FP32", [1])], [FLOAT]),
    "required input left out": infer("optional", [tensor("OPTIONAL", "FP32", [1])], [FLOAT]),
    "not a message": Grpc("ModelInfer", b"\xff\xff\xff"),
    "name that is not text": Grpc("ModelInfer", b"\n\1\xff"),
}

INVALID: Topic = {
    "no inputs": infer("simple", []),
    "missing input": infer("simple", [A], BOTH[:1]),
    "unknown input": infer("simple", [A, tensor("INPUT2", "INT32", [1, 16])], BOTH),
    "same input twice": infer("simple", [A, A], BOTH),
    "input without a name": infer("simple", [tensor("", "INT32", [1, 16]), B], BOTH),
    "unknown output": infer("simple", [A, B], BOTH, [output("OUTPUT2")]),
    "output without a name": infer("simple", [A, B], BOTH, [output("")]),
    "wrong datatype": first([1, 16], bytes(64), "FP32"),
    "unknown datatype": first([1, 16], bytes(64), "INT33"),
    "no datatype": first([1, 16], bytes(64), ""),
    "wrong size": first([1, 8], bytes(32)),
    "no batch dimension": first([16], bytes(64)),
    "one dimension too many": first([1, 1, 16], bytes(64)),
    "no dimensions": first([], bytes(4)),
    "negative dimension": first([1, -16], bytes(64)),
    "two negative dimensions": first([-1, -16], bytes(64)),
    "product beyond 64 bits": infer(
        "flexible", [tensor("INPUT", "FP32", [2**40, 2**40])], [bytes(4)]
    ),
    "bytes beyond 64 bits": infer(
        "flexible", [tensor("INPUT", "FP32", [2**31, 2**31])], [bytes(4)]
    ),
    "too few bytes": first([1, 16], bytes(60)),
    "too many bytes": first([1, 16], bytes(68)),
    "no bytes": first([1, 16], b""),
    "batch of 9": infer(
        "simple",
        [tensor("INPUT0", "INT32", [9, 16]), tensor("INPUT1", "INT32", [9, 16])],
        [ROW_BYTES * 9] * 2,
    ),
    "batches differ": infer(
        "simple", [A, tensor("INPUT1", "INT32", [2, 16])], [ROW_BYTES, ROW_BYTES * 2]
    ),
}


def strings(content: bytes, shape: list[int]) -> Grpc:
    return infer("identity-BYTES", [tensor("INPUT", "BYTES", shape)], [content])


STRINGS: Topic = {
    "several": strings(framed([b"", b"a", b"\0\xff"]), [1, 3]),
    "typed": infer(
        "identity-BYTES",
        [tensor("INPUT", "BYTES", [1, 2], contents={"bytes_contents": [b"", b"\xff"]})],
    ),
    "one too few": strings(framed([b"a"]), [1, 2]),
    "one too many": strings(framed([b"a"] * 3), [1, 2]),
    "length cut": strings(framed([b"a"]) + b"\1\0", [1, 2]),
    "element cut": strings(framed([b"abc"])[:-1], [1, 1]),
    "length beyond the data": strings(b"\xff\xff\xff\xffab", [1, 1]),
}


CONTENTS = {
    "BOOL": "bool_contents",
    "UINT64": "uint64_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
    **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
    **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
    # Neither has a field of its own; this must be refused.
    "FP16": "fp32_contents",
    "BF16": "fp32_contents",
}


def typed(datatype: str) -> dict[str, Step]:
    values = values_of(datatype)
    contents = {CONTENTS[datatype]: values.flatten().tolist()}
    return {
        f"{datatype}, raw": infer(
            f"identity-{datatype}", [tensor("INPUT", datatype, [1, 4])], [content_of(values)]
        ),
        f"{datatype}, typed": infer(
            f"identity-{datatype}", [tensor("INPUT", datatype, [1, 4], contents=contents)]
        ),
    }


TYPES: Topic = {name: case for each in DATATYPES for name, case in typed(each).items()}


def classify(k: Value, rows: int = 1) -> Grpc:
    content = floats(*[0.5, 3.25, -1.0, 1e-5] * rows)
    outputs = [output("OUTPUT", classification=k)]
    return infer("labels", [tensor("INPUT", "FP32", [rows, 4])], [content], outputs)


CLASSIFICATION: Topic = {
    "two": classify(2),
    "more than there are": classify(10),
    "batch of 3": classify(2, rows=3),
    "off": classify(0),
    "negative": classify(-1),
    "string": classify("2"),
    "bool": classify(True),
}


def queued(model: str, **parameters: Any) -> Grpc:
    return infer(model, [FP32], [FLOAT], parameters=parameters)


def unsigned(value: int) -> v2.InferParameter:
    return v2.InferParameter(uint64_param=value)


PARAMETERS: Topic = {
    "string": simple(color="red"),
    "integer": simple(count=3),
    "unsigned": simple(count=unsigned(2**63)),
    "bool": simple(fast=True),
    "double": simple(ratio=0.5),
    "without a value": simple(nothing=v2.InferParameter()),
    "reserved prefix": simple(triton_thing=1),
    "reserved headers": simple(headers="x"),
    "of an input": infer("simple", [tensor("INPUT0", "INT32", [1, 16], color="red"), B], BOTH),
    "priority": queued("hurried", priority=unsigned(1)),
    "priority, signed": queued("hurried", priority=1),
    "priority beyond the levels": queued("hurried", priority=unsigned(9)),
    "priority negative": queued("hurried", priority=-1),
    "priority a string": queued("hurried", priority="1"),
    "timeout": simple(timeout=1_000_000),
    "timeout a string": simple(timeout="1"),
    "timeout negative": simple(timeout=-1),
    "sequence_id without sequences": simple(sequence_id=5),
    "sequence_id a bool": simple(sequence_id=True),
    "sequence_start a string": simple(sequence_start="yes"),
    "binary_data_output": simple(binary_data_output=True),
    "queue full": Together((queued("crowded"),) * 8),
    "timeout in the queue": Together((queued("hurried"),) * 5),
    "shorter timeout of the request": Together((queued("hurried", timeout=20_000),) * 3),
}


def stream(*messages: Any) -> Stream:
    return Stream(messages)


def counted(model: str, count: int, *, final: bool = False, id: str = "") -> Any:
    """A request to a decoupled model for so many responses."""
    content = np.arange(count, dtype=np.int32).tobytes()
    parameters = {"triton_enable_empty_final_response": True} if final else {}
    inputs = [tensor("INPUT", "INT32", [count])]
    return request(model, inputs, [content], parameters=parameters, id=id)


STREAM: Topic = {
    "nothing": stream(),
    "one": stream(SIMPLE.message),
    "several": stream(*(request("simple", [A, B], BOTH, id=f"r{i}") for i in range(5))),
    "empty final response": stream(
        request(
            "simple",
            [A, B],
            BOTH,
            id="r",
            parameters={"triton_enable_empty_final_response": True},
        )
    ),
    "unknown model": stream(request("nobody", [A, B], BOTH, id="r")),
    "an error between": stream(
        request("simple", [A, B], BOTH, id="r0"),
        request("simple", [A], BOTH[:1], id="r1"),
        request("simple", [A, B], BOTH, id="r2"),
    ),
    "model fails": stream(request("raises", [FP32], [FLOAT], id="r")),
    "malformed tensor": stream(request("simple", [A, B], BOTH[:1], id="r")),
    "decoupled": stream(counted("decoupled", 3, id="r")),
    "decoupled, no id": stream(counted("decoupled", 2)),
    "decoupled, empty final response": stream(counted("decoupled", 3, final=True, id="r")),
    "decoupled, no response": stream(counted("decoupled", 0, id="r")),
    "decoupled, no response but the final": stream(counted("decoupled", 0, final=True, id="r")),
    "decoupled, two at once": stream(
        counted("decoupled", 3, id="r0"), counted("decoupled", 2, final=True, id="r1")
    ),
    "decoupled, wrong input": stream(
        request("decoupled", [tensor("INPUT", "FP32", [1])], [FLOAT], id="r")
    ),
}


def register(**fields: Any) -> Grpc:
    request = {"name": "g", "key": SHARED_KEY, "byte_size": SHARED_BYTES} | fields
    return call("SystemSharedMemoryRegister", **request)


def region(offset: int = 0, size: int = 64, name: str = "g") -> dict[str, Value]:
    return {
        "shared_memory_region": name,
        "shared_memory_offset": offset,
        "shared_memory_byte_size": size,
    }


UNREGISTER = call("SystemSharedMemoryUnregister", name="g")


def shared(parameters: Mapping[str, Value], outputs: Sequence[Any] = ()) -> tuple[Step, ...]:
    source = tensor("INPUT0", "INT32", [1, 16], contents=None, **parameters)
    return register(), infer("simple", [source, B], BOTH[:1], outputs), UNREGISTER


SHARED_MEMORY: Topic = {
    "none registered": call("SystemSharedMemoryStatus"),
    "register": (register(), call("SystemSharedMemoryStatus", name="g"), UNREGISTER),
    "same name twice": (register(), register(), UNREGISTER),
    "unknown region's status": call("SystemSharedMemoryStatus", name="nobody"),
    "unregister an unknown region": call("SystemSharedMemoryUnregister", name="nobody"),
    "unregister all": (
        register(),
        call("SystemSharedMemoryUnregister"),
        call("SystemSharedMemoryStatus"),
    ),
    "no name": (register(name=""), call("SystemSharedMemoryUnregister")),
    "no key": register(key=""),
    "no size": (register(byte_size=0), UNREGISTER),
    "unknown key": register(key="/slipway_nothing"),
    "size beyond the object": register(byte_size=2**40),
    "CUDA, none registered": call("CudaSharedMemoryStatus"),
    "CUDA, no handle": call("CudaSharedMemoryRegister", name="g", byte_size=64),
    "input": shared(region()),
    "input, beyond the region": shared(region(SHARED_BYTES - 32)),
    "input, unknown region": shared(region(name="nobody")),
    "input, no size": shared({"shared_memory_region": "g"}),
    "input and output": shared(region(), [output("OUTPUT0", **region(1024)), output("OUTPUT1")]),
    "output, too small": shared(region(), [output("OUTPUT0", **region(1024, 60))]),
}


def load(model: str, **parameters: Any) -> Grpc:
    message = v2.RepositoryModelLoadRequest(model_name=model)
    for key, value in parameters.items():
        message.parameters[key].CopyFrom(value)
    return Grpc("RepositoryModelLoad", message)


def unload(model: str) -> Grpc:
    return call("RepositoryModelUnload", model_name=model)


def config(text: str) -> Any:
    return v2.ModelRepositoryParameter(string_param=text)


def file(content: str) -> Any:
    return v2.ModelRepositoryParameter(bytes_param=base64.b64decode(content))


SPARE = infer("spare", [tensor("INPUT", "FP32", [1, 4])], [bytes(16)])


def with_files(model: str, directory: str) -> Own:
    python = {"config": config(spare_config("python")), f"file:{directory}/model.py": file(PYTHON)}
    graph = {
        "config": config(spare_config("onnxruntime")),
        f"file:{directory}/model.onnx": file(GRAPH),
    }
    return Own(load(model, **python), load(model, **graph))


REPOSITORY: Topic = {
    "load and unload": (
        load("spare"),
        call("ModelReady", name="spare"),
        SPARE,
        unload("spare"),
        call("ModelReady", name="spare"),
    ),
    "load, unknown model": load("nobody"),
    "load, no name": load(""),
    "load, named repository": call("RepositoryModelLoad", repository_name="x", model_name="spare"),
    "load, config": (
        Own(
            load("spare", config=config(spare_config("python", max_batch_size=2))),
            load("spare", config=config(spare_config("onnxruntime", max_batch_size=2))),
        ),
        call("ModelMetadata", name="spare"),
        unload("spare"),
    ),
    "load, config not JSON": load("spare", config=config("{")),
    "load, config not a string": load("spare", config=v2.ModelRepositoryParameter(int64_param=1)),
    "load, file without config": load("spare", **{"file:1/model.onnx": file(GRAPH)}),
    "load, file outside": with_files("spare", "../1"),
    "unload, unknown model": unload("nobody"),
    "unload, no name": unload(""),
}


def setting(value: str) -> Any:
    return v2.TraceSettingRequest.SettingValue(value=[value])


UNSET = v2.TraceSettingRequest.SettingValue()


def trace(model: str = "", **settings: Any) -> Grpc:
    message = v2.TraceSettingRequest(model_name=model)
    for key, value in settings.items():
        message.settings[key].CopyFrom(value)
    return Grpc("TraceSetting", message)


TRACE: Topic = {
    "get": trace(),
    "get, model": trace("simple"),
    "get, unknown model": trace("nobody"),
    "set": (trace("simple", trace_rate=setting("7")), trace("simple", trace_rate=UNSET)),
    "level": (
        trace("simple", trace_level=setting("TIMESTAMPS")),
        trace("simple", trace_level=UNSET),
    ),
    "unknown level": trace("simple", trace_level=setting("ALL")),
    "rate not a number": trace("simple", trace_rate=setting("often")),
    "file": trace(trace_file=setting("x")),
    "unknown setting": trace(color=setting("red")),
}


def log(**settings: bool | int | str) -> Grpc:
    kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    message = v2.LogSettingsRequest()
    for key, value in settings.items():
        setting = v2.LogSettingsRequest.SettingValue(**{kinds[type(value)]: value})
        message.settings[key].CopyFrom(setting)
    return Grpc("LogSettings", message)


LOGGING: Topic = {
    "get": log(),
    "set": (log(log_verbose_level=1), log(log_verbose_level=0)),
    "level a string": log(log_verbose_level="1"),
    "bool a string": log(log_info="true"),
    "file": log(log_file="x"),
    "format": (log(log_format="ISO8601"), log(log_format="default")),
    "unknown format": log(log_format="pretty"),
    "unknown setting": log(color="red"),
}


def part(sequence: Value, value: int = 1, **flags: bool) -> Any:
    parameters = {"sequence_id": sequence} | {
        f"sequence_{key}": flag for key, flag in flags.items()
    }
    content = np.array([value], np.int32).tobytes()
    return request(
        "sequence",
        [tensor("INPUT", "INT32", [1, 1])],
        [content],
        parameters=parameters,
        id=f"{sequence}-{value}",
    )


def step_of(*arguments: Any, **flags: Any) -> Grpc:
    return Grpc("ModelInfer", part(*arguments, **flags))


SEQUENCE: Topic = {
    "from start to end": (step_of(31, 1, start=True), step_of(31, 2), step_of(31, 3, end=True)),
    "text for an id": (step_of("one", 1, start=True), step_of("one", 2, end=True)),
    "unsigned id": (step_of(unsigned(32), start=True, end=True),),
    "not started": step_of(33),
    "no id": infer("sequence", [tensor("INPUT", "INT32", [1, 1])], [bytes(4)]),
    "id 0": step_of(0, start=True),
    "in a stream": stream(part(34, 1, start=True), part(34, 2), part(34, 3, end=True)),
    "in a stream, not started": stream(part(35)),
}

TOPICS: Mapping[str, Topic] = {
    "health": HEALTH,
    "metadata": METADATA,
    "description": DESCRIPTION,
    "index": INDEX,
    "infer": INFER,
    "invalid": INVALID,
    "strings": STRINGS,
    "types": TYPES,
    "classification": CLASSIFICATION,
    "parameters": PARAMETERS,
    "stream": STREAM,
    "shared memory": SHARED_MEMORY,
    "repository": REPOSITORY,
    "trace": TRACE,
    "logging": LOGGING,
    "sequence": SEQUENCE,
}
