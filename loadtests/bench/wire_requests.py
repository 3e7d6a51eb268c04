"""What wire_speed.py sends in each of the wire formats, and how it reads the answers."""

from __future__ import annotations

import http.client
import json
import struct
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
import numpy as np
from bare_session import Rows
from tritonclient.grpc import service_pb2

Wire = Literal["v2-json", "v2-binary", "v2-grpc", "lists", "raw"]
GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT_S = 30
_LENGTH_HEADER = "Inference-Header-Content-Length"


class Unanswered(OSError):
    """There is no answer, or none of success."""


@dataclass(frozen=True)
class Request:
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def request(wire: Wire, model: str, row: Rows) -> Request:
    """One input [...] as a batch of one."""
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, *row.shape]}
    raw = row.tobytes()
    v2 = f"/v2/models/{model}/infer"
    json_body = {"Content-Type": "application/json"}
    match wire:
        case "v2-json":
            return Request(v2, _json({"inputs": [tensor | {"data": _numbers(row)}]}), json_body)
        case "v2-binary":
            tensor["parameters"] = {"binary_data_size": len(raw)}
            outputs = [{"name": "y", "parameters": {"binary_data": True}}]
            header = _json({"inputs": [tensor], "outputs": outputs})
            binary = {"Content-Type": "application/octet-stream", _LENGTH_HEADER: str(len(header))}
            return Request(v2, header + raw, binary)
        case "v2-grpc":
            message = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[raw])
            message.inputs.add(**tensor)
            body = message.SerializeToString()
            # gRPC's own frame: not compressed, and the length.
            frame = struct.pack(">BI", 0, len(body))
            return Request(
                GRPC_PATH, frame + body, {"content-type": "application/grpc", "te": "trailers"}
            )
        case "lists":
            return Request("/predict", _json({"x": _numbers(row)}), json_body)
        case "raw":
            return Request("/raw", raw, {"Content-Type": "application/octet-stream"})


def ask(wire: Wire, port: int, asked: Request) -> tuple[Rows, int]:
    """The output [class], and the bytes of the answer. Raises `Unanswered`."""
    if wire == "v2-grpc":
        return _ask_grpc(port, asked)
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        try:
            connection.request("POST", asked.path, asked.body, asked.headers)
            response = connection.getresponse()
            body = response.read()
        except http.client.HTTPException as error:
            raise Unanswered(repr(error)) from error
    if response.status != 200:
        raise Unanswered(f"{response.status}: {body[:500].decode(errors='replace')}")
    match wire:
        case "v2-json":
            output = json.loads(body)["outputs"][0]["data"]
        case "v2-binary":
            output = np.frombuffer(body[int(response.headers[_LENGTH_HEADER]) :], np.float32)
        case "raw":
            output = np.frombuffer(body, np.float32)
        case _:
            output = json.loads(body)["y"]
    return np.asarray(output, np.float32).ravel(), len(body)


def _ask_grpc(port: int, asked: Request) -> tuple[Rows, int]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            # The very bytes that the load is made of, without their frame.
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(GRPC_PATH)
            answer = call(asked.body[5:], timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise Unanswered(str(error)) from error
    message = service_pb2.ModelInferResponse.FromString(answer)
    if message.raw_output_contents:
        output = np.frombuffer(message.raw_output_contents[0], np.float32)
    else:
        output = np.asarray(message.outputs[0].contents.fp32_contents, np.float32)
    return output.ravel(), len(answer) + 5


def _numbers(row: Rows) -> list[float]:
    return [round(number, 4) for number in row.ravel().tolist()]


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
