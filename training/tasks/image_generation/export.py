"""From a checkpoint to the directory that is served."""

from __future__ import annotations

import json
import shutil

import torch
from diffusers import DDIMScheduler
from onnx import ModelProto
from torch.export import Dim

from serving.diffusion.parameters import DiffusionParameters
from serving.diffusion.settings import UNET_FILE, DiffusionSettings, Sample
from serving.triton_backend import MODEL_FILE, MODEL_TEXT
from training import durable
from training.graphs.trace import trace
from training.parity import ParityReport
from training.runs import FLOAT32, PARITY_FILE, RunDirectory
from training.tasks.image_generation import network
from training.tasks.image_generation.network import Denoiser
from training.tasks.image_generation.report import QUALITY_FILE, SAMPLES_FILE
from training.tasks.image_generation.verify import INPUTS, OUTPUT, verify
from training.tasks.image_generation.workload import DiffusionWorkload

EXAMPLE_FILE, ANSWER_FILE = "example.txt", "example.json"
_IN_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_EXAMPLE_DIGIT = "7"


def export(run: RunDirectory, workload: DiffusionWorkload) -> ParityReport:
    """Write the graph with what it needs to be served, and the proof that it equals the model.

    Raises `ParityError` with the first check that failed; the report is written all the same.
    """
    denoiser, scheduler = network.load(run.checkpoint)
    settings = diffusion_settings(workload, scheduler)
    destination = run.export(FLOAT32)
    with durable.staged_directory(destination.parent) as staged:
        graph = to_onnx(denoiser, settings.sample)
        (staged / UNET_FILE).write_bytes(graph.SerializeToString())
        settings.save(staged)
        (staged / MODEL_FILE).write_text(MODEL_TEXT, encoding="utf-8")
        example = _example(workload)
        (staged / EXAMPLE_FILE).write_text(f"{example}\n", encoding="utf-8")
        answer = {"answer": example, "parameters": {"seed": 1}}
        (staged / ANSWER_FILE).write_text(json.dumps(answer) + "\n", encoding="utf-8")
        for name in (SAMPLES_FILE, QUALITY_FILE):
            shutil.copyfile(run.path / name, staged / name)
        parity = verify(staged, denoiser, scheduler, workload)
        parity.save(staged / PARITY_FILE)
        shutil.rmtree(destination, ignore_errors=True)
        durable.move_into_place(staged, destination)
    parity.require()
    return parity


def diffusion_settings(workload: DiffusionWorkload, scheduler: DDIMScheduler) -> DiffusionSettings:
    """diffusion.json of what a run has trained."""
    recipe, labels = workload.recipe, workload.images.labels
    channels, height, width = recipe.shape
    in_words = _IN_WORDS if recipe.data.source == "digits" else ()
    return DiffusionSettings(
        noise=network.noise_schedule(scheduler),
        sample=Sample(channels=channels, height=height, width=width),
        classes=tuple(zip(labels, in_words, strict=True))
        if in_words
        else tuple((label,) for label in labels),
        unconditional_class=workload.unconditional if recipe.diffusion.unlabelled else None,
        defaults=DiffusionParameters(scheduler="ddim", **recipe.sampling.model_dump()),
    )


def to_onnx(denoiser: Denoiser, sample: Sample) -> ModelProto:
    """Trace the network; the names of its arguments are those of the graph's inputs."""
    batch = Dim("batch")
    # Two rows, because one would be taken for a constant.
    pictures = torch.zeros(2, sample.channels, sample.height, sample.width)
    values = (pictures, torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    return trace(
        denoiser,
        dict(zip(INPUTS, values, strict=True)),
        INPUTS,
        [OUTPUT],
        {name: {0: batch} for name in INPUTS},
    )


def _example(workload: DiffusionWorkload) -> str:
    """A prompt to try."""
    labels = workload.images.labels
    return _EXAMPLE_DIGIT if workload.recipe.data.source == "digits" else labels[0]
