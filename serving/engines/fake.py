"""An engine without a model: for tests of everything around engines, and as a load-test floor.

`backend: "fake"` in `config.pbtxt`, with these `parameters`:

- `delay_ms`: how long one run takes, whatever its batch (default 0);
- `fail_every`: every n-th run raises (default: none does).

Each output echoes the input at the same position, so a caller can tell whose answer it got.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from serving.config import ModelConfig
from serving.errors import ModelLoadError
from serving.types import Tensors


class FakeEngine:
    """Echoes; counts what is running in `running` and keeps every batch's rows in `batch_rows`."""

    def __init__(self, config: ModelConfig, *, delay_s: float = 0.0, fail_every: int = 0):
        self.inputs = config.inputs
        self.outputs = config.outputs
        self.running = 0
        self.batch_rows: list[int] = []
        self._delay_s = delay_s
        self._fail_every = fail_every

    async def infer(self, inputs: Tensors) -> Tensors:
        values = list(inputs.values())
        self.batch_rows.append(len(values[0]))
        self.running += 1
        try:
            await asyncio.sleep(self._delay_s)
            if self._fail_every and len(self.batch_rows) % self._fail_every == 0:
                raise RuntimeError(f"run {len(self.batch_rows)} fails, as configured")
        finally:
            self.running -= 1
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

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
