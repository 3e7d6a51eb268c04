"""Reading `config.pbtxt`, Triton's model configuration and the only one Slipway has.

It is parsed with the protobuf classes that `tritonclient` ships. A field that Slipway does not
honour refuses to load with its name, so no setting is ever silently without effect.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2

from serving.config import (
    Batching,
    InstanceKind,
    ModelConfig,
    QueuePolicy,
    TimeoutAction,
    VersionPolicy,
)
from serving.errors import ConfigError
from serving.types import DYNAMIC, NUMPY_TYPES, TensorSpec

CONFIG_FILE = "config.pbtxt"
MAX_PRIORITY_LEVELS = 100

# Message type -> its fields that have an effect here.
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
            "dynamic_batching",
            "instance_group",
            "default_model_filename",
            "parameters",
        }
    ),
    "ModelInput": frozenset({"name", "data_type", "dims"}),
    "ModelOutput": frozenset({"name", "data_type", "dims", "label_filename"}),
    "ModelVersionPolicy": frozenset({"latest", "all", "specific"}),
    "Latest": frozenset({"num_versions"}),
    "All": frozenset(),
    "Specific": frozenset({"versions"}),
    "ModelInstanceGroup": frozenset({"name", "kind", "count"}),
    "ModelDynamicBatching": frozenset(
        {
            "preferred_batch_size",
            "max_queue_delay_microseconds",
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
    "ModelParameter": frozenset({"string_value"}),
}


def read_config(path: Path) -> ModelConfig:
    """Read and check one `config.pbtxt`.

    Raises `ConfigError`: one sentence with the file, the line and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return _Reader(path, text).read()


