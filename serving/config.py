"""One model's configuration: what `config.pbtxt` says, checked. See `serving/pbtxt`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from google.protobuf.message import Message

from serving.types import TensorSpec

STEPPER = "stepper"
"""The key of `parameters` by which a model that answers in steps names how."""


class InstanceKind(Enum):
    """Where a model's instances run. AUTO is a GPU if the engine can use one, else the CPU."""

    AUTO = "KIND_AUTO"
    CPU = "KIND_CPU"
    GPU = "KIND_GPU"


@dataclass(frozen=True)
class InstanceGroup:
    """`count` instances of one kind; of KIND_GPU, that many on each of `gpus` (none: the first)."""

    kind: InstanceKind = InstanceKind.AUTO
    count: int = 1
    gpus: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return self.count * max(1, len(self.gpus))


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


class ControlKind(Enum):
    """What a control tensor tells the model about each row of a batch of sequences."""

    START = "CONTROL_SEQUENCE_START"
    """The row is the first of its sequence."""
    READY = "CONTROL_SEQUENCE_READY"
    """The row holds a request; the others are empty slots."""
    END = "CONTROL_SEQUENCE_END"
    """The row is the last of its sequence."""
    CORRID = "CONTROL_SEQUENCE_CORRID"
    """The sequence's correlation id."""


@dataclass(frozen=True)
class Control:
    """A model input of shape [batch, 1] ([1] without a batch dimension) that the server fills."""

    name: str
    kind: ControlKind
    datatype: str
    false: float = 0
    true: float = 1
    """The values that mean no and yes; of no account for CORRID."""


@dataclass(frozen=True)
class State:
    """A tensor that one step of a sequence returns and that the next step is given."""

    input_name: str
    output_name: str
    datatype: str
    shape: tuple[int, ...]
    """Without the batch dimension."""
    initial: bytes | None = None
    """The first step's value as raw bytes (`initial_state.data_file`); None is zeros."""


class SequenceStrategy(Enum):
    DIRECT = "direct"
    """A sequence keeps one batch slot of one instance from its first request to its last."""
    OLDEST = "oldest"
    """Requests of different sequences are batched in the order in which their sequences began."""


@dataclass(frozen=True)
class SequenceBatching:
    """`sequence_batching`: requests with one correlation id run in order, on one instance."""

    strategy: SequenceStrategy
    max_idle_s: float = 1.0
    """A sequence without a request for so long is ended, and its slot given to another."""
    controls: tuple[Control, ...] = ()
    states: tuple[State, ...] = ()
    max_candidate_sequences: int = 1
    """OLDEST: sequences that one instance works on at a time; more wait for a place."""
    preferred_batch_sizes: tuple[int, ...] = ()
    """OLDEST."""
    max_queue_delay_s: float = 0.0
    minimum_slot_utilization: float = 0.0
    """DIRECT: share of slots that must have a request before `max_queue_delay_s` has passed."""


@dataclass(frozen=True)
class EnsembleStep:
    """One model of an ensemble. The maps go from the model's tensor names to the ensemble's."""

    model_name: str
    model_version: str
    """Empty for the latest."""
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


class BatchInputKind(Enum):
    """What the server tells a model about the requests in a batch of ragged inputs."""

    ELEMENT_COUNT = "BATCH_ELEMENT_COUNT"
    ACCUMULATED_ELEMENT_COUNT = "BATCH_ACCUMULATED_ELEMENT_COUNT"
    ACCUMULATED_ELEMENT_COUNT_WITH_ZERO = "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
    MAX_ELEMENT_COUNT_AS_SHAPE = "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE"
    ITEM_SHAPE = "BATCH_ITEM_SHAPE"
    ITEM_SHAPE_FLATTEN = "BATCH_ITEM_SHAPE_FLATTEN"


@dataclass(frozen=True)
class BatchInput:
    """A model input that the server makes from the shapes of a ragged input, `source`."""

    name: str
    kind: BatchInputKind
    datatype: str
    source: str


@dataclass(frozen=True)
class BatchOutput:
    """A model output whose rows have the lengths of a ragged input, `source`."""

    name: str
    source: str


@dataclass(frozen=True)
class WarmupInput:
    """One input of a warm-up run; `shape` is without the batch dimension."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes | None = None
    """Raw bytes of the file that the config names."""
    random: bool = False
    """Random values; with neither, zeros (BYTES: empty strings)."""


@dataclass(frozen=True)
class Warmup:
    """Runs before a version takes its first request: `count` of them, or one; `rows` rows each."""

    name: str
    rows: int
    """0 for a model without a batch dimension."""
    count: int
    inputs: Mapping[str, WarmupInput]


@dataclass(frozen=True)
class Accelerator:
    """`optimization.execution_accelerators`: "tensorrt" or "cuda" of the GPU, "openvino" …"""

    name: str
    parameters: Mapping[str, str]


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
    """One model's configuration, checked.

    `inputs` and `outputs` are as callers see them, the batch dimension included. They may be empty
    for a backend that can tell them from the model; see `serving/completion.py`.
    """

    name: str
    backend: str
    """"ensemble" for a model that is made of others."""
    platform: str
    max_batch_size: int
    """Rows that one run may have; 0 means that the model has no batch dimension."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    version_policy: VersionPolicy
    model_filename: str
    message: Message
    """The protobuf message, with the defaults filled in, for callers who ask for the config."""
    batching: Batching | None = None
    sequences: SequenceBatching | None = None
    steps: tuple[EnsembleStep, ...] = ()
    decoupled: bool = False
    """A request may have any number of responses (`model_transaction_policy`)."""
    cache_responses: bool = False
    instance_groups: tuple[InstanceGroup, ...] = (InstanceGroup(),)
    warmups: tuple[Warmup, ...] = ()
    reshapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensor name -> its shape in the model, batch dimension included, where `reshape` is given."""
    ragged: frozenset[str] = frozenset()
    """Inputs that may differ in shape within a batch (`allow_ragged_batch`)."""
    batch_inputs: tuple[BatchInput, ...] = ()
    batch_outputs: tuple[BatchOutput, ...] = ()
    graph_level: int = 0
    """`optimization.graph.level`; 0 is every optimisation that the engine has."""
    accelerators: tuple[Accelerator, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Output name -> the names of its classes, from `label_filename`."""

    @property
    def task(self) -> str | None:
        return self.parameters.get("task")

    @property
    def instance_count(self) -> int:
        return sum(group.total for group in self.instance_groups)
