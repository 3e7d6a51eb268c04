"""Where a model runs, and how its engine prepares it."""

from __future__ import annotations

from tritonclient.grpc import model_config_pb2

from serving.config import Accelerator, InstanceGroup, InstanceKind
from serving.errors import shown
from serving.pbtxt.source import Source

MAX_INSTANCES = 1024

_GRAPH_LEVELS = (-1, 0, 1, 2)
_ACCELERATORS = {
    "gpu_execution_accelerator": ("tensorrt", "cuda"),
    "cpu_execution_accelerator": ("openvino",),
}


def read_instance_groups(source: Source) -> tuple[InstanceGroup, ...]:
    """Raises `ConfigError`."""
    groups = []
    for index, item in enumerate(source.message.instance_group):
        where = f"instance_group[{index}]"
        kind = source.enum_name(
            f"{where}.kind", model_config_pb2.ModelInstanceGroup.Kind, item.kind
        )
        if kind not in {member.value for member in InstanceKind}:
            raise source.error(f"{where}.kind", f"{kind} is not supported")
        if item.count < 0:
            raise source.error(f"{where}.count", f"must be 1 or more, got {item.count}")
        gpus = tuple(item.gpus)
        if gpus and kind == InstanceKind.CPU.value:
            raise source.error(f"{where}.gpus", f"must not be given with {kind}")
        if len(set(gpus)) < len(gpus) or any(gpu < 0 for gpu in gpus):
            raise source.error(
                f"{where}.gpus", f"must be different numbers of 0 or more, got {list(gpus)}"
            )
        groups.append(InstanceGroup(InstanceKind(kind), item.count or 1, gpus))
    total = sum(group.total for group in groups)
    if total > MAX_INSTANCES:
        raise source.error(
            "instance_group", f"must make at most {MAX_INSTANCES} instances, got {total}"
        )
    return tuple(groups) or (InstanceGroup(),)


def read_graph_level(source: Source) -> int:
    """Raises `ConfigError`."""
    level = source.message.optimization.graph.level
    if level not in _GRAPH_LEVELS:
        raise source.error(
            "optimization.graph.level", f"must be one of {list(_GRAPH_LEVELS)}, got {level}"
        )
    return int(level)


def read_accelerators(source: Source) -> tuple[Accelerator, ...]:
    """Those of the GPU, then those of the CPU, each in their order. Raises `ConfigError`."""
    found = []
    for group, known in _ACCELERATORS.items():
        items = getattr(source.message.optimization.execution_accelerators, group)
        for index, item in enumerate(items):
            if item.name not in known:
                raise source.error(
                    f"optimization.execution_accelerators.{group}[{index}].name",
                    f"must be one of {list(known)}, got {shown(item.name)}",
                )
            found.append(Accelerator(item.name, dict(item.parameters)))
    return tuple(found)
