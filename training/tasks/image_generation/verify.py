"""The proof that what will be served is what was trained.

The graph runs in ONNX Runtime and is compared with torch: its names and axes, and its numbers alone
and in batches. Then pictures are drawn as they are served, by the stepper and the scheduler that
serve them, and compared with those of torch and `diffusers`' DDIM; and so is every step of every
solver.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DDIMScheduler

from serving.diffusion.settings import UNET_FILE, DiffusionSettings
from serving.engines.onnx_graph import OnnxGraph
from serving.scheduling.meter import LateMeter
from serving.scheduling.stepping import StepScheduler
from serving.steppers.diffusion import DEFAULT_MEMORY_MB, DiffusionStepper
from serving.steppers.diffusion import OUTPUT as IMAGE
from serving.steppers.drawing import INPUT as PROMPT
from serving.types import InferRequest, Tensors, TensorSpec
from training.graphs.served import open_graph
from training.parity import Check, ParityReport, at_most, equal, hash_files
from training.runs import FLOAT32
from training.tasks.image_classification.images import Images
from training.tasks.image_generation.evaluate import Judge
from training.tasks.image_generation.network import Denoiser
from training.tasks.image_generation.report import classes_to_draw
from training.tasks.image_generation.sampling import Classes, draw, from_pixels
from training.tasks.image_generation.steps import check_steps
from training.tasks.image_generation.workload import DiffusionWorkload

INPUTS = ("sample", "timestep", "class_labels")
OUTPUT = "model_output"
SERVED_AGREEMENT = "classifier agrees, as served"

BATCH_SIZES = (1, 2, 16, 64)
"""The largest is that of as many drawings as run at once, half of them guided."""
SLOTS = 32
DRAWN = 50
"""Pictures that are also drawn by torch, at most."""
ROUNDED = 1.0
"""Of 255: by so much pixels may differ that are equal but for rounding."""

Floats = npt.NDArray[np.float32]


def verify(
    directory: Path, denoiser: Denoiser, scheduler: DDIMScheduler, workload: DiffusionWorkload
) -> ParityReport:
    """Compare the graph in `directory` with the network it was exported from."""
    graph = open_graph(directory / UNET_FILE)
    checks = [*_interface(graph, workload)]
    measurements: dict[str, float] = {}
    if all(check.passed for check in checks):
        checks += _numbers(graph, denoiser, scheduler, workload)
        drawn, measurements = _pictures(directory, denoiser, scheduler, workload)
        checks.append(drawn)
        settings = DiffusionSettings.load(directory)
        with closing(_stepper(directory, settings)) as stepper:
            checks += check_steps(stepper, settings, denoiser)
    return ParityReport(
        precision=FLOAT32,
        checks=tuple(checks),
        measurements=measurements,
        files=hash_files(directory),
    )


def _interface(graph: OnnxGraph, workload: DiffusionWorkload) -> tuple[Check, ...]:
    shape = f"FP32 {[-1, *workload.recipe.shape]}"
    sample, timestep, classes = INPUTS
    return (
        equal(
            "inputs, -1 is any batch size",
            _text(graph.inputs),
            f"{sample} {shape}, {timestep} FP32 [-1], {classes} INT64 [-1]",
        ),
        equal("output, -1 is any batch size", _text(graph.outputs), f"{OUTPUT} {shape}"),
    )


def _text(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in tensors)


def _numbers(
    graph: OnnxGraph, denoiser: Denoiser, scheduler: DDIMScheduler, workload: DiffusionWorkload
) -> list[Check]:
    limit = workload.recipe.acceptance.parity
    rows = _rows(scheduler, workload)
    with torch.no_grad():
        expected = denoiser(*map(torch.from_numpy, rows.values())).numpy()
    served = {size: _by_batches(graph, rows, size) for size in BATCH_SIZES}
    return [
        *(
            at_most(f"difference from torch, batch of {size}", _difference(said, expected), limit)
            for size, said in served.items()
        ),
        at_most(
            "difference between batched and alone",
            _difference(served[max(BATCH_SIZES)], served[1]),
            limit,
        ),
    ]


def _rows(scheduler: DDIMScheduler, workload: DiffusionWorkload) -> Tensors:
    """As many as the largest batch: held-out pictures in noise of every strength, of every class
    and of none; the last are noise alone, and black and white."""
    count = max(BATCH_SIZES)
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.linspace(0, scheduler.config.num_train_timesteps - 1, count).long()
    pictures = from_pixels(workload.images.read(np.resize(workload.split.held_out, count)))
    noise = torch.randn(pictures.shape, generator=generator)
    sample = scheduler.add_noise(pictures, noise, timesteps)
    sample[-3], sample[-2], sample[-1] = noise[0], -1.0, 1.0
    classes = np.arange(count) % (workload.unconditional + 1)
    arrays = sample.numpy(), timesteps.float().numpy(), classes
    return dict(zip(INPUTS, arrays, strict=True))


def _by_batches(graph: OnnxGraph, rows: Tensors, size: int) -> Floats:
    outputs = [
        graph.run({name: array[start : start + size] for name, array in rows.items()})[OUTPUT]
        for start in range(0, max(BATCH_SIZES), size)
    ]
    return np.concatenate(outputs)


def _pictures(
    directory: Path, denoiser: Denoiser, scheduler: DDIMScheduler, workload: DiffusionWorkload
) -> tuple[Check, dict[str, float]]:
    recipe = workload.recipe
    classes = classes_to_draw(recipe, workload.unconditional)
    served = draw_served(directory, classes, recipe.seed)
    by_torch = draw(
        denoiser,
        scheduler,
        classes[:DRAWN],
        recipe.shape,
        recipe.sampling,
        unconditional=workload.unconditional,
        seed=recipe.seed,
    )
    agreement = Judge(workload.images, workload.split.train).agreement(served, classes)
    return (
        at_most(
            f"of 255, by which pixels of {len(by_torch)} pictures are served unlike torch's",
            _difference(served[:DRAWN].astype(np.float32), by_torch.astype(np.float32)),
            ROUNDED,
        ),
        {SERVED_AGREEMENT: agreement},
    )


def draw_served(directory: Path, classes: Classes, seed: int) -> Images:
    """What is served to callers who all ask at the same time, [picture, channel, row, column].

    Each names a class, and a seed that is one more than that of the caller before.
    """
    settings = DiffusionSettings.load(directory)

    async def ask(scheduler: StepScheduler[Any], number: int, which: int) -> npt.NDArray[np.uint8]:
        prompt = np.array([[settings.classes[which][0].encode()]], np.object_)
        request = InferRequest("", {PROMPT: prompt}, parameters={"seed": seed + number})
        pixels: npt.NDArray[np.uint8] = (await scheduler.infer(request, 1))[IMAGE][0]
        return pixels.transpose(2, 0, 1)

    async def ask_all() -> Images:
        stepper = _stepper(directory, settings)
        scheduler = StepScheduler[Any](stepper, None, meter=LateMeter())
        try:
            asked = (ask(scheduler, number, which) for number, which in enumerate(classes.tolist()))
            return np.stack(await asyncio.gather(*asked))
        finally:
            await scheduler.stop()
            stepper.close()

    return asyncio.run(ask_all())


def _stepper(directory: Path, settings: DiffusionSettings) -> DiffusionStepper:
    graph = open_graph(directory / UNET_FILE)
    return DiffusionStepper(
        graph,
        settings,
        slots=SLOTS,
        memory_bytes=DEFAULT_MEMORY_MB << 20,
        threads=os.cpu_count() or 1,
    )


def _difference(one: Floats, other: Floats) -> float:
    return float(np.abs(one - other).max())
