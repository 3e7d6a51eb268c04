"""scheduler_config.json: how noise was added in training, and which solver takes it back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from pydantic import ValidationError

from serving.diffusion.parameters import SolverName
from serving.diffusion.settings import NoiseSchedule
from training.errors import CheckpointError
from training.graphs.checkpoint import read_object
from training.pipelines.components import quiet
from training.pipelines.index import SCHEDULER, SCHEDULERS, Index

SCHEDULER_FILE = "scheduler_config.json"

_NEUTRAL: Mapping[str, object] = {
    "trained_betas": None,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "interpolation_type": "linear",
    "sigma_min": None,
    "sigma_max": None,
    "timestep_type": "discrete",
    "final_sigmas_type": "zero",
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "lambda_min_clipped": -float("inf"),
}
"""With these values they change nothing, or are what is served."""

_WITHOUT_EFFECT = {
    # Of thresholding, of flows, and of a solver that is not served.
    *("dynamic_thresholding_ratio", "sample_max_value"),
    *("flow_shift", "time_shift_type"),
    "skip_prk_steps",
}


def read_noise(index: Index) -> tuple[NoiseSchedule, SolverName]:
    """What a pipeline's scheduler says, as its pipeline uses it.

    Raises `CheckpointError`, naming a setting that has no equal.
    """
    path = index.directory / SCHEDULER / SCHEDULER_FILE
    class_name = index.classes[SCHEDULER]
    named = read_object(path)
    # First what the file names, because diffusers' own complaints do not.
    _schedule(named, path)
    _refuse_what_has_no_equal(named, class_name, path)
    config = _filled(class_name, named, path)
    if index.kind.name == "DDIMPipeline":
        class_name = "DDIMScheduler"
        config = _filled(class_name, config, path)
    if index.kind.name == "StableDiffusionPipeline":
        # As the pipeline does, whose first checkpoints had them wrong.
        config |= {"steps_offset": 1, "clip_sample": False}
    return _schedule(config, path), SCHEDULERS[class_name]


def _schedule(config: Mapping[str, Any], path: Path) -> NoiseSchedule:
    """Those of a configuration's settings that all schedulers share."""
    wanted = {name: config.get(name) for name in NoiseSchedule.model_fields}
    try:
        return NoiseSchedule.model_validate(
            {name: value for name, value in wanted.items() if value is not None}
        )
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise CheckpointError(
            f"{path}: {field}: {problem['msg']}, got {problem['input']!r}"
        ) from error


def _refuse_what_has_no_equal(named: Mapping[str, Any], class_name: str, path: Path) -> None:
    used = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    for name, value in named.items():
        if name.startswith("_") or name in NoiseSchedule.model_fields or name in _WITHOUT_EFFECT:
            continue
        if name not in _NEUTRAL:
            raise CheckpointError(f"{path}: {name}={value!r} is not known")
        # One scheduler made from another keeps the other's settings, and does not use them.
        if name in used and value != _NEUTRAL[name]:
            raise CheckpointError(
                f"{path}: {name}={value!r}, which Slipway does not draw with; expected"
                f" {_NEUTRAL[name]!r}"
            )


def _filled(class_name: str, named: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """With a scheduler's defaults for the settings that are not named."""
    scheduler: Any = getattr(diffusers, class_name)
    try:
        with quiet():
            return dict(scheduler.from_config(dict(named)).config)
    # Every mistake has its own way to fail.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: diffusers cannot use it: {reason}") from error
