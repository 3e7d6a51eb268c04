"""Solvers and noise against diffusers' schedulers and torch's random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.diffusion.noise import FEWEST, TorchNoise
from serving.diffusion.settings import NoiseSchedule
from serving.diffusion.solvers import advance, plan_of
from serving.errors import InvalidRequest
from training.tasks.image_generation.steps import SCHEDULERS

SHAPE = (1, 2, 8, 8)

# What diffusers does with torch's tensors is for them to settle.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@given(
    seed=st.integers(0, 2**64 - 1),
    sizes=st.lists(st.integers(FEWEST, 5000), min_size=1, max_size=3),
)
@settings(max_examples=50, deadline=None)
def test_noise_is_that_of_torch(seed: int, sizes: list[int]) -> None:
    noise = TorchNoise(seed)
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        expected = torch.randn(size, generator=generator).numpy()
        np.testing.assert_allclose(noise.normal((size,)), expected, atol=2e-6)


def network(sample: np.ndarray[Any, Any], timestep: float) -> np.ndarray[Any, Any]:
    """Stands for one: any smooth function of its inputs will do."""
    return np.asarray(np.sin(3 * sample + timestep / 100) * 0.7 + 0.2 * sample, np.float32)


@pytest.mark.parametrize("solver", SCHEDULERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_every_step_is_that_of_diffusers(
    solver: Any, prediction: Any, spacing: Any, schedule: Any, steps: int
) -> None:
    noise = NoiseSchedule(
        beta_schedule=schedule,
        prediction_type=prediction,
        timestep_spacing=spacing,
        steps_offset=1,
        set_alpha_to_one=False,
        variance_type="fixed_large" if steps == 7 else "fixed_small",
        # Where little is left of the image, rounding errors grow without it.
        clip_sample=True,
    )
    theirs = SCHEDULERS[solver].from_config(noise.model_dump())
    theirs.set_timesteps(steps)
    plan = plan_of(noise, solver, steps)
    assert [step.timestep for step in plan.steps] == pytest.approx(theirs.timesteps.tolist())

    generator = torch.Generator().manual_seed(5)
    ours = TorchNoise(5)
    expected = torch.randn(SHAPE, generator=generator) * theirs.init_noise_sigma
    sample = ours.normal(SHAPE) * np.float32(plan.start)
    before = np.zeros(SHAPE, np.float32)
    for place, timestep in enumerate(theirs.timesteps):
        # Of the same sample each time, so that it is this step that is compared.
        sample = expected.numpy()
        given = theirs.scale_model_input(expected, timestep).numpy()
        step = plan.steps[place]
        np.testing.assert_allclose(sample * np.float32(step.input), given, rtol=1e-5, atol=1e-6)
        output = network(given, float(timestep))
        made = theirs.step(
            torch.from_numpy(output),
            timestep,
            expected,
            **({"generator": generator} if solver == "ddpm" else {}),
        )
        drawn = ours.normal(SHAPE) if step.next_noise else None
        following, before = advance([(plan, place)], sample, output, before, drawn)
        expected = made.prev_sample
        # Where noise is all there is, diffusers' own sums lose what is small beside it.
        largest = max(1.0, float(np.abs([sample, before]).max()))
        np.testing.assert_allclose(following / largest, expected.numpy() / largest, atol=1e-4)
        if hasattr(made, "pred_original_sample"):
            clean = made.pred_original_sample.numpy()
            np.testing.assert_allclose(before / largest, clean / largest, atol=1e-4)


def test_rows_of_different_plans_advance_as_each_alone() -> None:
    noise = NoiseSchedule()
    chance = np.random.default_rng(0)
    plans = [
        (plan_of(noise, "ddpm", 10), 3),
        (plan_of(noise, "ddim", 20), 19),
        (plan_of(noise, "euler", 5), 0),
        (plan_of(noise, "dpmsolver++", 30), 12),
    ]
    arrays = [chance.normal(size=(4, 1, 4, 4)).astype(np.float32) for _ in range(4)]
    together = advance(plans, *arrays)
    for row, plan in enumerate(plans):
        alone = advance([plan], *(array[row : row + 1] for array in arrays))
        for one, all_ in zip(alone, together, strict=True):
            assert np.array_equal(one[0], all_[row])


@pytest.mark.parametrize("solver", ["ddpm", "dpmsolver++"])
def test_more_steps_than_there_are_is_an_error(solver: Any) -> None:
    noise = NoiseSchedule(steps_offset=1)
    with pytest.raises(InvalidRequest, match=r"'num_inference_steps'.*expected fewer"):
        plan_of(noise, solver, 1000)
