"""POST /v1/images/generations: pictures as OpenAI's clients ask for them.

Of what they may send, `quality`, `style`, `moderation`, `user` and `safety_identifier` have no
effect. What diffusion models have besides, such as `seed`, may be sent along (`extra_body` in
OpenAI's client).
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic, time
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from serving.calls import Call, Front
from serving.errors import RequestError, shown
from serving.fronts.asgi import call_of, describe, read_body
from serving.fronts.asking import Asking
from serving.fronts.checked import about, checked
from serving.fronts.events import begun, event
from serving.fronts.json_body import parse_object
from serving.fronts.openai import TAG, openai_error
from serving.fronts.restricted import Restrictions
from serving.fronts.v2_control import allowed
from serving.server import Server
from serving.tasks import Question
from serving.tasks.text_to_image import OUTPUT, Encoding, TextToImage, encoded, prompts
from serving.types import Array, Parameter, Tensors

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_MODELS_OWN = ("seed", "num_inference_steps", "guidance_scale", "negative_prompt", "scheduler")


class _Wishes(BaseModel, extra="forbid", frozen=True):
    model: str
    prompt: Annotated[str, Field(max_length=32_000)]
    n: Annotated[int, Field(ge=1, le=10)] = 1
    size: str = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] = 100
    background: Literal["auto", "opaque"] = "auto"
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0
    # The model's.
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    scheduler: str | None = None
    # Without effect.
    quality: str = "auto"
    style: str | None = None
    moderation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None

    @property
    def encoding(self) -> Encoding:
        return Encoding(self.output_format, self.output_compression)


_BODY: Mapping[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _Wishes.model_json_schema()}},
    }
}


def router(
    server: Server,
    asking: Asking,
    restrictions: Restrictions,
    max_body_bytes: int,
    statuses: Mapping[str, int],
) -> APIRouter:
    """POST /v1/images/generations"""
    routes = APIRouter(tags=[TAG], dependencies=[allowed(restrictions, "inference")])

    @routes.post("/v1/images/generations", openapi_extra=dict(_BODY))
    async def generate(request: Request) -> Response:
        """Draw pictures, as OpenAI's clients ask for them.

        With `stream`, up to three partial images come before the picture. `seed`,
        `num_inference_steps`, `guidance_scale`, `negative_prompt` and `scheduler` are the model's.
        """
        call = call_of(request.scope, Front.OPENAI, "/v1/images/generations")
        wishes = await asked(request, call)
        question = Question(wishes, prompts([wishes.prompt] * wishes.n), _parameters(wishes))
        outputs = asking.outputs(wishes.model, question, call, in_parts=wishes.stream)
        try:
            if wishes.stream:
                return await begun(_events(outputs, wishes, statuses))
            async with aclosing(outputs):
                [answer] = [part async for part in outputs]
        except RequestError as error:
            error.field = error.field or _field(str(error))
            raise
        return await asyncio.to_thread(_pictures, answer, wishes)

    async def asked(request: Request, call: Call) -> _Wishes:
        """What is asked. Nothing of the body is left."""
        name = ""
        try:
            document = parse_object(await read_body(request.receive, max_body_bytes))
            call.received = monotonic()
            name = document["model"] if isinstance(document.get("model"), str) else ""
            wishes = checked(_Wishes, {k: v for k, v in document.items() if v is not None})
            _check(wishes, server)
            return wishes
        except RequestError as error:
            if name:
                server.note_invalid(error, call, name)
            raise

    return routes


def _check(wishes: _Wishes, server: Server) -> None:
    try:
        task = server.model(wishes.model).task
    except RequestError as error:
        error.field = "model"
        raise
    if not isinstance(task, TextToImage):
        raise about("model", f"expected a model that draws, got {shown(wishes.model)}")
    if wishes.size != "auto" and not _SIZE.fullmatch(wishes.size):
        raise about("size", f"expected 'auto' or such as '512x512', got {shown(wishes.size)}")
    if wishes.stream and wishes.n > 1:
        raise about("n", f"expected 1 with stream, got {wishes.n}")
    if wishes.partial_images and not wishes.stream:
        raise about("partial_images", "expected stream true with it")


def _parameters(wishes: _Wishes) -> dict[str, Parameter]:
    """Of the request to the model."""
    chosen: dict[str, Parameter] = {
        name: value for name in _MODELS_OWN if (value := getattr(wishes, name)) is not None
    }
    if size := _SIZE.fullmatch(wishes.size):
        chosen["width"], chosen["height"] = map(int, size.groups())
    return chosen | {"partial_images": wishes.partial_images}


def _field(message: str) -> str | None:
    """Which field a model complains of."""
    if message.startswith("prompt:"):
        return "prompt"
    if "'width' and 'height'" in message:
        return "size"
    return next((name for name in _MODELS_OWN if repr(name) in message), None)


@dataclass(frozen=True, slots=True)
class _Picture:
    """As it is sent."""

    data: str
    size: str

    @classmethod
    def of(cls, pixels: Array, encoding: Encoding) -> _Picture:
        height, width, _ = pixels.shape
        return cls(b64encode(encoded(pixels, encoding)).decode(), f"{width}x{height}")


def _pictures(answer: Tensors, wishes: _Wishes) -> Response:
    pictures = [_Picture.of(pixels, wishes.encoding) for pixels in answer[OUTPUT]]
    document = {
        "created": int(time()),
        "background": "opaque",
        "output_format": wishes.output_format,
        "size": pictures[0].size,
        "data": [{"b64_json": picture.data} for picture in pictures],
    }
    return Response(orjson.dumps(document), media_type="application/json")


async def _events(
    outputs: AsyncGenerator[Tensors], wishes: _Wishes, statuses: Mapping[str, int]
) -> AsyncGenerator[bytes, None]:
    """The pictures as they come, the last one complete; one that tells of an error is the last.

    Of fewer steps than partial images are wanted, the picture itself is shown as one, too. Raises
    what goes wrong before the first event.
    """
    shown_so_far = 0
    latest: _Picture | None = None
    async with aclosing(outputs):
        try:
            async for part in outputs:
                [pixels] = part[OUTPUT]
                latest = await asyncio.to_thread(_Picture.of, pixels, wishes.encoding)
                if shown_so_far < wishes.partial_images:
                    yield _event("partial_image", latest, wishes, index=shown_so_far)
                    shown_so_far += 1
            assert latest is not None, "a stream ends with its picture. This is a bug."
            yield _event("completed", latest, wishes)
        except Exception as error:
            if not shown_so_far:
                raise
            status, message, _ = describe(error, statuses)
            yield event(openai_error(status, message, error))


def _event(kind: str, picture: _Picture, wishes: _Wishes, index: int | None = None) -> bytes:
    document: dict[str, Any] = {
        "type": f"image_generation.{kind}",
        "b64_json": picture.data,
        "created_at": int(time()),
        "size": picture.size,
        "quality": "auto",
        "background": "opaque",
        "output_format": wishes.output_format,
    }
    if index is not None:
        document["partial_image_index"] = index
    else:
        document["usage"] = _NO_TOKENS
    return event(orjson.dumps(document))


_NO_TOKENS: Mapping[str, Any] = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""Clients expect that they are told of tokens."""
