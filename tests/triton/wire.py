"""Requests as they go over the wire, malformed ones included, and what of an answer must agree."""

from __future__ import annotations

import gzip
import http.client
import json
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEADER = "Inference-Header-Content-Length"
TESTED_TEXTS = (
    "Request for unknown model",
    "failed to load",
    "failed to poll from model repository",
    "Exceeds maximum queue size",
    "Request timeout expired",
)
"""What of an error's text public clients and tests look for."""

EQUAL = ("id", "model_name", "model_version", "parameters")
"""What of any answer must be equal, not only be there."""

SERVERS_OWN = ("platform", "reason")
"""Of a document that must be equal, what each server says in its own way."""

Answer = dict[str, Any]
"""What must agree, by the name under which `differences.py` may allow it to differ.

But for `document`, of which only the keys need agree, save in the cases that ask for more.
"""


@dataclass(frozen=True)
class Difference:
    field: str
    triton: Any
    slipway: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.triton!r} from Triton, {self.slipway!r} from Slipway"


class Server:
    """One of the two servers."""

    def __init__(self, name: str, http_port: int, grpc_port: int):
        self.name = name
        self.http_port = http_port
        self.channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")


@dataclass(frozen=True)
class Http:
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def send(self, server: Server) -> Answer:
        address = "127.0.0.1", server.http_port
        with closing(http.client.HTTPConnection(*address, timeout=20)) as connection:
            chunked = "Transfer-Encoding" in self.headers
            connection.request(
                self.method,
                self.path,
                [self.body] if chunked else self.body,
                dict(self.headers),
                encode_chunked=chunked,
            )
            response = connection.getresponse()
            return _http_answer(response.status, response.headers, response.read())


@dataclass(frozen=True)
class Grpc:
    rpc: str
    message: Message | bytes
    service: str = SERVICE.full_name

    def send(self, server: Server) -> Answer:
        method: Any = server.channel.unary_unary(f"/{self.service}/{self.rpc}")
        try:
            content = method(_serialized(self.message), timeout=20)
        except grpc.RpcError as error:
            return _rpc_error(error)
        if self.rpc not in SERVICE.methods_by_name:
            return {"status": "OK", "content": content.hex()}
        return {"status": "OK"} | _message_answer(_reply(self.rpc, content))


@dataclass(frozen=True)
class Stream:
    """One ModelStreamInfer: these messages, and every response until the server ends it."""

    messages: tuple[Message, ...]

    def send(self, server: Server) -> Answer:
        method: Any = server.channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")
        responses: list[Answer] = []
        status: Answer = {"status": "OK"}
        try:
            responses.extend(
                _stream_response(_reply("ModelStreamInfer", content))
                for content in method(map(_serialized, self.messages), timeout=20)
            )
        except grpc.RpcError as error:
            status = _rpc_error(error)
        # Only the responses to one request have an order.
        return status | {"responses": sorted(responses, key=lambda each: str(each.get("id")))}


@dataclass(frozen=True)
class Together:
    """Requests in flight at the same time; what counts is which answers come, not to whom."""

    requests: tuple[Http | Grpc, ...]

    def send(self, server: Server) -> Answer:
        with ThreadPoolExecutor(len(self.requests)) as pool:
            futures = []
            for request in self.requests:
                futures.append(pool.submit(request.send, server))
                time.sleep(0.005)
            answers = [future.result() for future in futures]
        return {
            "statuses": sorted({str(answer["status"]) for answer in answers}),
            "texts": sorted({text for answer in answers for text in answer.get("texts", ())}),
        }


@dataclass(frozen=True)
class Own:
    """A request that must name files, which each server has its own kind of."""

    triton: Http | Grpc
    slipway: Http | Grpc

    def send(self, server: Server) -> Answer:
        return (self.triton if server.name == "triton" else self.slipway).send(server)


Step = Http | Grpc | Stream | Together | Own


def differences(triton: Answer, slipway: Answer, *, equal_documents: bool) -> list[Difference]:
    if _failed(triton) != _failed(slipway):
        # All else differs in consequence.
        return [Difference("status", _outcome(triton), _outcome(slipway))]
    found = []
    for name in sorted((triton.keys() | slipway.keys()) - {"document"}):
        theirs, ours = triton.get(name), slipway.get(name)
        if name in ("events", "responses") and theirs and ours and len(theirs) == len(ours):
            for each in zip(theirs, ours, strict=True):
                found += differences(*each, equal_documents=equal_documents)
        elif theirs != ours:
            if name == "keys" and theirs and ours:
                theirs, ours = (sorted({*a} - {*b}) for a, b in ((theirs, ours), (ours, theirs)))
            found.append(Difference(name, theirs, ours))
    if equal_documents and not _failed(triton):
        theirs, ours = _comparable(triton.get("document")), _comparable(slipway.get("document"))
        if theirs != ours:
            found.append(Difference("document", theirs, ours))
    return found


def _failed(answer: Answer) -> bool:
    return answer.get("status") not in (None, 200, "OK") or "error" in answer


