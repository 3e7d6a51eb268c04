"""From noise to a sample: which steps are taken, and what each makes of the network's output.

All solvers here are linear in what they know, so each is a table of factors, and one function,
`advance`, takes a step of any of them. The factors are those of `diffusers`' schedulers of the same
settings:

- ddpm: Ho et al., *Denoising Diffusion Probabilistic Models* (2020), equations 6, 7 and 15;
- ddim: Song et al., *Denoising Diffusion Implicit Models* (2021), equation 12 with eta 0;
- euler: Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models* (2022),
  algorithm 2 without churn;
- dpmsolver++: Lu et al., *DPM-Solver++* (2022), algorithm 2, the multistep solver of second order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi

import numpy as np
import numpy.typing as npt

from serving.diffusion.parameters import SolverName
from serving.diffusion.settings import NoiseSchedule
from serving.errors import InvalidRequest

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Step:
    """Factors of one step, from a sample x and the network's output m for `timestep`.

    The network is given `input` * x. The image that it has in mind is x0 = `clean_sample` * x +
    `clean_output` * m, cut to what is allowed if the solver clips. The next sample is `next_clean`
    * x0 + `next_before` * (x0 of the step before) + `next_sample` * x + `next_output` * m +
    `next_noise` * noise.
    """

    timestep: float
    input: float
    clean_sample: float
    clean_output: float
    next_clean: float
    next_before: float = 0.0
    next_sample: float = 0.0
    next_output: float = 0.0
    next_noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps of a solver. `start` is the factor of the noise that the first sample is."""

    start: float
    steps: Sequence[Step]
    clip: float | None
    """The largest absolute value of x0."""


@lru_cache(maxsize=256)
def plan_of(noise: NoiseSchedule, solver: SolverName, steps: int) -> Plan:
    """The plan of so many steps. Raises `InvalidRequest` if the solver has no such plan."""
    kept = _kept(noise)
    timesteps = _SPACINGS[solver](noise, steps)
    if timesteps[0] >= len(kept) or (np.diff(timesteps) >= 0).any():
        raise InvalidRequest(
            f"parameter 'num_inference_steps': the scheduler {solver!r} of this model cannot make"
            f" {steps} steps of the {len(kept)} that it was trained with; expected fewer"
        )
    return _SOLVERS[solver](noise, kept, timesteps)


def advance(
    plans: Sequence[tuple[Plan, int]],
    samples: Floats,
    outputs: Floats,
    before: Floats,
    noise: Floats | None,
) -> tuple[Floats, Floats]:
    """Take a step for several rows, of each the one that its plan has at that place.

    All arrays are [row, channel, height, width]; `before` is the x0 of each row's step before.
    Returns the next samples, and the x0 of this step.
    """
    steps = [plan.steps[place] for plan, place in plans]

    def factor(name: str) -> Floats:
        values = [getattr(step, name) for step in steps]
        return np.array(values, np.float32)[:, np.newaxis, np.newaxis, np.newaxis]

    clean = factor("clean_sample") * samples + factor("clean_output") * outputs
    bounds = [np.inf if plan.clip is None else plan.clip for plan, _ in plans]
    bound = np.array(bounds, np.float32)[:, np.newaxis, np.newaxis, np.newaxis]
    np.clip(clean, -bound, bound, out=clean)
    following = (
        factor("next_clean") * clean
        + factor("next_before") * before
        + factor("next_sample") * samples
        + factor("next_output") * outputs
    )
    if noise is not None:
        following += factor("next_noise") * noise
    return following, clean


@lru_cache(maxsize=64)
def _kept(noise: NoiseSchedule) -> Doubles:
    """How much of an image's variance is left after each training step."""
    count = noise.num_train_timesteps
    if noise.beta_schedule == "squaredcos_cap_v2":
        # Nichol and Dhariwal, Improved DDPM (2021), equation 17.
        left = [cos((step / count + 0.008) / 1.008 * pi / 2) ** 2 for step in range(count + 1)]
        betas = np.minimum(1 - np.divide(left[1:], left[:-1]), 0.999)
    elif noise.beta_schedule == "scaled_linear":
        betas = np.linspace(noise.beta_start**0.5, noise.beta_end**0.5, count) ** 2
    else:
        betas = np.linspace(noise.beta_start, noise.beta_end, count)
    # In the precision in which models are trained with it.
    kept: Doubles = np.cumprod(1 - betas.astype(np.float32), dtype=np.float64)
    return kept


