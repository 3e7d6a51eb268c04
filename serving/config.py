"""One model's configuration: what `config.pbtxt` says, checked. See `serving/pbtxt.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from google.protobuf.message import Message

from serving.types import TensorSpec


class InstanceKind(Enum):
    """Where a model's instances run. AUTO is a GPU if the engine can use one, else the CPU."""

    AUTO = "KIND_AUTO"
    CPU = "KIND_CPU"
    GPU = "KIND_GPU"


class TimeoutAction(Enum):
    """What becomes of a request whose time in the queue is up."""

    REJECT = "REJECT"
    DELAY = "DELAY"


@dataclass(frozen=True)
class QueuePolicy:
    """What one priority level's queue grants a request. 0 means "no limit" throughout."""

    max_queue_size: int = 0
    timeout_s: float = 0.0
    timeout_action: TimeoutAction = TimeoutAction.REJECT
    allow_timeout_override: bool = False
    """A request may ask for a timeout of its own, if it is shorter."""


@dataclass(frozen=True)
class Batching:
    """`dynamic_batching`: which requests may share a run, and for how long one waits for others."""

    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_s: float = 0.0
    priority_levels: int = 0
    """Levels are 1 (first served) to this; 0 means one level, and requests cannot choose."""
    default_priority_level: int = 0
    default_policy: QueuePolicy = QueuePolicy()
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)

    def policy(self, level: int) -> QueuePolicy:
        return self.policies.get(level, self.default_policy)


@dataclass(frozen=True)
class VersionPolicy:
    """Which of the version directories are served."""

    latest: int = 1
    specific: tuple[int, ...] | None = None
    """When given, exactly these, and `latest` has no effect."""

    def choose(self, available: list[int]) -> list[int]:
        if self.specific is not None:
            return sorted(set(self.specific))
        return sorted(available)[-self.latest :]


@dataclass(frozen=True)
class ModelConfig:
    """One model's configuration, checked. `inputs` and `outputs` include the batch dimension."""

    name: str
    backend: str
    platform: str
    max_batch_size: int
    """Rows that one run may have; 0 means that the model has no batch dimension."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batching: Batching | None
    instance_count: int
    instance_kind: InstanceKind
    version_policy: VersionPolicy
    model_filename: str
    parameters: Mapping[str, str]
    label_files: Mapping[str, str]
    """Output name -> file of labels, relative to the model directory."""
    message: Message
    """The protobuf message, with the defaults filled in, for callers who ask for the config."""

    @property
    def task(self) -> str | None:
        return self.parameters.get("task")