def _outcome(answer: Answer) -> Any:
    status = answer.get("status")
    return "error" if status in (None, 200, "OK") and _failed(answer) else status


def _comparable(document: Any) -> Any:
    """Without what is each server's own, and without the order of things that have names."""
    if isinstance(document, dict):
        return {k: _comparable(v) for k, v in document.items() if k not in SERVERS_OWN}
    if isinstance(document, list):
        items = [_comparable(item) for item in document]
        return sorted(items, key=str) if any(isinstance(item, dict) for item in items) else items
    return document


def _http_answer(status: int, headers: http.client.HTTPMessage, body: bytes) -> Answer:
    encoding = headers.get("Content-Encoding", "")
    if encoding == "gzip":
        body = gzip.decompress(body)
    elif encoding == "deflate":
        body = zlib.decompress(body)
    length = headers.get(HEADER)
    content_type = headers.get("Content-Type", "").partition(";")[0] if body else ""
    answer: Answer = {
        "status": status,
        "content type": content_type,
        "content encoding": encoding,
        "binary header": length is not None,
    }
    if content_type == "text/event-stream":
        events = [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event]
        return answer | {"events": [_json_answer(json.loads(event)) for event in events]}
    end = len(body) if length is None else int(length)
    try:
        # Triton may quote bytes in an error that are not text.
        document = json.loads(body[:end].decode(errors="surrogateescape"))
    except ValueError:
        return answer | {"body": "text" if body else "empty"}
    return answer | _json_answer(document, body[end:])


def _json_answer(document: Any, binary: bytes = b"") -> Answer:
    answer = _document_answer(document)
    if isinstance(document, dict) and "error" in document:
        # Triton labels some errors as text, and all of ours are the JSON that they are.
        answer |= {"error": True, "texts": _texts(document["error"]), "content type": "any"}
    if isinstance(document, dict) and "outputs" in document:
        answer["tensors"] = {}
        for output in document["outputs"]:
            datatype, values = output["datatype"], None
            size = output.get("parameters", {}).get("binary_data_size")
            if size is not None:
                values, binary = decoded(binary[:size], datatype), binary[size:]
            elif "data" in output:
                values = [_plain(value, datatype) for value in _flat(output["data"])]
            answer["tensors"][output["name"]] = datatype, output["shape"], values
        answer["excess bytes"] = len(binary)
    return answer


def _message_answer(message: Message) -> Answer:
    answer = _document_answer(_as_json(message))
    if isinstance(message, service_pb2.ModelInferResponse):
        raw = list(message.raw_output_contents)
        answer["raw contents"] = len(raw)
        answer["tensors"] = {
            output.name: (output.datatype, list(output.shape), decoded(content, output.datatype))
            for output, content in zip(message.outputs, raw, strict=False)
        }
    return answer


def _as_json(message: Message) -> Any:
    # A key that is there only if its value is not 0 would compare values, not keys.
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _stream_response(response: Any) -> Answer:
    answer = _message_answer(response.infer_response)
    if not response.error_message:
        return answer
    message = response.error_message
    return answer | {"error": True, "texts": _texts(message), "document": message}


def _document_answer(document: Any) -> Answer:
    answer: Answer = {"keys": sorted(set(_paths(document))), "document": document}
    if isinstance(document, dict):
        answer |= {key: document[key] for key in EQUAL if key in document}
    return answer


def _rpc_error(error: Any) -> Answer:
    details = error.details() or ""
    return {"status": error.code().name, "texts": _texts(details), "document": details}


def _texts(message: str) -> list[str]:
    return [text for text in TESTED_TEXTS if text in message]


def _paths(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}.{key}"
            yield from _paths(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item, f"{path}[]")


def _flat(data: Any) -> Iterator[Any]:
    if isinstance(data, list):
        for item in data:
            yield from _flat(item)
    else:
        yield data


def decoded(content: bytes, datatype: str) -> list[str]:
    if datatype == "BYTES":
        return [
            _plain(element.decode(errors="surrogateescape"), datatype)
            for element in _elements(content)
        ]
    names = {"BOOL": "bool", "BF16": "uint16", "FP16": "float16", "FP32": "float32"}
    dtype = np.dtype(names.get(datatype, datatype.lower().replace("fp64", "float64")))
    return [_plain(value, datatype) for value in np.frombuffer(content, dtype).tolist()]


def _plain(value: Any, datatype: str) -> str:
    """A value as text, in which NaN equals itself and 1 differs from true."""
    if datatype == "FP32":
        # However many digits of it were written.
        return repr(float(np.float32(value)))
    return repr(value)


def _elements(content: bytes) -> Iterator[bytes]:
    while content:
        (size,) = struct.unpack_from("<I", content)
        yield content[4 : 4 + size]
        content = content[4 + size :]


def _serialized(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _reply(rpc: str, content: bytes) -> Any:
    return SERVICE.methods_by_name[rpc].output_type._concrete_class.FromString(content)
