"""What a request looks like on the wire, and where its answer is."""

from __future__ import annotations

import json
import struct
from typing import Literal

Wire = Literal["task", "v2"]
"""`POST /models/NAME` with JSON, as all servers here understand it; or protocol v2, binary."""

LENGTH_HEADER = b"inference-header-content-length"


def request(wire: Wire, model: str, text: str, max_new_tokens: int) -> bytes:
    """A whole HTTP request."""
    parameters = {"max_new_tokens": max_new_tokens}
    if wire == "task":
        body = json.dumps({"inputs": text, "parameters": parameters}).encode()
        return _post(f"/models/{model}", body, "Content-Type: application/json")
    element = text.encode()
    tensor = struct.pack("<I", len(element)) + element
    header = json.dumps(
        {
            "parameters": parameters,
            "inputs": [
                {
                    "name": "text_input",
                    "datatype": "BYTES",
                    "shape": [1, 1],
                    "parameters": {"binary_data_size": len(tensor)},
                }
            ],
            "outputs": [{"name": "text_output", "parameters": {"binary_data": True}}],
        }
    ).encode()
    return _post(
        f"/v2/models/{model}/infer",
        header + tensor,
        f"Inference-Header-Content-Length: {len(header)}",
    )


def answer(wire: Wire, body: bytes, header_length: int) -> str:
    """The text in the body of a response. `header_length` is what `LENGTH_HEADER` says, or 0."""
    if wire == "v2":
        return body[header_length + 4 :].decode()
    document = json.loads(body)
    text = document[0]["translation_text"]
    assert isinstance(text, str), "a translation is a string"
    return text


def _post(path: str, body: bytes, header: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body
