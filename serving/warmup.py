"""The runs before a version takes its first request, as `model_warmup` in its config has them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import numpy as np

from serving.config import ControlKind, ModelConfig, WarmupInput
from serving.errors import ModelLoadError, SlipwayError
from serving.model import AnyScheduler
from serving.scheduling.streaming import StreamScheduler
from serving.types import NUMPY_TYPES, Array, InferRequest, SequenceStep


async def warm_up(config: ModelConfig, scheduler: AnyScheduler) -> None:
    """Run the warm-up requests. Raises `ModelLoadError`."""
    for warmup in config.warmups:
        # A sequence has one row at a time, so many rows are as many sequences.
        requests = range(max(1, warmup.rows) if config.sequences else 1)
        rows = 1 if config.sequences and warmup.rows else warmup.rows
        inputs = {name: warmup_tensor(item, rows) for name, item in warmup.inputs.items()}
        for _ in range(max(1, warmup.count)):
            try:
                await asyncio.gather(
                    *(
                        _run(scheduler, InferRequest(config.name, inputs, sequence=step), rows or 1)
                        for step in (_warmup_step(config, number) for number in requests)
                    )
                )
            except SlipwayError as error:
                raise ModelLoadError(f"warm-up {warmup.name!r} failed: {error}") from error


async def _run(scheduler: AnyScheduler, request: InferRequest, rows: int) -> None:
    if isinstance(scheduler, StreamScheduler):
        async with aclosing(scheduler.stream(request, rows)) as responses:
            async for _ in responses:
                pass
    else:
        await scheduler.infer(request, rows)


def _warmup_step(config: ModelConfig, number: int) -> SequenceStep | None:
    if config.sequences is None:
        return None
    has_text_ids = any(
        control.kind is ControlKind.CORRID and control.datatype == "BYTES"
        for control in config.sequences.controls
    )
    return SequenceStep(str(number + 1) if has_text_ids else number + 1, start=True, end=True)


def warmup_tensor(item: WarmupInput, rows: int) -> Array:
    """The tensor of a warm-up input, with a batch dimension if `rows` is not 0."""
    shape = (rows, *item.shape) if rows else item.shape
    dtype = NUMPY_TYPES[item.datatype]
    if item.data is not None:
        is_text = item.datatype == "BYTES"
        one = _strings(item.data) if is_text else np.frombuffer(item.data, dtype)
        return np.ascontiguousarray(np.broadcast_to(one.reshape(item.shape), shape))
    if item.datatype == "BYTES":
        empty = np.empty(shape, dtype)
        empty.fill(b"")
        return empty
    if item.random:
        return np.random.default_rng(0).random(shape, np.float32).astype(dtype)
    return np.zeros(shape, dtype)


def _strings(data: bytes) -> Array:
    """Elements that each follow their length, four bytes little-endian, as the wire has them."""
    elements, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        elements.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return np.fromiter(elements, object, len(elements))
