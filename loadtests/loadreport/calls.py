"""Requests as bytes, made before any clock starts, and what their answers say."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tritonclient.grpc import service_pb2

from loadreport.models import Front, ShippedModel
from loadreport.pools import Sample

GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
LENGTH_HEADER = "Inference-Header-Content-Length"
CLOSE = 2
"""Levels of 255 by which a pixel may differ between one drawing of a picture and another."""

_DATATYPES = {"uint8": "UINT8", "float32": "FP32", "object": "BYTES"}
_BOUNDARY = "slipway-loadtest"
_NOTHING: Mapping[str, npt.NDArray[Any]] = MappingProxyType({})


@dataclass(frozen=True)
class Call:
    path: str
    """Of HTTP, or a method of gRPC."""
    headers: Mapping[str, str]
    body: bytes
    truth: str | None
    """What the answer says, where that is known beforehand and told in words."""


@dataclass(frozen=True)
class Answer:
    body: bytes
    header_length: int = 0
    """Of protocol v2's JSON header, or 0."""


class Unreadable(Exception):
    """An answer is not of the form that it should have."""


def calls(model: ShippedModel, front: Front, samples: Sequence[Sample]) -> list[Call]:
    # A tensor of logits over time is not yet words; and one that writes is not sure of its words
    # when they are louder.
    if model.kind == "dictation" or (
        model.kind in ("speech", "live") and front in ("v2_http", "v2_grpc")
    ):
        samples = [replace(sample, truth=None) for sample in samples]
    return [_call(model, front, sample) for sample in samples]


def tensor_call(
    model: ShippedModel, sample: Sample, beside: Mapping[str, npt.NDArray[Any]] = _NOTHING
) -> Call:
    """In protocol v2 over HTTP, for a model of any kind of that name. `beside` goes before it."""
    tensors = {**beside, model.input: sample.tensor}
    raw = [_raw(tensor) for tensor in tensors.values()]
    header = json.dumps(
        {
            "inputs": [
                _described(name, tensor) | {"parameters": {"binary_data_size": len(binary)}}
                for (name, tensor), binary in zip(tensors.items(), raw, strict=True)
            ],
            "outputs": [{"name": model.output, "parameters": {"binary_data": True}}],
            "parameters": dict(sample.parameters),
        }
    ).encode()
    headers = {LENGTH_HEADER: str(len(header))}
    return Call(f"/v2/models/{model.name}/infer", headers, header + b"".join(raw), sample.truth)


def _call(model: ShippedModel, front: Front, sample: Sample) -> Call:
    match front:
        case "v2_http":
            return tensor_call(model, sample)
        case "v2_grpc":
            return Call(GRPC_METHOD, {}, _message(model, sample), sample.truth)
        case "task":
            headers = {"Content-Type": sample.media_type}
            return Call(f"/models/{model.name}", headers, sample.payload, sample.truth)
        case "openai":
            return _openai(model, sample)
        case "stream":
            document = {model.input: sample.tensor.item().decode(), **sample.parameters}
            path = f"/v2/models/{model.name}/generate_stream"
            headers = {"Content-Type": "application/json"}
            return Call(path, headers, json.dumps(document).encode(), sample.truth)


def _message(model: ShippedModel, sample: Sample) -> bytes:
    described = _described(model.input, sample.tensor)
    message = service_pb2.ModelInferRequest(model_name=model.name)
    message.inputs.add(**described)
    message.raw_input_contents.append(_raw(sample.tensor))
    for name, value in sample.parameters.items():
        message.parameters[name].int64_param = value
    serialized: bytes = message.SerializeToString()
    return serialized


def _openai(model: ShippedModel, sample: Sample) -> Call:
    if model.kind == "picture":
        wish = {"model": model.name, "prompt": sample.tensor.item().decode(), **sample.parameters}
        headers = {"Content-Type": "application/json"}
        return Call("/v1/images/generations", headers, json.dumps(wish).encode(), sample.truth)
    part = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
    body = (
        f'{part}"model"\r\n\r\n{model.name}\r\n{part}"file"; filename="recording.wav"\r\n\r\n'
    ).encode()
    body += sample.payload + f"\r\n--{_BOUNDARY}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    return Call("/v1/audio/transcriptions", headers, body, sample.truth)


def _described(name: str, tensor: npt.NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": _DATATYPES[tensor.dtype.name], "shape": list(tensor.shape)}


def _raw(tensor: npt.NDArray[Any]) -> bytes:
    if tensor.dtype == np.object_:
        return b"".join(struct.pack("<I", len(text)) + text for text in tensor.flat)
    return tensor.tobytes()


def said(model: ShippedModel, front: Front, answer: Answer) -> str:
    """What an answer says, as a text: a label, a text, or a picture's pixels in base64.

    Of logits over time it is the likeliest class of every frame, without repetitions, in numbers.
    Raises `Unreadable`.
    """
    try:
        text = _said(model, front, answer)
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}: {answer.body[:200]!r}") from error
    if not text:
        raise Unreadable("the answer is empty")
    return text


def _said(model: ShippedModel, front: Front, answer: Answer) -> str:
    body = answer.body
    if front == "v2_http":
        header = json.loads(body[: answer.header_length])
        [output] = [each for each in header["outputs"] if each["name"] == model.output]
        return _of_tensor(model, body[answer.header_length :], output["shape"])
    if front == "v2_grpc":
        message = service_pb2.ModelInferResponse.FromString(body)
        names = [output.name for output in message.outputs]
        place = names.index(model.output)
        return _of_tensor(
            model, message.raw_output_contents[place], list(message.outputs[place].shape)
        )
    if front == "stream":
        return _of_events(model, body)
    if model.kind == "picture":
        if front == "openai":
            body = base64.b64decode(json.loads(body)["data"][0]["b64_json"])
        with Image.open(io.BytesIO(body)) as picture:
            return base64.b64encode(picture.tobytes()).decode()
    document = json.loads(body)
    match model.kind:
        case "label":
            return str(document[0]["label"])
        case "text":
            return str(document[0]["translation_text"])
    return str(document["text"])


def _of_tensor(model: ShippedModel, raw: bytes, shape: Sequence[int]) -> str:
    match model.kind:
        case "text" | "dictation":
            return raw[4:].decode()
        case "picture":
            return base64.b64encode(raw).decode()
    best = np.frombuffer(raw, np.float32)[: int(np.prod(shape))].reshape(shape)[0].argmax(axis=-1)
    if model.kind == "label":
        return str(best)
    return " ".join(str(each) for each in best[np.r_[True, best[1:] != best[:-1]]])


def _of_events(model: ShippedModel, body: bytes) -> str:
    """Of server-sent events: pieces of a text, joined; of pictures the last."""
    pieces = []
    for line in body.decode().splitlines():
        if line.startswith("data: "):
            document = json.loads(line.removeprefix("data: "))
            if "error" in document:
                raise ValueError(document["error"])
            pieces.append(document[model.output])
    if model.kind == "picture":
        return base64.b64encode(bytes(pieces[-1])).decode()
    return "".join(pieces)


def agree(model: ShippedModel, one: str, other: str) -> bool:
    """Whether two answers say the same. Pictures are the same within `CLOSE` levels of a pixel."""
    if one == other or model.kind != "picture":
        return one == other
    first, second = (np.frombuffer(base64.b64decode(each), np.uint8) for each in (one, other))
    if first.shape != second.shape:
        return False
    return bool(np.abs(first.astype(int) - second.astype(int)).max() <= CLOSE)
