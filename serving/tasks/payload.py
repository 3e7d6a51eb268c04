"""What a caller sent, in the form that a task wants."""

from __future__ import annotations

import base64
import binascii

from serving.errors import InvalidRequest, shown


def as_bytes(payload: object) -> bytes:
    """A file. Raises `InvalidRequest` for what is neither bytes nor their base64."""
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, str):
        try:
            return base64.b64decode(payload.partition("base64,")[2] or payload, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise InvalidRequest(
        f"inputs: expected a string in base64, got {shown(payload)}; or send the input itself as"
        " the body, with another Content-Type"
    )


def as_texts(payload: object) -> list[str]:
    """One text or several. Raises `InvalidRequest`."""
    if isinstance(payload, bytes):
        try:
            return [payload.decode()]
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the body is not text in UTF-8: {error.reason}") from None
    texts: list[str] = []
    for text in payload if isinstance(payload, list) else [payload]:
        if not isinstance(text, str):
            raise InvalidRequest(f"inputs: expected a text or an array of them, got {shown(text)}")
        texts.append(text)
    if not texts:
        raise InvalidRequest("inputs: expected a text or an array of them, got an empty array")
    return texts


def as_one_text(payload: object) -> str:
    """Raises `InvalidRequest`."""
    if isinstance(payload, str):
        return payload
    if isinstance(payload, bytes):
        return as_texts(payload)[0]
    raise InvalidRequest(f"inputs: expected a text, got {shown(payload)}")
