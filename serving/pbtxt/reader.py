"""From `config.pbtxt`, or what stands in for it, to a checked `ModelConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from serving.config import STEPPER, ModelConfig, SequenceBatching, VersionPolicy
from serving.errors import ConfigError, shown
from serving.pbtxt import ensemble, placement, scheduling, tensors
from serving.pbtxt.files import check_model_filename, version_directories
from serving.pbtxt.honoured import unsupported
from serving.pbtxt.source import Source
from serving.pbtxt.warmup import read_warmups

CONFIG_FILE = "config.pbtxt"

_ONNX_BACKEND = "onnxruntime"
_ONNX_PLATFORM = "onnxruntime_onnx"
_ONNX_FILE = "model.onnx"
_PYTHON_BACKEND = "python"
_PYTHON_FILE = "model.py"
"""What Triton runs; a stepper runs the graphs beside it."""


def read_config(directory: Path) -> ModelConfig:
    """Read and check the `config.pbtxt` of a model directory.

    Without one, a version with a `model.onnx` makes a configuration that has a name and a backend;
    `serving/completion.py` fills in the rest from the graph.

    Raises `ConfigError`: one sentence with the file, the line and the field.
    """
    path = directory / CONFIG_FILE
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        if not _has_onnx(directory):
            raise ConfigError(
                f"{path}: no such file, and no version directory holds a {_ONNX_FILE} to do without"
            ) from error
        return _read(Source(str(path), model_config_pb2.ModelConfig()), directory)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: it is not UTF-8") from error
    return read_text(text, directory)


def read_text(text: str, directory: Path) -> ModelConfig:
    """Read and check what might stand in the `config.pbtxt` of `directory`.

    Raises `ConfigError`.
    """
    return _read(Source.of_text(str(directory / CONFIG_FILE), text), directory)


def read_override(text: str, directory: Path) -> ModelConfig:
    """Read and check what a load call sends in place of `config.pbtxt`: the same as JSON.

    Files that it names are those of `directory`. Raises `ConfigError`: one sentence with the field,
    and without the server's paths.
    """
    return _read(Source.of_json("config", text), directory)


def _read(source: Source, directory: Path) -> ModelConfig:
    message = source.message
    for name in unsupported(message):
        raise source.error(name, "is not supported by this server")
    _settle_name(source, directory)
    if message.max_batch_size < 0:
        raise source.error("max_batch_size", f"must be 0 or more, got {message.max_batch_size}")
    backend = _settle_backend(source, directory)
    may_be_open = backend == _ONNX_BACKEND
    steps = ensemble.read_steps(source) if backend == ensemble.PLATFORM else ()
    if message.default_model_filename:
        check_model_filename(
            source, "default_model_filename", directory, message.default_model_filename
        )
    inputs = tensors.read_tensors(source, "input", may_be_open=may_be_open)
    outputs = tensors.read_tensors(source, "output", may_be_open=may_be_open)
    tensors.check_formats(source)
    groups = placement.read_instance_groups(source)
    instances = sum(group.total for group in groups)
    batching = scheduling.read_batching(source, instances=instances)
    sequences = scheduling.read_sequences(source, directory, instances=instances)
    batch_inputs = tensors.read_batch_inputs(source)
    hidden = {item.name for item in batch_inputs} | _filled_by_server(sequences)
    _check_responses(source, backend)
    if STEPPER in message.parameters:
        _check_stepped(source, instances)
    config = ModelConfig(
        name=message.name,
        backend=backend,
        platform=message.platform,
        max_batch_size=message.max_batch_size,
        inputs=inputs,
        outputs=outputs,
        version_policy=_version_policy(source),
        model_filename="" if steps else message.default_model_filename or _default_file(backend),
        message=message,
        batching=batching,
        sequences=sequences,
        steps=steps,
        decoupled=message.model_transaction_policy.decoupled,
        cache_responses=message.response_cache.enable,
        instance_groups=groups,
        warmups=read_warmups(source, directory, inputs, hidden),
        reshapes=tensors.read_reshapes(source),
        ragged=tensors.read_ragged(source),
        batch_inputs=batch_inputs,
        batch_outputs=tensors.read_batch_outputs(source),
        graph_level=placement.read_graph_level(source),
        accelerators=placement.read_accelerators(source),
        parameters={key: value.string_value for key, value in message.parameters.items()},
        labels=tensors.read_all_labels(source, directory),
    )
    _fill_defaults(message, config)
    return config


def _settle_name(source: Source, directory: Path) -> None:
    message = source.message
    if not directory.name.isprintable():
        raise source.error("name", "cannot be that of the directory, which is not printable")
    if message.name not in ("", directory.name):
        raise source.error(
            "name",
            f"must equal its directory's name {directory.name!r}, got {shown(message.name)}",
        )
    message.name = directory.name


def _settle_backend(source: Source, directory: Path) -> str:
    """What runs the model, found as Triton does; also written into the message."""
    message = source.message
    if message.platform == ensemble.PLATFORM or message.HasField("ensemble_scheduling"):
        if message.platform != ensemble.PLATFORM:
            raise source.error("ensemble_scheduling", f'needs platform: "{ensemble.PLATFORM}"')
        if message.backend:
            raise source.error("backend", "must not be given for an ensemble")
        return ensemble.PLATFORM
    if not message.backend:
        unnamed = not message.platform and message.default_model_filename in ("", _ONNX_FILE)
        if message.platform == _ONNX_PLATFORM or (unnamed and _has_onnx(directory)):
            message.backend = _ONNX_BACKEND
        elif message.platform:
            raise source.error(
                "platform", f"{shown(message.platform)} is not supported; set backend instead"
            )
        else:
            raise source.error("backend", f'is required, for example backend: "{_ONNX_BACKEND}"')
    if message.backend == ensemble.PLATFORM:
        raise source.error("backend", f'must be empty with platform: "{ensemble.PLATFORM}"')
    is_onnx = message.backend == _ONNX_BACKEND
    if message.platform and is_onnx != (message.platform == _ONNX_PLATFORM):
        raise source.error(
            "platform", f"{shown(message.platform)} is not that of backend {shown(message.backend)}"
        )
    return str(message.backend)


def _default_file(backend: str) -> str:
    return _PYTHON_FILE if backend == _PYTHON_BACKEND else _ONNX_FILE


def _has_onnx(directory: Path) -> bool:
    return any((version / _ONNX_FILE).exists() for version in version_directories(directory))


def _version_policy(source: Source) -> VersionPolicy:
    policy = source.message.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "specific":
        if not policy.specific.versions or min(policy.specific.versions) < 1:
            raise source.error("version_policy.specific.versions", "must list positive numbers")
        return VersionPolicy(specific=tuple(policy.specific.versions))
    if choice == "all":
        return VersionPolicy(latest=2**31)
    return VersionPolicy(latest=policy.latest.num_versions or 1)


def _filled_by_server(sequences: SequenceBatching | None) -> set[str]:
    if sequences is None:
        return set()
    return {item.name for item in sequences.controls} | {
        item.input_name for item in sequences.states
    }


def _check_responses(source: Source, backend: str) -> None:
    """Settings that contradict each other about how a request is answered."""
    message = source.message
    for scheduler in ("dynamic_batching", "sequence_batching"):
        if STEPPER in message.parameters:
            continue
        if message.model_transaction_policy.decoupled and message.HasField(scheduler):
            raise source.error(
                "model_transaction_policy.decoupled", f"must be false with {scheduler}"
            )
    if message.model_transaction_policy.decoupled and backend == _ONNX_BACKEND:
        raise source.error(
            "model_transaction_policy.decoupled",
            f"must be false with backend {backend!r}, which answers every request once",
        )
    if message.response_cache.enable:
        if message.model_transaction_policy.decoupled:
            raise source.error("response_cache.enable", "must be false for a decoupled model")
        if message.HasField("sequence_batching"):
            raise source.error("response_cache.enable", "must be false with sequence_batching")


def _check_stepped(source: Source, instances: int) -> None:
    """What would have no effect on a model that answers in steps, or be wrong for it."""
    message = source.message
    if instances != 1:
        raise source.error("instance_group", f"must have one instance with parameters {STEPPER!r}")
    for name in ("sequence_batching", "response_cache"):
        if message.HasField(name):
            raise source.error(name, f"is not for a model with parameters {STEPPER!r}")
    for name in ("preferred_batch_size", "max_queue_delay_microseconds"):
        if getattr(message.dynamic_batching, name):
            raise source.error(
                f"dynamic_batching.{name}",
                f"has no effect with parameters {STEPPER!r}: nobody waits for others",
            )


def _fill_defaults(message: Any, config: ModelConfig) -> None:
    """Write into the message what was left open, as Triton does before it shows a config."""
    policy = message.version_policy
    if policy.WhichOneof("policy_choice") in (None, "latest"):
        policy.latest.num_versions = config.version_policy.latest
    if config.batching is not None:
        _fill_preferred(message.dynamic_batching, message.max_batch_size)
    if config.sequences is not None:
        batching = message.sequence_batching
        batching.max_sequence_idle_microseconds = (
            batching.max_sequence_idle_microseconds or scheduling.DEFAULT_SEQUENCE_IDLE_US
        )
        if batching.WhichOneof("strategy_choice") == "oldest":
            _fill_preferred(batching.oldest, message.max_batch_size)
    if config.steps:
        return
    for memory in (
        message.optimization.input_pinned_memory,
        message.optimization.output_pinned_memory,
    ):
        memory.enable = True
    if not message.instance_group:
        message.instance_group.add(name=config.name)
    for index, (item, group) in enumerate(
        zip(message.instance_group, config.instance_groups, strict=True)
    ):
        item.name = item.name or f"{config.name}_{index}"
        item.count = group.count
    message.default_model_filename = config.model_filename


def _fill_preferred(batching: Any, max_batch_size: int) -> None:
    if not batching.preferred_batch_size and max_batch_size:
        batching.preferred_batch_size.append(max_batch_size)
