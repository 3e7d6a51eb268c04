"""The fields that have an effect here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

from serving.errors import shown

# Message type -> its fields that are honoured.
_HONOURED: Mapping[str, frozenset[str]] = {
    "ModelConfig": frozenset(
        {
            "name",
            "platform",
            "backend",
            "version_policy",
            "max_batch_size",
            "input",
            "output",
            "batch_input",
            "batch_output",
            "optimization",
            "dynamic_batching",
            "sequence_batching",
            "ensemble_scheduling",
            "instance_group",
            "default_model_filename",
            "parameters",
            "model_warmup",
            "model_transaction_policy",
            "response_cache",
        }
    ),
    "ModelInput": frozenset(
        {"name", "data_type", "format", "dims", "reshape", "allow_ragged_batch", "optional"}
    ),
    "ModelOutput": frozenset({"name", "data_type", "dims", "reshape", "label_filename"}),
    "ModelTensorReshape": frozenset({"shape"}),
    "BatchInput": frozenset({"kind", "target_name", "data_type", "source_input"}),
    "BatchOutput": frozenset({"target_name", "kind", "source_input"}),
    "ModelVersionPolicy": frozenset({"latest", "all", "specific"}),
    "Latest": frozenset({"num_versions"}),
    "All": frozenset(),
    "Specific": frozenset({"versions"}),
    # Pinned memory makes copies faster and changes nothing else, and whether there is anything to
    # copy is the server's business.
    "ModelOptimizationPolicy": frozenset(
        {"graph", "execution_accelerators", "input_pinned_memory", "output_pinned_memory"}
    ),
    "Graph": frozenset({"level"}),
    "ExecutionAccelerators": frozenset({"gpu_execution_accelerator", "cpu_execution_accelerator"}),
    "Accelerator": frozenset({"name", "parameters"}),
    "PinnedMemoryBuffer": frozenset({"enable"}),
    "ModelDynamicBatching": frozenset(
        {
            "preferred_batch_size",
            "max_queue_delay_microseconds",
            "preserve_ordering",
            "priority_levels",
            "default_priority_level",
            "default_queue_policy",
            "priority_queue_policy",
        }
    ),
    "ModelQueuePolicy": frozenset(
        {
            "timeout_action",
            "default_timeout_microseconds",
            "allow_timeout_override",
            "max_queue_size",
        }
    ),
    "ModelSequenceBatching": frozenset(
        {"direct", "oldest", "max_sequence_idle_microseconds", "control_input", "state"}
    ),
    "StrategyDirect": frozenset({"max_queue_delay_microseconds", "minimum_slot_utilization"}),
    "StrategyOldest": frozenset(
        {
            "max_candidate_sequences",
            "preferred_batch_size",
            "max_queue_delay_microseconds",
            "preserve_ordering",
        }
    ),
    "ControlInput": frozenset({"name", "control"}),
    "Control": frozenset(
        {"kind", "int32_false_true", "fp32_false_true", "bool_false_true", "data_type"}
    ),
    "State": frozenset({"input_name", "output_name", "data_type", "dims", "initial_state"}),
    "InitialState": frozenset({"name", "data_type", "dims", "zero_data", "data_file"}),
    "ModelEnsembling": frozenset({"step"}),
    "Step": frozenset({"model_name", "model_version", "input_map", "output_map"}),
    "ModelInstanceGroup": frozenset({"name", "kind", "count", "gpus"}),
    "ModelParameter": frozenset({"string_value"}),
    "ModelWarmup": frozenset({"name", "batch_size", "inputs", "count"}),
    "Input": frozenset({"data_type", "dims", "zero_data", "random_data", "input_data_file"}),
    "ModelTransactionPolicy": frozenset({"decoupled"}),
    "ModelResponseCache": frozenset({"enable"}),
}


def unsupported(message: Message, prefix: str = "") -> Iterator[str]:
    """Every field that is set and not honoured, by its path."""
    honoured = _HONOURED[message.DESCRIPTOR.name]
    for descriptor, value in message.ListFields():
        name = prefix + descriptor.name
        if descriptor.name not in honoured:
            yield name
        elif descriptor.message_type is not None:
            for path, child in _messages(name, descriptor, value):
                yield from unsupported(child, f"{path}.")


def _messages(name: str, descriptor: Any, value: Any) -> Iterator[tuple[str, Message]]:
    if descriptor.message_type.GetOptions().map_entry:
        for key, child in value.items():
            if isinstance(child, Message):
                yield f"{name}[{shown(key)}]", child
    elif isinstance(value, Message):
        yield name, value
    else:
        for index, child in enumerate(value):
            yield f"{name}[{index}]", child
