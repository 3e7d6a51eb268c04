"""Models that answer step by step: what a step is, and what one request makes of it.

`parameters.stepper` in `config.pbtxt` names one; each is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from serving.config import ModelConfig
from serving.errors import ModelLoadError
from serving.scheduling.stepper import Stepper

STEPPERS = {
    "diffusion": "serving.steppers.diffusion:load",
    "generation": "serving.steppers.generation:load",
    "recognition": "serving.steppers.recognition:load",
}


def load_stepper(name: str, config: ModelConfig, directory: Path) -> Stepper[Any]:
    """Load the stepper of one version directory. Raises `ModelLoadError`, in one sentence."""
    if name not in STEPPERS:
        raise ModelLoadError(
            f"model {config.name!r}: parameters stepper {name!r} is not supported;"
            f" expected one of {', '.join(STEPPERS)}"
        )
    module_name, _, attribute = STEPPERS[name].partition(":")
    load: Callable[[ModelConfig, Path], Stepper[Any]] = getattr(
        import_module(module_name), attribute
    )
    return load(config, directory)
