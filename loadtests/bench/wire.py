"""What a request looks like on the wire, and where its answer is."""

from __future__ import annotations

import io
import json
import struct
from base64 import b64encode
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from PIL import Image

Wire = Literal["task", "v2", "recording", "waveform", "picture", "pixels", "numbers"]
"""For texts, `POST /models/NAME` with JSON, as all servers here understand it, or protocol v2,
binary. For recordings, `POST /models/NAME` with the file's bytes, or protocol v2 with samples. For
drawings, `POST /models/NAME` for a PNG, or protocol v2. For numbers, protocol v2."""

LENGTH_HEADER = b"inference-header-content-length"


def request(wire: Wire, model: str, given: str, max_new_tokens: int) -> bytes:
    """A whole HTTP request. `given` is a text, the path of a recording, a drawing's prompt and
    parameters in JSON, or numbers between blanks."""
    parameters = {"max_new_tokens": max_new_tokens}
    match wire:
        case "task":
            body = json.dumps({"inputs": given, "parameters": parameters}).encode()
            return _post(f"/models/{model}", body, "Content-Type: application/json")
        case "recording":
            body = Path(given).read_bytes()
            return _post(f"/models/{model}", body, "Content-Type: application/octet-stream")
        case "v2":
            element = given.encode()
            tensor = struct.pack("<I", len(element)) + element
            text = {"name": "text_input", "datatype": "BYTES", "shape": [1, 1]}
            return _infer(model, text, tensor, "text_output", {"parameters": parameters})
        case "waveform":
            samples, _ = soundfile.read(given, dtype="float32")
            waveform = {"name": "waveform", "datatype": "FP32", "shape": [1, len(samples)]}
            return _infer(model, waveform, samples.tobytes(), "logits", {})
        case "picture":
            return _post(f"/models/{model}", given.encode(), "Content-Type: application/json")
        case "numbers":
            numbers = np.array(given.split(), np.float32)
            described = {"name": "x", "datatype": "FP32", "shape": [1, len(numbers)]}
            return _infer(model, described, numbers.tobytes(), "y", {})
        case "pixels":
            wish = json.loads(given)
            element = wish["inputs"].encode()
            tensor = struct.pack("<I", len(element)) + element
            prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1, 1]}
            return _infer(model, prompt, tensor, "image", {"parameters": wish["parameters"]})


def answer(wire: Wire, body: bytes, header_length: int) -> str:
    """The text in the body of a response. `header_length` is what `LENGTH_HEADER` says, or 0.

    Of logits the text is the likeliest class of every frame, in numbers; of a drawing, its pixels
    in base64.
    """
    if wire == "pixels":
        return b64encode(body[header_length:]).decode()
    if wire == "picture":
        with Image.open(io.BytesIO(body)) as picture:
            return b64encode(picture.tobytes()).decode()
    if wire == "numbers":
        return " ".join(f"{number:g}" for number in np.frombuffer(body[header_length:], np.float32))
    if wire == "v2":
        return body[header_length + 4 :].decode()
    if wire == "waveform":
        [output] = json.loads(body[:header_length])["outputs"]
        logits = np.frombuffer(body[header_length:], np.float32).reshape(output["shape"])
        return " ".join(map(str, logits[0].argmax(axis=1)))
    document = json.loads(body)
    text = document["text"] if wire == "recording" else document[0]["translation_text"]
    assert isinstance(text, str), "a transcript and a translation are strings"
    return text


def _infer(
    model: str, described: dict[str, Any], tensor: bytes, output: str, more: dict[str, Any]
) -> bytes:
    """One binary tensor in, one out."""
    header = json.dumps(
        {
            "inputs": [described | {"parameters": {"binary_data_size": len(tensor)}}],
            "outputs": [{"name": output, "parameters": {"binary_data": True}}],
            **more,
        }
    ).encode()
    return _post(
        f"/v2/models/{model}/infer",
        header + tensor,
        f"Inference-Header-Content-Length: {len(header)}",
    )


def _post(path: str, body: bytes, header: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body
