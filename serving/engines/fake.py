"""An engine without a model: for tests of everything around engines, and as a load-test floor.

`backend: "fake"` in `config.pbtxt`, with these `parameters`:

- `delay_ms`: how long one run takes, whatever its batch (default 0);
- `fail_every`: every n-th run raises (default: none does).

Each output echoes the input at the same position, or the last one, so a caller can tell whose
answer it got. The state of a sequence stays what it is. The model behind it has whatever tensors
the config gives it.

A decoupled model answers once for every element of its first input, in order. The first output is
that element, the second (if there is one) its index. `delay_ms` is then the pause before every
response, and `fail_every` = n makes every n-th response of a stream raise. As in Triton's
`repeat_int32`, an input `DELAY` holds the pause before each response and `WAIT` a last pause, in
milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

import numpy as np

from serving.config import ModelConfig
from serving.errors import InvalidRequest, ModelLoadError
from serving.interface import engine_inputs, engine_outputs
from serving.types import DYNAMIC, NUMPY_TYPES, Array, Parameter, Tensors, TensorSpec


class FakeEngine:
    """Echoes, and counts what is `running`."""

    def __init__(self, config: ModelConfig, *, delay_s: float = 0.0, fail_every: int = 0):
        self.inputs: Sequence[TensorSpec] = engine_inputs(config)
        self.outputs: Sequence[TensorSpec] = engine_outputs(config)
        self._states = config.sequences.states if config.sequences else ()
        self.running = 0
        self._runs = 0
        self._delay_s = delay_s
        self._fail_every = fail_every

    def infer_at_once(self, inputs: Tensors) -> Tensors | None:
        return None

    async def infer(self, inputs: Tensors) -> Tensors:
        values = list(inputs.values())
        self._runs += 1
        run = self._runs
        self.running += 1
        try:
            await asyncio.sleep(self._delay_s)
            if self._fail_every and run % self._fail_every == 0:
                raise RuntimeError(f"run {run} fails, as configured")
        finally:
            self.running -= 1
        outputs = {}
        for position, spec in enumerate(self.outputs):
            value = values[min(position, len(values) - 1)] if values else _filled(spec, 0)
            outputs[spec.name] = _cast(value, spec.datatype)
        for state in self._states:
            outputs[state.output_name] = inputs[state.input_name]
        return outputs

    async def stream(
        self, inputs: Tensors, parameters: Mapping[str, Parameter]
    ) -> AsyncGenerator[Tensors, None]:
        elements = next(iter(inputs.values()), np.empty(0)).ravel()
        delays_s = _milliseconds(inputs.get("DELAY"), default=[self._delay_s] * elements.size)
        if len(delays_s) != elements.size:
            raise InvalidRequest(
                f"input 'DELAY' has {len(delays_s)} elements for {elements.size} responses"
            )
        self.running += 1
        try:
            for index, delay_s in enumerate(delays_s):
                await asyncio.sleep(delay_s)
                if self._fail_every and (index + 1) % self._fail_every == 0:
                    raise RuntimeError(f"response {index + 1} fails, as configured")
                yield {
                    spec.name: _filled(spec, index if position == 1 else elements[index])
                    for position, spec in enumerate(self.outputs)
                }
            await asyncio.sleep(sum(_milliseconds(inputs.get("WAIT"), default=[])))
        finally:
            self.running -= 1

    async def close(self) -> None:
        if self.running:
            raise AssertionError("closed while it ran. This is a bug.")


def load(config: ModelConfig, directory: Path) -> FakeEngine:
    settings = config.parameters
    try:
        delay_s = float(settings.get("delay_ms", "0")) / 1e3
        fail_every = int(settings.get("fail_every", "0"))
    except ValueError as error:
        raise ModelLoadError(f"{directory.parent}/config.pbtxt: parameters: {error}") from error
    return FakeEngine(config, delay_s=delay_s, fail_every=fail_every)


def _milliseconds(tensor: Array | None, default: list[float]) -> list[float]:
    """The elements in seconds."""
    return default if tensor is None else [float(value) / 1e3 for value in tensor.flat]


def _filled(spec: TensorSpec, value: object) -> Array:
    """The least tensor that fits the spec, with one value everywhere."""
    tensor = np.empty([1 if size == DYNAMIC else size for size in spec.shape], dtype=object)
    tensor.fill(value)
    return _cast(tensor, spec.datatype)


def _cast(tensor: Array, datatype: str) -> Array:
    """BYTES elements are written and read as decimal numbers."""
    dtype = NUMPY_TYPES[datatype]
    if datatype != "BYTES":
        return tensor.astype(dtype, copy=False)
    texts = (v if isinstance(v, bytes) else str(v).encode() for v in tensor.flat)
    return np.fromiter(texts, dtype=dtype, count=tensor.size).reshape(tensor.shape)
