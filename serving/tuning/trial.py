"""One setting, measured: the model as the server runs it, and clients that wait for its answers."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from time import monotonic

import numpy as np

from serving.app import GENERATIONS, SWITCH_S
from serving.cache import ResponseCache
from serving.config import ModelConfig
from serving.errors import ModelLoadError, NotFound, SlipwayError, Unserved
from serving.loading import Surroundings, load_model
from serving.model import Model
from serving.repository import ModelVersion
from serving.scheduling.meter import LateMeter
from serving.tuning.setting import Setting
from serving.types import DYNAMIC, NUMPY_TYPES, Array, InferRequest, InferResponse, Tensors
from serving.warmup import warmup_tensor

_WARM_SHARE = 0.2
"""Of the time of a measurement, what goes before it and does not count."""


@dataclass(frozen=True)
class Point:
    """What so many clients, one row a request, got of a setting."""

    concurrency: int
    rows_per_s: float
    p50_ms: float
    p99_ms: float
    """Infinite if requests were refused, as a full queue does."""


@dataclass(frozen=True)
class Trial:
    """A setting and its points, from the least concurrency to the largest."""

    setting: Setting
    points: tuple[Point, ...]

    def best_within(self, bound_ms: float) -> Point | None:
        """The point of the largest concurrency that keeps the bound."""
        within = [point for point in self.points if point.p99_ms <= bound_ms]
        return within[-1] if within else None

    @property
    def fastest(self) -> Point:
        """The point with the lowest p99."""
        return min(self.points, key=lambda point: point.p99_ms)


@contextmanager
def as_served() -> Iterator[None]:
    """The interpreter is set as the server sets it."""
    interval_s, generations = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(*GENERATIONS)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval_s)
        gc.set_threshold(*generations)


async def measure(
    found: ModelVersion,
    setting: Setting,
    *,
    concurrencies: Sequence[int],
    seconds: float,
    shapes: Mapping[str, tuple[int, ...]],
) -> Trial:
    """Load a model whose config has the setting, and load it for `seconds` at each concurrency.

    `shapes` are of inputs, without the batch dimension. Raises `OperatorError` if the model cannot
    be loaded, or fails, or needs shapes.
    """
    # Answers from the cache would be no measurement.
    model = await load_model(found, Surroundings(ResponseCache(0), _ask, _find), LateMeter())
    try:
        inputs = await asyncio.to_thread(made_inputs, model, found.directory, shapes)
        points = []
        for concurrency in concurrencies:
            await _closed_loop(model, inputs, concurrency, seconds * _WARM_SHARE)
            points.append(await _closed_loop(model, inputs, concurrency, seconds))
    finally:
        await model.close()
        del model
        gc.collect()
    return Trial(setting, tuple(points))


def made_inputs(model: Model, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """One request of one row: of `shapes`, or else as the model's first warm-up, or else what its
    task makes of the example beside the graph, or else made up.

    Raises `ModelLoadError`, naming the input and the option, where the shape is anybody's guess.
    """
    config = model.config
    specs = {spec.name: spec for spec in config.inputs}
    for name, shape in shapes.items():
        if name not in specs:
            raise ModelLoadError(f"--shape {name}: model {config.name!r} has {sorted(specs)}")
        wanted = _row(config, specs[name].shape)
        if len(wanted) != len(shape) or any(
            want not in (DYNAMIC, size) for want, size in zip(wanted, shape, strict=True)
        ):
            raise ModelLoadError(
                f"--shape {name}: expected sizes that fit {list(wanted)}, got {list(shape)}"
            )
    rows = 1 if config.max_batch_size else 0
    if not shapes and config.warmups:
        return {name: warmup_tensor(item, rows) for name, item in config.warmups[0].inputs.items()}
    if not shapes and model.task is not None:
        for path in sorted(directory.glob("example.*")):
            if path.suffix == ".json":
                continue
            try:
                return model.task.preprocess(path.read_bytes(), model.task.Parameters()).tensors
            except (SlipwayError, OSError, ValueError) as error:
                raise ModelLoadError(f"{path}: cannot be asked: {error}") from error
    inputs = {}
    for spec in config.inputs:
        if spec.optional and spec.name not in shapes:
            continue
        shape = shapes.get(spec.name, _row(config, spec.shape))
        if DYNAMIC in shape:
            sizes = ",".join("N" if size == DYNAMIC else str(size) for size in shape)
            raise ModelLoadError(
                f"input {spec.name!r} of model {config.name!r} has no fixed shape; say which to"
                f" measure with --shape {spec.name}:{sizes}"
            )
        inputs[spec.name] = _made_up(spec.datatype, (1, *shape) if rows else shape)
    return inputs


def _row(config: ModelConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if config.max_batch_size else shape


def _made_up(datatype: str, shape: tuple[int, ...]) -> Array:
    """Random numbers between 0 and 1; ones for integers, which may be places in a table."""
    dtype = NUMPY_TYPES[datatype]
    if datatype == "BYTES":
        words = np.empty(shape, dtype)
        words.fill(b"one")
        return words
    if dtype.kind in "biu":
        return np.ones(shape, dtype)
    return np.random.default_rng(0).random(shape, np.float32).astype(dtype)


async def _closed_loop(model: Model, inputs: Tensors, concurrency: int, seconds: float) -> Point:
    """Clients that each ask again when they have their answer; each asks once at least."""
    times: list[float] = []
    failures: list[SlipwayError] = []
    began = monotonic()
    until = began + seconds

    async def client() -> None:
        asked = began
        while not failures:
            request = InferRequest(model.config.name, dict(inputs))
            try:
                await model.infer(request, model.rows(request))
            except SlipwayError as error:
                failures.append(error)
                return
            now = monotonic()
            times.append(now - asked)
            asked = now
            if now >= until:
                return

    await asyncio.gather(*(client() for _ in range(concurrency)))
    elapsed = monotonic() - began
    if failures and isinstance(failures[0], Unserved):
        return Point(concurrency, 0.0, inf, inf)
    if failures:
        raise ModelLoadError(f"model {model.config.name!r} fails when asked: {failures[0]}")
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    assert isfinite(p99)
    return Point(concurrency, len(times) / elapsed, float(p50), float(p99))


async def _ask(request: InferRequest) -> InferResponse:
    raise NotFound(f"model {request.model_name!r} is not here")


def _find(name: str, version: str) -> ModelConfig:
    raise NotFound(f"model {name!r} is not here")
