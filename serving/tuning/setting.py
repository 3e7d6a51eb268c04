"""What is tuned: how many instances, how many threads, which batches, and how long they wait."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving.config import STEPPER, ModelConfig
from serving.errors import ConfigError, ModelLoadError
from serving.pbtxt import CONFIG_FILE
from serving.pbtxt.edit import set_field, set_parameter

THREADS = "intra_op_thread_count"
DELAYS_US = (0, 100, 500, 2000)


@dataclass(frozen=True)
class Setting:
    """One choice of the tuned fields of a `config.pbtxt`."""

    instances: int
    threads: int
    """0 lets ONNX Runtime choose."""
    batches: tuple[int, ...] | None
    """`preferred_batch_size`; empty takes what waits, None is a model without dynamic batching."""
    delay_us: int = 0

    def __str__(self) -> str:
        text = f"{self.instances} instance{'s' * (self.instances > 1)}, {self.thread_text} thread"
        text += "s" * (self.threads != 1)
        if self.batches is not None:
            text += f", batches {self.batch_text}, delay {self.delay_us} µs"
        return text

    @property
    def thread_text(self) -> str:
        return str(self.threads) if self.threads else "auto"

    @property
    def batch_text(self) -> str:
        if self.batches is None:
            return "none"
        return ",".join(map(str, self.batches)) or "any"

    def cost(self, cores: int) -> tuple[int, int, int]:
        """The less, the more is left for others. A delay that only may be spent costs nothing."""
        delay_us = self.delay_us if self.batches else 0
        return self.instances * (self.threads or cores), self.instances, delay_us


@dataclass(frozen=True)
class Axes:
    """The values that are tried: of instances with threads, of batches, of delays."""

    workers: tuple[tuple[int, int], ...]
    batches: tuple[tuple[int, ...] | None, ...]
    delays_us: tuple[int, ...]

    @classmethod
    def of(
        cls, today: Setting, *, cores: int, max_batch_size: int, concurrency: int, bound_ms: float
    ) -> Axes:
        """For a machine, a model, the most requests at a time, and a bound of their latency."""
        counts = sorted({*_powers_of_two(cores), cores})
        workers = {(n, t) for n in counts for t in counts if n * t <= cores}
        workers |= {(cores + 1, 1), (today.instances, today.threads)}
        batches: list[tuple[int, ...] | None] = [today.batches]
        delays = {today.delay_us}
        if max_batch_size > 1:
            sizes = _powers_of_two(min(concurrency, max_batch_size - 1))
            batches += [(size,) for size in sizes] + [()]
            delays |= {delay for delay in DELAYS_US if delay < bound_ms * 1000}
        # What takes all that waits comes last, after the largest size.
        ordered = sorted(set(batches), key=lambda sizes: (sizes == (), sizes or ()))
        return cls(tuple(sorted(workers)), tuple(ordered), tuple(sorted(delays)))

    @property
    def expected_trials(self) -> int:
        """Of a search: each axis, and some neighbours."""
        return len(self.workers) + len(self.batches) + len(self.delays_us) + 4

    def along(self, setting: Setting, axis: str, *, near: bool) -> list[Setting]:
        """The settings that differ from one on one axis; with `near` by one place on it."""
        values: Sequence[Any] = getattr(self, axis)
        current = {
            "workers": (setting.instances, setting.threads),
            "batches": setting.batches,
            "delays_us": setting.delay_us,
        }[axis]
        place = values.index(current)
        if near:
            values = values[max(0, place - 1) : place + 2]
        found = []
        for value in values:
            if axis == "workers":
                found.append(replace(setting, instances=value[0], threads=value[1]))
            elif axis == "batches":
                delay_us = 0 if value is None else setting.delay_us
                found.append(replace(setting, batches=value, delay_us=delay_us))
            elif setting.batches is not None:
                found.append(replace(setting, delay_us=value))
        return [each for each in found if each != setting]


def cores() -> int:
    """Those that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def check_tunable(config: ModelConfig) -> None:
    """Raises `ModelLoadError`, saying why, for a model that is not one graph of ONNX Runtime."""
    name = config.name
    if config.steps:
        problem = "is an ensemble, which has no settings of its own; tune the models it is made of"
    elif STEPPER in config.parameters:
        problem = "answers in steps, and its batches are not set but follow from who is there"
    elif config.backend != "onnxruntime":
        problem = f"has backend {config.backend!r}; only one graph of onnxruntime can be tuned"
    elif config.sequences is not None:
        problem = "has sequence_batching; only requests that stand alone can be measured"
    elif len(config.instance_groups) > 1:
        problem = f"has {len(config.instance_groups)} instance_groups; one count can be tuned"
    else:
        return
    raise ModelLoadError(f"model {name!r} {problem}")


def parse(text: str) -> Any:
    """The message of a `config.pbtxt` that has been read before, as it is written there."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def setting_of(message: Any) -> Setting:
    """What a config says today. It must be one that `check_tunable` lets pass."""
    groups, batching = message.instance_group, message.dynamic_batching
    # Asking a map for what it does not have would put it in.
    threads = message.parameters[THREADS].string_value if THREADS in message.parameters else ""
    batches = tuple(batching.preferred_batch_size)
    return Setting(
        instances=(groups[0].count if groups else 0) or 1,
        threads=int(threads) if threads.isdecimal() else 0,
        batches=batches if message.HasField("dynamic_batching") else None,
        delay_us=batching.max_queue_delay_microseconds,
    )


def written(text: str, setting: Setting, directory: Path) -> str:
    """The text of a config with a setting put in, and nothing else changed.

    Raises `ConfigError` if a text cannot be made that says just that.
    """
    today, expected = setting_of(parse(text)), parse(text)
    new = text
    if setting.instances != today.instances:
        new = set_field(new, "instance_group", "count", str(setting.instances))
        group = expected.instance_group[0] if expected.instance_group else None
        (group or expected.instance_group.add()).count = setting.instances
    if setting.threads != today.threads:
        new = set_parameter(new, THREADS, str(setting.threads))
        expected.parameters[THREADS].string_value = str(setting.threads)
    if setting.batches is not None:
        batching = expected.dynamic_batching
        batching.SetInParent()
        sizes = setting.batches
        if today.batches is None or sizes != today.batches:
            value = f"[ {', '.join(map(str, sizes))} ]" if sizes else ""
            new = set_field(new, "dynamic_batching", "preferred_batch_size", value)
            batching.preferred_batch_size[:] = sizes
        if setting.delay_us != today.delay_us:
            value = str(setting.delay_us)
            new = set_field(new, "dynamic_batching", "max_queue_delay_microseconds", value)
            batching.max_queue_delay_microseconds = setting.delay_us
    try:
        agrees = parse(new) == expected
    except text_format.ParseError:
        agrees = False
    if not agrees:
        raise ConfigError(
            f"{directory / CONFIG_FILE}: is written in a way that cannot be edited; put in yourself"
            f" what is best: {setting}"
        )
    return new


def _powers_of_two(most: int) -> list[int]:
    return [1 << exponent for exponent in range(most.bit_length())]
