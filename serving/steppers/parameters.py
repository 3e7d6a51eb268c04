"""What one request for generated text may choose, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from serving.errors import InvalidRequest, shown
from serving.types import Parameter

MAX_BEAMS = 16

_Model = TypeVar("_Model", bound=BaseModel)


def _strings(value: object) -> object:
    """The protocol's parameters are scalars, so several strings come as a JSON array in one."""
    if isinstance(value, list | tuple):
        return tuple(value)
    if not isinstance(value, str):
        raise ValueError("expected a string or several")
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        return (value,)
    if isinstance(parsed, list) and all(isinstance(item, str) for item in parsed):
        return tuple(parsed)
    return (value,)


_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_Stops = Annotated[tuple[_Stop, ...], Field(max_length=16), BeforeValidator(_strings)]


class GenerationParameters(
    BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False
):
    """Names and meanings are those of transformers' `GenerationConfig`.

    `stop` ends the text before the first of these strings; several are a list, or a JSON array
    within one string. Without a `seed`, sampling is different each time.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    num_beams: Annotated[int, Field(ge=1, le=MAX_BEAMS)] = 1
    # Within these limits no power of a length leaves the range of float32.
    length_penalty: Annotated[float, Field(ge=-5, le=5)] = 1.0
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False
    temperature: Annotated[float, Field(ge=1e-8, le=100)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 50
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=64)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    stop: _Stops = ()

    @model_validator(mode="after")
    def _go_together(self) -> GenerationParameters:
        if self.num_beams > 1 and self.do_sample:
            raise ValueError("num_beams greater than 1 does not go with do_sample")
        if self.num_beams > 1 and self.stop:
            raise ValueError("num_beams greater than 1 does not go with stop")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens,"
                f" {self.max_new_tokens}"
            )
        return self

    def replaced(self, requested: Mapping[str, Parameter]) -> GenerationParameters:
        """These, with what a request asks for in their place.

        Where defaults and request exclude each other the request wins. As in Hugging Face's text
        generation servers, a temperature, `top_k` or `top_p` that would have an effect asks for
        sampling, unless the request itself says `do_sample` false or asks for beams.

        Raises `InvalidRequest`, naming the parameter.
        """
        if not requested:
            return self
        values: dict[str, Any] = {**dict(self), **requested}
        if "do_sample" not in requested:
            if "num_beams" in requested and requested["num_beams"] != 1:
                values["do_sample"] = False
            elif any(
                requested.get(name, neutral) != neutral for name, neutral in _SAMPLING.items()
            ):
                values["do_sample"] = True
        if "num_beams" not in requested and (values["do_sample"] is True or "stop" in requested):
            values["num_beams"] = 1
        if "min_new_tokens" not in requested and isinstance(values["max_new_tokens"], int):
            values["min_new_tokens"] = min(self.min_new_tokens, max(0, values["max_new_tokens"]))
        return validated(GenerationParameters, values)


_SAMPLING: Mapping[str, float] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""With these values they change nothing."""


def validated(schema: type[_Model], parameters: Mapping[str, object]) -> _Model:
    """A request's parameters, checked. Raises `InvalidRequest` for the first that is wrong."""
    try:
        return schema.model_validate(parameters)
    except ValidationError as error:
        raise InvalidRequest(_first_reason(error, schema)) from None


def _first_reason(error: ValidationError, schema: type[BaseModel]) -> str:
    errors = error.errors(include_url=False)
    first = errors[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    name = first["loc"][0]
    where = f"parameter {shown(str(name))}"
    if first["type"] == "extra_forbidden":
        return f"{where} is not known; expected any of {', '.join(schema.model_fields)}"
    # A union has one error for each of its members.
    reasons = [
        one["msg"].removeprefix("Value error, ") for one in errors if one["loc"][:1] == (name,)
    ]
    expected = " or ".join(dict.fromkeys(reasons)).replace("Input should be", "expected")
    return f"{where}: {expected}, got {shown(first['input'])}"
