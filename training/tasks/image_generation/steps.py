"""The proof that every step of every solver, as it is served, is that of `diffusers`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)
from torch import Tensor

from serving.diffusion.parameters import SolverName
from serving.diffusion.settings import DiffusionSettings
from serving.steppers.diffusion import DiffusionStepper
from serving.steppers.drawing import INPUT as PROMPT
from serving.types import InferRequest
from training.graphs.trace import quiet
from training.parity import Check, at_most
from training.tasks.image_generation.sampling import Predict, guided

LIMIT = 1e-4
_SEED = 7
SCHEDULERS: Mapping[SolverName, Any] = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
}
"""Of `diffusers`, by the names that they are served by."""


def check_steps(
    stepper: DiffusionStepper, settings: DiffusionSettings, predict: Predict
) -> list[Check]:
    """Compare the samples of one picture, which is guided if that is the default, after each step
    from the same sample.

    Relative to the largest number before the step, or to 1 if that is less. Where noise is all
    there is, samples of the Euler solver are 20,000 times as large as the picture in them;
    `diffusers` loses of the picture what is small beside it, and what is made of it later would
    show that.
    """
    checks = []
    for solver in get_args(SolverName):
        with quiet(None):
            begun, *expected = _by_diffusers(solver, settings, predict)
        prompt = np.array([[settings.classes[0][0].encode()]], np.object_)
        parameters = {"seed": _SEED, "scheduler": solver}
        request = InferRequest("", {PROMPT: prompt}, parameters=parameters)
        [job] = stepper.plan(request, streams=False)
        stepper.begin([job])
        largest = float(np.abs(job.sample - begun.numpy()).max() / begun.abs().max())
        for before, after in pairwise([begun, *expected]):
            job.sample = before.numpy()
            stepper.step([job])
            scale = max(1.0, float(before.abs().max()))
            largest = max(largest, float(np.abs(job.sample - after.numpy()).max()) / scale)
        stepper.end(job)
        name = f"difference from diffusers in any of {len(expected)} steps of {solver}"
        checks.append(at_most(name, largest, LIMIT))
    return checks


@torch.no_grad()
def _by_diffusers(
    solver: SolverName, settings: DiffusionSettings, predict: Predict
) -> Iterator[Tensor]:
    """[channel, row, column] before the first step and after each."""
    scheduler = SCHEDULERS[solver].from_config(settings.noise.model_dump())
    scheduler.set_timesteps(settings.defaults.num_inference_steps)
    generator = torch.Generator().manual_seed(_SEED)
    shape = settings.sample.channels, settings.sample.height, settings.sample.width
    sample = torch.randn(1, *shape, generator=generator) * scheduler.init_noise_sigma
    yield sample[0]
    scale = settings.defaults.guidance_scale
    ask = guided(predict, torch.tensor([0]), settings.unconditional_class or 0, scale)
    draws = {"generator": generator} if solver == "ddpm" else {}
    for timestep in scheduler.timesteps:
        output = ask(scheduler.scale_model_input(sample, timestep), timestep.float().expand(1))
        sample = scheduler.step(output, timestep, sample, **draws).prev_sample
        yield sample[0]
