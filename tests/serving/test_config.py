from __future__ import annotations

from pathlib import Path

import pytest

from serving.config import Batching, InstanceKind, QueuePolicy, TimeoutAction
from serving.errors import ConfigError
from serving.pbtxt import read_config
from tests.support import config, write_config


def read(tmp_path: Path, text: str) -> object:
    return read_config(write_config(tmp_path, "m", text) / "config.pbtxt")


def test_everything_that_is_honoured_is_read(tmp_path: Path) -> None:
    text = """
    name: "m"
    platform: "onnxruntime_onnx"
    max_batch_size: 16
    version_policy { specific { versions: [3, 1, 3] } }
    input { name: "a" data_type: TYPE_FP32 dims: [3, -1] }
    input { name: "b" data_type: TYPE_STRING dims: [] }
    output { name: "c" data_type: TYPE_BOOL dims: [1] label_filename: "labels.txt" }
    instance_group { kind: KIND_CPU count: 2 }
    default_model_filename: "graph.onnx"
    dynamic_batching {
      preferred_batch_size: [8, 4]
      max_queue_delay_microseconds: 1500
      priority_levels: 2
      default_priority_level: 1
      default_queue_policy { max_queue_size: 9 allow_timeout_override: true }
      priority_queue_policy {
        key: 2
        value { timeout_action: DELAY default_timeout_microseconds: 500 }
      }
    }
    parameters { key: "task" value { string_value: "image_classification" } }
    """
    read_back = read_config(write_config(tmp_path, "m", text) / "config.pbtxt")
    assert read_back.backend == "onnxruntime"
    assert [(s.name, s.datatype, s.shape) for s in read_back.inputs] == [
        ("a", "FP32", (-1, 3, -1)),
        ("b", "BYTES", (-1,)),
    ]
    assert [(s.name, s.datatype, s.shape) for s in read_back.outputs] == [("c", "BOOL", (-1, 1))]
    assert (read_back.instance_kind, read_back.instance_count) == (InstanceKind.CPU, 2)
    assert read_back.version_policy.choose([1, 2, 3]) == [1, 3]
    assert read_back.model_filename == "graph.onnx"
    assert read_back.label_files == {"c": "labels.txt"}
    assert read_back.task == "image_classification"
    assert read_back.batching == Batching(
        preferred_batch_sizes=(4, 8),
        max_queue_delay_s=0.0015,
        priority_levels=2,
        default_priority_level=1,
        default_policy=QueuePolicy(max_queue_size=9, allow_timeout_override=True),
        policies={2: QueuePolicy(timeout_s=0.0005, timeout_action=TimeoutAction.DELAY)},
    )


@pytest.mark.parametrize(
    ("policy", "served"),
    [("", [3]), ("latest { num_versions: 2 }", [2, 3]), ("all { }", [1, 2, 3])],
)
def test_version_policies(tmp_path: Path, policy: str, served: list[int]) -> None:
    text = config(extra=f"version_policy {{ {policy} }}" if policy else "")
    directory = write_config(tmp_path, "m", text)
    assert read_config(directory / "config.pbtxt").version_policy.choose([3, 1, 2]) == served


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("optimization { }", "6: optimization is not supported"),
        ("dynamic_batching { preserve_ordering: true }", "6: dynamic_batching.preserve_ordering"),
        ("dynamic_batching { preferred_batch_size: [65] }", "preferred_batch_size must lie"),
        ("dynamic_batching { priority_levels: 101 }", "priority_levels must be at most 100"),
        ("dynamic_batching { priority_levels: 2 }", "default_priority_level must lie between 1"),
        ("instance_group { gpus: [0] }", "6: instance_group.gpus is not supported"),
        ("instance_group { } instance_group { }", "6: instance_group may be given once"),
        ("version_policy { specific { } }", "6: version_policy.specific.versions must list"),
        ('default_model_filename: "../m"', "6: default_model_filename must stay inside"),
        ('name: "other"', "6: name must equal its directory's name 'm', got 'other'"),
        ("max_batch_size: 8", "6: Message type"),
        ("input { dims: [1] }", "input[1].name is required"),
        ('input { name: "x" dims: [1] }', "input[1].name 'x' is declared twice"),
        ('input { name: "z" dims: [1] }', "input[1].data_type TYPE_INVALID is not supported"),
        ('input { name: "z" data_type: TYPE_BF16 dims: [1] }', "TYPE_BF16 is not supported"),
        ("{", "6: '{': Expected identifier"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read(tmp_path, config(extra=line))
    assert problem in str(refusal.value)
    assert str(refusal.value).startswith(f"{tmp_path}/m/config.pbtxt:")


def test_a_size_below_zero(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r":3: max_batch_size must be 0 or more, got -1"):
        read(tmp_path, config(max_batch_size=-1))


def test_a_backend_is_required(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="backend is required"):
        read(tmp_path, "max_batch_size: 1")
