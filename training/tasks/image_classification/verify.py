"""The proof that what will be served is what was trained.

The exported graph runs in the engine that serves it, on held-out pictures, and is compared with
torch: its names and axes, its numbers at several batch sizes, and its accuracy. The report names
the sha256 of every file it speaks about, and publishing refuses files that no longer match.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from serving.engines.onnx import OnnxEngine, open_graph
from serving.tasks.image_classification import INPUT, OUTPUT
from serving.types import TensorSpec
from training.parity import Check, ParityReport, at_most, equal, hash_files
from training.runs import FLOAT32, GRAPH_FILE, INT8
from training.split import Split
from training.tasks.image_classification.evaluate import Logits, batches, compute_logits
from training.tasks.image_classification.images import Images, LabelledImages
from training.tasks.image_classification.network import ImageClassifier, ImageClassifierConfig
from training.tasks.image_classification.recipe import Acceptance

MAX_BATCH_SIZE = 64
"""The largest batch that is checked, and hence the largest that may be served."""

ROUNDS = 30
"""Runs of each model when two are compared for speed."""


HELD_OUT_ACCURACY = "held-out accuracy"


Findings = tuple[tuple[Check, ...], dict[str, float]]
"""Checks, and measurements without a limit."""


def verify_float32(
    directory: Path,
    model: ImageClassifier,
    images: LabelledImages,
    split: Split,
    acceptance: Acceptance,
) -> ParityReport:
    """Compare the graph in `directory` with the model it was exported from."""
    checks, measurements = asyncio.run(
        _compare_with_torch(directory / GRAPH_FILE, model, images, split, acceptance)
    )
    return ParityReport(
        precision=FLOAT32, checks=checks, measurements=measurements, files=hash_files(directory)
    )


def verify_int8(
    directory: Path,
    float32: Path,
    config: ImageClassifierConfig,
    images: LabelledImages,
    split: Split,
    acceptance: Acceptance,
) -> ParityReport:
    """Compare the graph in `directory` with the float32 export it was made from."""
    graphs = directory / GRAPH_FILE, float32 / GRAPH_FILE
    checks, measurements = asyncio.run(
        _compare_with_float32(*graphs, config, images, split, acceptance)
    )
    measurements["size, ratio to float32"] = graphs[0].stat().st_size / graphs[1].stat().st_size
    return ParityReport(
        precision=INT8, checks=checks, measurements=measurements, files=hash_files(directory)
    )


async def _compare_with_torch(
    graph: Path,
    model: ImageClassifier,
    images: LabelledImages,
    split: Split,
    acceptance: Acceptance,
) -> Findings:
    async with _engine(graph) as engine:
        interface = _interface(engine, model.config)
        if not all(check.passed for check in interface):
            return interface, {}  # it cannot be called as the model is
        pictures = _pictures(images, split)
        sizes = (1, 2, MAX_BATCH_SIZE)
        served = {size: await _serve(engine, pictures, size) for size in sizes}
        held_out = await _serve_held_out(engine, images, split)
    with torch.no_grad():
        expected: Logits = model(torch.from_numpy(pictures)).numpy()
    targets = images.targets[split.held_out]
    accuracy = _accuracy(held_out, targets)
    trained = _accuracy(compute_logits(model, images, split.held_out).numpy(), targets)
    checks = (
        *interface,
        *(
            at_most(
                f"difference from torch, batch of {size}",
                _difference(logits, expected),
                acceptance.parity,
            )
            for size, logits in served.items()
        ),
        _batched_equals_alone(served[MAX_BATCH_SIZE], served[1], acceptance),
        at_most("difference from torch in held-out accuracy", abs(accuracy - trained), 0.0),
    )
    return checks, {HELD_OUT_ACCURACY: accuracy}


async def _compare_with_float32(
    graph: Path,
    float32: Path,
    config: ImageClassifierConfig,
    images: LabelledImages,
    split: Split,
    acceptance: Acceptance,
) -> Findings:
    async with _engine(graph) as engine, _engine(float32) as reference:
        interface = _interface(engine, config)
        if not all(check.passed for check in interface):
            return interface, {}
        pictures = _pictures(images, split)
        alone = await _serve(engine, pictures, 1)
        whole = await _serve(engine, pictures, MAX_BATCH_SIZE)
        targets = images.targets[split.held_out]
        before = _accuracy(await _serve_held_out(reference, images, split), targets)
        after = _accuracy(await _serve_held_out(engine, images, split), targets)
        measurements = {HELD_OUT_ACCURACY: after, f"{HELD_OUT_ACCURACY} of float32": before}
        for size in (1, MAX_BATCH_SIZE):
            measurements[f"speed, ratio to float32, batch of {size}"] = await _speed_ratio(
                engine, reference, pictures[:size]
            )
    checks = (
        *interface,
        _batched_equals_alone(whole, alone, acceptance),
        at_most("accuracy loss", before - after, acceptance.int8_loss),
    )
    return checks, measurements


@asynccontextmanager
async def _engine(graph: Path) -> AsyncIterator[OnnxEngine]:
    engine = open_graph(graph)
    try:
        yield engine
    finally:
        await engine.close()


def _interface(engine: OnnxEngine, config: ImageClassifierConfig) -> tuple[Check, ...]:
    image = f"{INPUT} UINT8 [-1, {config.channels}, {config.height}, {config.width}]"
    logits = f"{OUTPUT} FP32 [-1, {config.classes}]"
    return (
        equal("input, -1 is any batch size", _text(engine.inputs), image),
        equal("output, -1 is any batch size", _text(engine.outputs), logits),
    )


def _text(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in tensors)


def _batched_equals_alone(batched: Logits, alone: Logits, acceptance: Acceptance) -> Check:
    name = "difference between batched and alone"
    return at_most(name, _difference(batched, alone), acceptance.parity)


def _pictures(images: LabelledImages, split: Split) -> Images:
    """As many as the largest batch: held-out ones, black, white, and noise."""
    held_out = images.read(np.resize(split.held_out, MAX_BATCH_SIZE - 3))
    shape = held_out.shape[1:]
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    extremes = np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])
    return np.concatenate([held_out, extremes])


async def _serve(engine: OnnxEngine, pictures: Images, size: int) -> Logits:
    """Logits of the pictures, sent in batches of this size."""
    answers = [
        (await engine.infer({INPUT: pictures[start : start + size]}))[OUTPUT]
        for start in range(0, len(pictures), size)
    ]
    return np.concatenate(answers)


async def _serve_held_out(engine: OnnxEngine, images: LabelledImages, split: Split) -> Logits:
    answers = [
        await _serve(engine, batch, MAX_BATCH_SIZE) for batch in batches(images, split.held_out)
    ]
    return np.concatenate(answers)


def _difference(one: Logits, other: Logits) -> float:
    return float(np.abs(one - other).max())


def _accuracy(logits: Logits, targets: npt.NDArray[np.int64]) -> float:
    return float((logits.argmax(axis=1) == targets).mean())


async def _speed_ratio(engine: OnnxEngine, reference: OnnxEngine, pictures: Images) -> float:
    """How many times as fast as the reference; above 1 is faster.

    The two take turns, so that whatever else the machine does slows both; medians are compared.
    """
    seconds: dict[OnnxEngine, list[float]] = {reference: [], engine: []}
    for _ in range(ROUNDS):
        for contender, times in seconds.items():
            started = time.perf_counter()
            await contender.infer({INPUT: pictures})
            times.append(time.perf_counter() - started)
    return statistics.median(seconds[reference]) / statistics.median(seconds[engine])