class _Reader:
    """Turns one file into a `ModelConfig`, with the file and line at hand for complaints."""

    def __init__(self, path: Path, text: str):
        self._path = path
        self._text = text

    def read(self) -> ModelConfig:
        message = model_config_pb2.ModelConfig()
        try:
            text_format.Parse(self._text, message)
        except text_format.ParseError as error:
            raise ConfigError(f"{self._path}:{_without_position(error)}") from error
        for name, reason in _unsupported(message):
            raise self._error(name, reason)

        directory_name = self._path.parent.name
        if not directory_name.isprintable():
            raise ConfigError(f"{self._path}: the directory's name cannot be a model's name")
        if message.name not in ("", directory_name):
            raise self._error(
                "name", f"must equal its directory's name {directory_name!r}, got {message.name!r}"
            )
        message.name = directory_name
        batched = message.max_batch_size > 0
        if message.max_batch_size < 0:
            raise self._error("max_batch_size", f"must be 0 or more, got {message.max_batch_size}")
        kind, count = self._instances(message)
        config = ModelConfig(
            name=message.name,
            backend=self._backend(message),
            platform=message.platform,
            max_batch_size=message.max_batch_size,
            inputs=self._tensors("input", message.input, batched),
            outputs=self._tensors("output", message.output, batched),
            batching=self._batching(message),
            instance_count=count,
            instance_kind=kind,
            version_policy=self._version_policy(message.version_policy),
            model_filename=self._filename(message),
            parameters={key: value.string_value for key, value in message.parameters.items()},
            label_files={
                output.name: self._contained("label_filename", output.label_filename)
                for output in message.output
                if output.label_filename
            },
            message=message,
        )
        _fill_defaults(message, config)
        return config

    def _error(self, name: str, problem: str) -> ConfigError:
        """A complaint about a field, at the line where it is written.

        In "input[1].dims", the second `dims` after the first `input` is meant.
        """
        end = index = 0
        for depth, part in enumerate(name.split(".")):
            word, _, position = part.partition("[")
            pattern = re.compile(rf"^[^#\n]*?\b{re.escape(word)}\b", re.MULTILINE)
            ends = (found.end() for found in pattern.finditer(self._text, end))
            at_depth = (at for at in ends if self._depth(at) == depth)
            end = next(itertools.islice(at_depth, index, None), end)
            index = int(position.rstrip("]") or 0)
        line = self._text.count("\n", 0, end) + 1
        return ConfigError(f"{self._path}:{line}: {name} {problem}")

    def _depth(self, position: int) -> int:
        """How many messages are open there."""
        return self._text.count("{", 0, position) - self._text.count("}", 0, position)

    def _enum_name(self, name: str, enum: Any, number: int) -> str:
        if number not in enum.values():
            raise self._error(name, f"has the unknown value {number}")
        return str(enum.Name(number))

    def _backend(self, message: Any) -> str:
        if message.backend:
            return str(message.backend)
        if message.platform == "onnxruntime_onnx":
            message.backend = "onnxruntime"
            return "onnxruntime"
        if message.platform:
            raise self._error(
                "platform", f"{message.platform!r} is not supported; set backend instead"
            )
        raise self._error("backend", 'is required, for example backend: "onnxruntime"')

    def _tensors(self, group: str, tensors: Any, batched: bool) -> tuple[TensorSpec, ...]:
        specs: dict[str, TensorSpec] = {}
        for index, tensor in enumerate(tensors):
            where = f"{group}[{index}]"
            if not tensor.name:
                raise self._error(f"{where}.name", "is required")
            if tensor.name in specs:
                raise self._error(f"{where}.name", f"{tensor.name!r} is declared twice")
            enum_name = self._enum_name(
                f"{where}.data_type", model_config_pb2.DataType, tensor.data_type
            )
            datatype = enum_name.removeprefix("TYPE_").replace("STRING", "BYTES")
            if datatype not in NUMPY_TYPES:
                raise self._error(f"{where}.data_type", f"{enum_name} is not supported")
            if not tensor.dims and not batched:
                raise self._error(f"{where}.dims", "is required")
            if any(size < 1 and size != DYNAMIC for size in tensor.dims):
                raise self._error(
                    f"{where}.dims", f"must be 1 or more, or -1, got {list(tensor.dims)}"
                )
            shape = (DYNAMIC, *tensor.dims) if batched else tuple(tensor.dims)
            specs[tensor.name] = TensorSpec(tensor.name, datatype, shape)
        if not specs:
            raise self._error(group, "is required: the model declares none")
        return tuple(specs.values())

    def _instances(self, message: Any) -> tuple[InstanceKind, int]:
        if not message.instance_group:
            return InstanceKind.AUTO, 1
        if len(message.instance_group) > 1:
            raise self._error("instance_group", "may be given once")
        group = message.instance_group[0]
        kind = self._enum_name(
            "instance_group.kind", model_config_pb2.ModelInstanceGroup.Kind, group.kind
        )
        if kind not in {member.value for member in InstanceKind}:
            raise self._error("instance_group.kind", f"{kind} is not supported")
        if group.count < 0:
            raise self._error("instance_group.count", f"must be 1 or more, got {group.count}")
        return InstanceKind(kind), group.count or 1

    def _batching(self, message: Any) -> Batching | None:
        if not message.HasField("dynamic_batching"):
            return None
        batching = message.dynamic_batching
        if message.max_batch_size == 0:
            raise self._error("dynamic_batching", "needs max_batch_size of 1 or more")
        preferred = tuple(sorted(set(batching.preferred_batch_size)))
        if any(not 1 <= size <= message.max_batch_size for size in preferred):
            raise self._error(
                "dynamic_batching.preferred_batch_size",
                f"must lie between 1 and max_batch_size {message.max_batch_size},"
                f" got {list(batching.preferred_batch_size)}",
            )
        levels, default_level = batching.priority_levels, batching.default_priority_level
        if levels > MAX_PRIORITY_LEVELS:
            raise self._error(
                "dynamic_batching.priority_levels",
                f"must be at most {MAX_PRIORITY_LEVELS}, got {levels}",
            )
        if default_level and not levels:
            raise self._error("dynamic_batching.default_priority_level", "needs priority_levels")
        if levels and not 1 <= default_level <= levels:
            raise self._error(
                "dynamic_batching.default_priority_level",
                f"must lie between 1 and priority_levels {levels}, got {default_level}",
            )
        for level in batching.priority_queue_policy:
            if not 1 <= level <= levels:
                raise self._error(
                    "dynamic_batching.priority_queue_policy",
                    f"has key {level}; must lie between 1 and priority_levels {levels}",
                )
        return Batching(
            preferred_batch_sizes=preferred,
            max_queue_delay_s=batching.max_queue_delay_microseconds / 1e6,
            priority_levels=levels,
            default_priority_level=default_level,
            default_policy=self._queue_policy(batching.default_queue_policy),
            policies={
                level: self._queue_policy(policy)
                for level, policy in batching.priority_queue_policy.items()
            },
        )

    def _queue_policy(self, policy: Any) -> QueuePolicy:
        action = self._enum_name(
            "timeout_action", model_config_pb2.ModelQueuePolicy.TimeoutAction, policy.timeout_action
        )
        return QueuePolicy(
            max_queue_size=policy.max_queue_size,
            timeout_s=policy.default_timeout_microseconds / 1e6,
            timeout_action=TimeoutAction(action),
            allow_timeout_override=policy.allow_timeout_override,
        )

    def _version_policy(self, policy: Any) -> VersionPolicy:
        choice = policy.WhichOneof("policy_choice")
        if choice == "specific":
            if not policy.specific.versions or min(policy.specific.versions) < 1:
                raise self._error("version_policy.specific.versions", "must list positive numbers")
            return VersionPolicy(specific=tuple(policy.specific.versions))
        if choice == "all":
            return VersionPolicy(latest=2**31)
        return VersionPolicy(latest=policy.latest.num_versions or 1)

    def _filename(self, message: Any) -> str:
        if not message.default_model_filename:
            return "model.onnx"
        return self._contained("default_model_filename", message.default_model_filename)

    def _contained(self, name: str, filename: str) -> str:
        parts = Path(filename).parts
        if "\0" in filename or ".." in parts or Path(filename).is_absolute():
            raise self._error(name, f"must stay inside the model directory, got {filename!r}")
        return filename


def _unsupported(message: Message, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every field that is set and not honoured, as (name, why)."""
    honoured = _HONOURED[message.DESCRIPTOR.name]
    for descriptor, value in message.ListFields():
        name = prefix + descriptor.name
        if descriptor.name not in honoured:
            yield name, "is not supported by this server"
        elif descriptor.message_type is not None:
            for child in _messages(descriptor, value):
                yield from _unsupported(child, f"{name}.")


def _messages(descriptor: Any, value: Any) -> Iterator[Message]:
    if descriptor.message_type.GetOptions().map_entry:
        yield from value.values()
    elif isinstance(value, Message):
        yield value
    else:
        yield from value


def _without_position(error: text_format.ParseError) -> str:
    """`line: message`, from a text that protobuf begins with "line:column : "."""
    return re.sub(r"^(\d+):\d+ : ", r"\1: ", str(error))


def _fill_defaults(message: Any, config: ModelConfig) -> None:
    """Write into the message what was left open, as Triton does before it shows a config."""
    if not message.version_policy.WhichOneof("policy_choice"):
        message.version_policy.latest.num_versions = 1
    if not message.instance_group:
        message.instance_group.add()
    group = message.instance_group[0]
    group.name = group.name or config.name
    group.count = config.instance_count
    message.default_model_filename = config.model_filename
