"""Which requests run together, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from serving.config import (
    Batching,
    Control,
    ControlKind,
    QueuePolicy,
    SequenceBatching,
    SequenceStrategy,
    State,
    TimeoutAction,
)
from serving.errors import shown
from serving.pbtxt.files import check_tensor_size, read_tensor
from serving.pbtxt.source import Source
from serving.pbtxt.tensors import check_dims, read_datatype
from serving.types import DYNAMIC

MAX_PRIORITY_LEVELS = 100
DEFAULT_SEQUENCE_IDLE_US = 1_000_000
STATE_FOLDER = "initial_state"

_CORRID_TYPES = ("INT32", "INT64", "UINT32", "UINT64", "BYTES")


def read_batching(source: Source, *, instances: int) -> Batching | None:
    """`dynamic_batching`, if there is any. Raises `ConfigError`."""
    message = source.message
    if not message.HasField("dynamic_batching"):
        return None
    batching = message.dynamic_batching
    if message.max_batch_size == 0:
        raise source.error("dynamic_batching", "needs max_batch_size of 1 or more")
    levels, default_level = batching.priority_levels, batching.default_priority_level
    if levels > MAX_PRIORITY_LEVELS:
        raise source.error(
            "dynamic_batching.priority_levels",
            f"must be at most {MAX_PRIORITY_LEVELS}, got {levels}",
        )
    if default_level and not levels:
        raise source.error("dynamic_batching.default_priority_level", "needs priority_levels")
    if levels and not 1 <= default_level <= levels:
        raise source.error(
            "dynamic_batching.default_priority_level",
            f"must lie between 1 and priority_levels {levels}, got {default_level}",
        )
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            raise source.error(
                f"dynamic_batching.priority_queue_policy[{level}]",
                f"must lie between 1 and priority_levels {levels}",
            )
    default_policy = _queue_policy(
        source, "dynamic_batching.default_queue_policy", batching.default_queue_policy
    )
    policies = {
        level: _queue_policy(source, f"dynamic_batching.priority_queue_policy[{level}]", policy)
        for level, policy in batching.priority_queue_policy.items()
    }
    if batching.preserve_ordering:
        name = "dynamic_batching.preserve_ordering"
        _check_order(source, name, instances)
        if levels > 1:
            raise source.error(name, f"must be false with {levels} priority_levels")
        if any(_delays(policy) for policy in (default_policy, *policies.values())):
            raise source.error(name, "must be false where timeout_action is DELAY")
    return Batching(
        preferred_batch_sizes=_preferred(
            source, "dynamic_batching.preferred_batch_size", batching.preferred_batch_size
        ),
        max_queue_delay_s=batching.max_queue_delay_microseconds / 1e6,
        priority_levels=levels,
        default_priority_level=default_level,
        default_policy=default_policy,
        policies=policies,
    )


def read_sequences(source: Source, directory: Path, *, instances: int) -> SequenceBatching | None:
    """`sequence_batching`, if there is any, with the files of initial states.

    Raises `ConfigError`.
    """
    if not source.message.HasField("sequence_batching"):
        return None
    batching = source.message.sequence_batching
    # Neither means direct, as in Triton.
    is_oldest = batching.WhichOneof("strategy_choice") == "oldest"
    oldest, direct = batching.oldest, batching.direct
    if oldest.max_candidate_sequences < 0:
        raise source.error(
            "sequence_batching.oldest.max_candidate_sequences",
            f"must be 0 or more, got {oldest.max_candidate_sequences}",
        )
    if oldest.preserve_ordering:
        _check_order(source, "sequence_batching.oldest.preserve_ordering", instances)
    if not 0 <= direct.minimum_slot_utilization <= 1:
        raise source.error(
            "sequence_batching.direct.minimum_slot_utilization",
            f"must lie between 0 and 1, got {direct.minimum_slot_utilization}",
        )
    strategy = oldest if is_oldest else direct
    sequences = SequenceBatching(
        strategy=SequenceStrategy.OLDEST if is_oldest else SequenceStrategy.DIRECT,
        max_idle_s=(batching.max_sequence_idle_microseconds or DEFAULT_SEQUENCE_IDLE_US) / 1e6,
        controls=_controls(source, batching.control_input),
        states=_states(source, directory, batching.state),
        max_candidate_sequences=oldest.max_candidate_sequences,
        preferred_batch_sizes=_preferred(
            source, "sequence_batching.oldest.preferred_batch_size", oldest.preferred_batch_size
        ),
        max_queue_delay_s=strategy.max_queue_delay_microseconds / 1e6,
        minimum_slot_utilization=direct.minimum_slot_utilization,
    )
    _check_names(source, sequences)
    return sequences


def _preferred(source: Source, name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    limit = source.message.max_batch_size
    if any(not 1 <= size <= limit for size in sizes):
        raise source.error(
            name, f"must lie between 1 and max_batch_size {limit}, got {list(sizes)}"
        )
    return tuple(sorted(set(sizes)))


def _check_order(source: Source, name: str, instances: int) -> None:
    """One instance answers in the order of its runs; several overtake each other."""
    if instances > 1:
        raise source.error(name, f"must be false with {instances} instances")


def _queue_policy(source: Source, where: str, policy: Any) -> QueuePolicy:
    action = source.enum_name(
        f"{where}.timeout_action",
        model_config_pb2.ModelQueuePolicy.TimeoutAction,
        policy.timeout_action,
    )
    return QueuePolicy(
        max_queue_size=policy.max_queue_size,
        timeout_s=policy.default_timeout_microseconds / 1e6,
        timeout_action=TimeoutAction(action),
        allow_timeout_override=policy.allow_timeout_override,
    )


def _delays(policy: QueuePolicy) -> bool:
    return policy.timeout_action is TimeoutAction.DELAY and policy.timeout_s > 0


def _controls(source: Source, items: Sequence[Any]) -> tuple[Control, ...]:
    controls: dict[ControlKind, Control] = {}
    for index, item in enumerate(items):
        where = f"sequence_batching.control_input[{index}]"
        if not item.name:
            raise source.error(f"{where}.name", "is required")
        if len(item.control) != 1:
            raise source.error(f"{where}.control", f"must be given once, got {len(item.control)}")
        control = _control(source, f"{where}.control[0]", item.name, item.control[0])
        if control.kind in controls:
            raise source.error(
                f"{where}.control[0].kind",
                f"{control.kind.value} is that of {shown(controls[control.kind].name)} already",
            )
        controls[control.kind] = control
    return tuple(controls.values())


def _control(source: Source, where: str, name: str, item: Any) -> Control:
    kind = ControlKind(
        source.enum_name(
            f"{where}.kind", model_config_pb2.ModelSequenceBatching.Control.Kind, item.kind
        )
    )
    values = {
        "INT32": item.int32_false_true,
        "FP32": item.fp32_false_true,
        "BOOL": item.bool_false_true,
    }
    given = [datatype for datatype, pair in values.items() if pair]
    if kind is ControlKind.CORRID:
        if given:
            raise source.error(where, f"must not have {given[0].lower()}_false_true: it is an id")
        datatype = read_datatype(source, f"{where}.data_type", item.data_type)
        if datatype not in _CORRID_TYPES:
            raise source.error(
                f"{where}.data_type", f"must be one of {list(_CORRID_TYPES)}, got {datatype}"
            )
        return Control(name, kind, datatype)
    if len(given) != 1:
        raise source.error(
            where,
            "must have one of int32_false_true, fp32_false_true and bool_false_true,"
            f" got {len(given)}",
        )
    datatype = given[0]
    pair = values[datatype]
    if len(pair) != 2:
        raise source.error(
            f"{where}.{datatype.lower()}_false_true", f"must have 2 values, got {len(pair)}"
        )
    if item.data_type:
        declared = read_datatype(source, f"{where}.data_type", item.data_type)
        if declared != datatype:
            raise source.error(
                f"{where}.data_type", f"must be that of the values, {datatype}, got {declared}"
            )
    return Control(name, kind, datatype, false=pair[0], true=pair[1])


def _states(source: Source, directory: Path, items: Sequence[Any]) -> tuple[State, ...]:
    states: list[State] = []
    for index, item in enumerate(items):
        where = f"sequence_batching.state[{index}]"
        for field in ("input_name", "output_name"):
            if not getattr(item, field):
                raise source.error(f"{where}.{field}", "is required")
            if any(getattr(state, field) == getattr(item, field) for state in states):
                raise source.error(
                    f"{where}.{field}", f"{shown(getattr(item, field))} is declared twice"
                )
        datatype = read_datatype(source, f"{where}.data_type", item.data_type)
        check_dims(source, f"{where}.dims", item.dims)
        shape = tuple(item.dims)
        check_tensor_size(source, f"{where}.dims", datatype, _first_shape(shape))
        if len(item.initial_state) > 1:
            raise source.error(
                f"{where}.initial_state", f"may be given once, got {len(item.initial_state)}"
            )
        initial = None
        for given in item.initial_state:
            initial = _initial(
                source, f"{where}.initial_state[0]", directory, item, datatype, given
            )
        states.append(State(item.input_name, item.output_name, datatype, shape, initial))
    return tuple(states)


def _initial(
    source: Source, where: str, directory: Path, state: Any, datatype: str, item: Any
) -> bytes | None:
    if not item.name:
        raise source.error(f"{where}.name", "is required")
    declared = read_datatype(source, f"{where}.data_type", item.data_type)
    if declared != datatype:
        raise source.error(
            f"{where}.data_type", f"must be that of the state, {datatype}, got {declared}"
        )
    shape = tuple(item.dims)
    if shape != _first_shape(state.dims):
        raise source.error(
            f"{where}.dims",
            f"must be those of the state with 1 for dynamic, {list(_first_shape(state.dims))},"
            f" got {list(shape)}",
        )
    choice = item.WhichOneof("state_data")
    if choice is None:
        raise source.error(where, "must have zero_data or data_file")
    if choice == "zero_data":
        return None
    return read_tensor(
        source, f"{where}.data_file", directory, STATE_FOLDER, item.data_file, datatype, shape
    )


def _first_shape(dims: Sequence[int]) -> tuple[int, ...]:
    """A state's shape before the first step: with 1 for dynamic, as in Triton."""
    return tuple(1 if size == DYNAMIC else size for size in dims)


def _check_names(source: Source, sequences: SequenceBatching) -> None:
    """The server fills these inputs, so a caller cannot, and only one thing can be in each."""
    taken = {tensor.name for tensor in source.message.input}
    taken |= {name for item in source.message.batch_input for name in item.target_name}
    names = [
        *(
            (f"sequence_batching.control_input[{index}].name", item.name)
            for index, item in enumerate(sequences.controls)
        ),
        *(
            (f"sequence_batching.state[{index}].input_name", item.input_name)
            for index, item in enumerate(sequences.states)
        ),
    ]
    for where, name in names:
        if name in taken:
            raise source.error(where, f"{shown(name)} is declared twice")
        taken.add(name)
