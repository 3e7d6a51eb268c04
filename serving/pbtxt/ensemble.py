"""The models that an ensemble is made of, and what flows between them."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from serving.config import EnsembleStep
from serving.errors import shown
from serving.pbtxt.source import Source

PLATFORM = "ensemble"

_MEANINGLESS = (
    "instance_group",
    "optimization",
    "model_warmup",
    "model_transaction_policy",
    "batch_input",
    "batch_output",
    "default_model_filename",
)


def read_steps(source: Source) -> tuple[EnsembleStep, ...]:
    """The steps of an ensemble: every tensor has one origin and a use, and none waits for itself.

    Raises `ConfigError` naming the step and the tensor.
    """
    message = source.message
    set_fields = {descriptor.name for descriptor, _ in message.ListFields()}
    for name in _MEANINGLESS:
        if name in set_fields:
            raise source.error(name, "must not be given for an ensemble")
    for group in ("input", "output"):
        for index, tensor in enumerate(getattr(message, group)):
            for name in ("reshape", "allow_ragged_batch"):
                if any(descriptor.name == name for descriptor, _ in tensor.ListFields()):
                    raise source.error(
                        f"{group}[{index}].{name}", "must not be given for an ensemble"
                    )
    if not message.ensemble_scheduling.step:
        raise source.error("ensemble_scheduling.step", "is required")
    steps = tuple(
        _step(source, f"ensemble_scheduling.step[{index}]", item)
        for index, item in enumerate(message.ensemble_scheduling.step)
    )
    origins = _origins(source, steps)
    _check_uses(source, steps, origins)
    _check_order(source, steps, origins)
    return steps


def _step(source: Source, where: str, item: Any) -> EnsembleStep:
    if not item.model_name:
        raise source.error(f"{where}.model_name", "is required")
    if item.model_name == source.message.name:
        raise source.error(f"{where}.model_name", "must be another model, got the ensemble's own")
    if item.model_version < 1 and item.model_version != -1:
        raise source.error(
            f"{where}.model_version",
            f"must be a version, or -1 for the latest, got {item.model_version}",
        )
    for name in ("input_map", "output_map"):
        if not getattr(item, name):
            raise source.error(f"{where}.{name}", "is required")
        for key, tensor in getattr(item, name).items():
            if not key or not tensor:
                raise source.error(f"{where}.{name}[{shown(key)}]", "must map a name to a name")
    version = "" if item.model_version == -1 else str(item.model_version)
    return EnsembleStep(item.model_name, version, dict(item.input_map), dict(item.output_map))


def _origins(source: Source, steps: tuple[EnsembleStep, ...]) -> Mapping[str, int | None]:
    """Tensor -> the step that makes it, None for a caller's."""
    origins: dict[str, int | None] = {tensor.name: None for tensor in source.message.input}
    for index, step in enumerate(steps):
        for key, tensor in step.outputs.items():
            if tensor in origins:
                maker = origins[tensor]
                other = "an input" if maker is None else f"step[{maker}]"
                raise source.error(
                    f"ensemble_scheduling.step[{index}].output_map[{shown(key)}]",
                    f"makes {shown(tensor)}, which comes from {other} already",
                )
            origins[tensor] = index
    return origins


def _check_uses(
    source: Source, steps: tuple[EnsembleStep, ...], origins: Mapping[str, int | None]
) -> None:
    outputs = {tensor.name for tensor in source.message.output}
    used = {tensor for step in steps for tensor in step.inputs.values()}
    for index, step in enumerate(steps):
        for key, tensor in step.inputs.items():
            if tensor not in origins:
                raise source.error(
                    f"ensemble_scheduling.step[{index}].input_map[{shown(key)}]",
                    f"needs {shown(tensor)}, which no input and no step provides",
                )
        for key, tensor in step.outputs.items():
            if tensor not in used | outputs:
                raise source.error(
                    f"ensemble_scheduling.step[{index}].output_map[{shown(key)}]",
                    f"makes {shown(tensor)}, which no step and no output uses",
                )
    for index, tensor in enumerate(source.message.input):
        if tensor.name not in used:
            raise source.error(f"input[{index}]", f"{shown(tensor.name)} is used by no step")
    for index, tensor in enumerate(source.message.output):
        if origins.get(tensor.name) is None:
            raise source.error(f"output[{index}]", f"{shown(tensor.name)} is made by no step")


def _check_order(
    source: Source, steps: tuple[EnsembleStep, ...], origins: Mapping[str, int | None]
) -> None:
    waits = {index: {origins[t] for t in step.inputs.values()} for index, step in enumerate(steps)}
    try:
        TopologicalSorter(waits).prepare()
    except CycleError as error:
        cycle: list[int] = error.args[1]
        first, second = cycle[0], cycle[1]
        tensor = next(t for t in steps[second].inputs.values() if origins[t] == first)
        raise source.error(
            f"ensemble_scheduling.step[{second}]",
            f"waits for {shown(tensor)} of step[{first}], which waits for it in turn",
        ) from error
