"""What the tasks of models that generate text have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import orjson

from serving.errors import InvalidRequest, shown
from serving.types import DYNAMIC, Parameter, Tensors, TensorSpec

INPUT = "text_input"
OUTPUT = "text_output"
INPUTS = (TensorSpec(INPUT, "BYTES", (DYNAMIC, 1)),)
OUTPUTS = (TensorSpec(OUTPUT, "BYTES", (DYNAMIC, 1)),)


def to_tensors(texts: Sequence[str]) -> Tensors:
    """A row for each text."""
    tensor = np.empty((len(texts), 1), np.object_)
    tensor[:, 0] = [text.encode() for text in texts]
    return {INPUT: tensor}


def from_tensors(outputs: Tensors) -> list[str]:
    """The generated text of each row."""
    return [text.decode() for text in outputs[OUTPUT].ravel()]


def request_parameters(settings: Iterable[Mapping[str, object]]) -> dict[str, Parameter]:
    """Settings for the model as parameters of a request, which are scalars.

    Null is what callers send for "not set". Raises `InvalidRequest`, naming the setting.
    """
    parameters: dict[str, Parameter] = {}
    for key, value in (item for some in settings for item in some.items()):
        if isinstance(value, str | int | float | bool):
            parameters[key] = value
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            parameters[key] = orjson.dumps(value).decode()
        elif value is not None:
            raise InvalidRequest(
                f"parameters.{key}: expected a scalar or an array of strings, got {shown(value)}"
            )
    return parameters