def _spaced(noise: NoiseSchedule, steps: int) -> Doubles:
    """Timesteps from noise to image, as Lin et al. (2023) name the ways to space them."""
    count = noise.num_train_timesteps
    if noise.timestep_spacing == "linspace":
        return np.linspace(0, count - 1, steps, dtype=np.float64)[::-1]
    if noise.timestep_spacing == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (count // steps) + noise.steps_offset
    return np.arange(count, 0, -count / steps, dtype=np.float64).round() - 1


def _whole(noise: NoiseSchedule, steps: int) -> Doubles:
    return _spaced(noise, steps).round()


def _but_the_last(noise: NoiseSchedule, steps: int) -> Doubles:
    """As if there were one step more, which is left to the end of the solver."""
    count = noise.num_train_timesteps
    if noise.timestep_spacing == "linspace":
        return np.linspace(0, count - 1, steps + 1, dtype=np.float64).round()[:0:-1]
    if noise.timestep_spacing == "leading":
        whole = np.arange(steps + 1, dtype=np.float64)[:0:-1] * (count // (steps + 1))
        return whole + noise.steps_offset
    return _spaced(noise, steps)


def _ddpm(noise: NoiseSchedule, kept: Doubles, timesteps: Doubles) -> Plan:
    steps = []
    for timestep, following in zip(timesteps, [*timesteps[1:], -1.0], strict=True):
        now = kept[int(timestep)]
        then = kept[int(following)] if following >= 0 else 1.0
        ratio = now / then
        variance = (1 - ratio) * (
            1 if noise.variance_type == "fixed_large" else (1 - then) / (1 - now)
        )
        steps.append(
            Step(
                timestep,
                1.0,
                *_clean(noise, now),
                next_clean=then**0.5 * (1 - ratio) / (1 - now),
                next_sample=ratio**0.5 * (1 - then) / (1 - now),
                next_noise=max(variance, 1e-20) ** 0.5 if timestep > 0 else 0.0,
            )
        )
    return Plan(1.0, steps, _clip(noise))


def _ddim(noise: NoiseSchedule, kept: Doubles, timesteps: Doubles) -> Plan:
    stride = noise.num_train_timesteps // len(timesteps)
    steps = []
    for timestep in timesteps:
        now = kept[int(timestep)]
        following = int(timestep) - stride
        last = 1.0 if noise.set_alpha_to_one else kept[0]
        then = kept[following] if following >= 0 else last
        # The noise that the network has in mind: its output, or what that says of it.
        of_sample, of_output = {
            "epsilon": (0.0, 1.0),
            "v_prediction": ((1 - now) ** 0.5, now**0.5),
            "sample": ((1 - now) ** -0.5, -((now / (1 - now)) ** 0.5)),
        }[noise.prediction_type]
        steps.append(
            Step(
                timestep,
                1.0,
                *_clean(noise, now),
                next_clean=then**0.5,
                next_sample=(1 - then) ** 0.5 * of_sample,
                next_output=(1 - then) ** 0.5 * of_output,
            )
        )
    return Plan(1.0, steps, _clip(noise))


def _euler(noise: NoiseSchedule, kept: Doubles, timesteps: Doubles) -> Plan:
    sigmas = [*np.interp(timesteps, np.arange(len(kept)), _sigmas(kept)), 0.0]
    steps = []
    for timestep, sigma, following in zip(timesteps, sigmas, sigmas[1:], strict=False):
        # Samples are larger than those that the network was trained with, by this factor.
        scale = (sigma**2 + 1) ** 0.5
        clean_sample, clean_output = _clean(noise, scale**-2)
        steps.append(
            Step(
                timestep,
                1 / scale,
                clean_sample / scale,
                clean_output,
                next_clean=1 - following / sigma,
                next_sample=following / sigma,
            )
        )
    start = max(sigmas)
    if noise.timestep_spacing == "leading":
        start = (start**2 + 1) ** 0.5
    return Plan(start, steps, None)


def _dpmsolver(noise: NoiseSchedule, kept: Doubles, timesteps: Doubles) -> Plan:
    sigmas = [*np.interp(timesteps, np.arange(len(kept)), _sigmas(kept)), 0.0]
    # By step: how much of an image is in a sample, and how much noise.
    image = [(sigma**2 + 1) ** -0.5 for sigma in sigmas]
    noises = [sigma * part for sigma, part in zip(sigmas, image, strict=True)]
    steps = []
    for place, timestep in enumerate(timesteps):
        shrunk = sigmas[place + 1] / sigmas[place]  # e to the minus h of the paper
        toward = image[place + 1] * (1 - shrunk)
        second = 0.0
        if 0 < place < len(timesteps) - 1:
            last = np.log(sigmas[place - 1] / sigmas[place])
            second = toward * -np.log(shrunk) / last / 2
        steps.append(
            Step(
                timestep,
                1.0,
                *_clean(noise, image[place] ** 2),
                next_clean=toward + second,
                next_before=-second,
                next_sample=noises[place + 1] / noises[place],
            )
        )
    return Plan(1.0, steps, None)


def _sigmas(kept: Doubles) -> Doubles:
    """Noise for one part of image."""
    return ((1 - kept) / kept) ** 0.5


def _clean(noise: NoiseSchedule, kept: float) -> tuple[float, float]:
    """The factors of x0, where so much of the image's variance is left in a sample."""
    if noise.prediction_type == "epsilon":
        return kept**-0.5, -(((1 - kept) / kept) ** 0.5)
    if noise.prediction_type == "v_prediction":
        return kept**0.5, -((1 - kept) ** 0.5)
    return 0.0, 1.0


def _clip(noise: NoiseSchedule) -> float | None:
    return noise.clip_sample_range if noise.clip_sample else None


_SPACINGS: Mapping[SolverName, Callable[[NoiseSchedule, int], Doubles]] = {
    "ddpm": _whole,
    "ddim": _whole,
    "euler": _spaced,
    "dpmsolver++": _but_the_last,
}
_SOLVERS: Mapping[SolverName, Callable[[NoiseSchedule, Doubles, Doubles], Plan]] = {
    "ddpm": _ddpm,
    "ddim": _ddim,
    "euler": _euler,
    "dpmsolver++": _dpmsolver,
}
