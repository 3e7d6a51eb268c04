"""Reading `config.pbtxt`: what it may say, and how it is refused."""

from __future__ import annotations

import json
import os
import string
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from serving.config import (
    Accelerator,
    Batching,
    BatchInput,
    BatchInputKind,
    BatchOutput,
    InstanceGroup,
    InstanceKind,
    ModelConfig,
    QueuePolicy,
    TimeoutAction,
)
from serving.errors import ConfigError
from serving.pbtxt import read_config, read_override
from tests.support import config, write_config

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(tmp_path: Path, text: str) -> ModelConfig:
    return read_config(write_config(tmp_path, "m", text))


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text)
    return str(refused.value)


def test_everything_common_is_read(tmp_path: Path) -> None:
    write_config(tmp_path, "m", "")
    (tmp_path / "m" / "labels.txt").write_bytes(b"cat\r\n\r\n dog \nno\xc3\xabl")
    read_back = read(
        tmp_path,
        """
    name: "m"
    platform: "onnxruntime_onnx"
    max_batch_size: 16
    version_policy { specific { versions: [3, 1, 3] } }
    input { name: "a" data_type: TYPE_FP32 dims: [3, -1] optional: true }
    input { name: "b" data_type: TYPE_STRING dims: [] }
    input { name: "d" data_type: TYPE_BF16 format: FORMAT_NCHW dims: [3, 8, 8] }
    output { name: "c" data_type: TYPE_BOOL dims: [1] label_filename: "labels.txt" }
    instance_group { kind: KIND_CPU count: 2 }
    instance_group { kind: KIND_GPU count: 2 gpus: [1, 0] name: "mine" }
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
    response_cache { enable: true }
    optimization {
      graph { level: -1 }
      input_pinned_memory { enable: false }
      execution_accelerators {
        cpu_execution_accelerator { name: "openvino" }
        gpu_execution_accelerator {
          name: "tensorrt"
          parameters { key: "precision_mode" value: "FP16" }
        }
      }
    }
    """,
    )
    assert read_back.backend == "onnxruntime"
    assert [(s.name, s.datatype, s.shape, s.optional) for s in read_back.inputs] == [
        ("a", "FP32", (-1, 3, -1), True),
        ("b", "BYTES", (-1,), False),
        ("d", "BF16", (-1, 3, 8, 8), False),
    ]
    assert [(s.name, s.datatype, s.shape) for s in read_back.outputs] == [("c", "BOOL", (-1, 1))]
    assert read_back.instance_groups == (
        InstanceGroup(InstanceKind.CPU, 2),
        InstanceGroup(InstanceKind.GPU, 2, (1, 0)),
    )
    assert read_back.instance_count == 6
    assert read_back.version_policy.choose([1, 2, 3]) == [1, 3]
    assert read_back.model_filename == "graph.onnx"
    assert read_back.labels == {"c": ("cat", "", " dog ", "noël")}
    assert read_back.task == "image_classification"
    assert read_back.cache_responses
    assert read_back.graph_level == -1
    assert read_back.accelerators == (
        Accelerator("tensorrt", {"precision_mode": "FP16"}),
        Accelerator("openvino", {}),
    )
    assert read_back.batching == Batching(
        preferred_batch_sizes=(4, 8),
        max_queue_delay_s=0.0015,
        priority_levels=2,
        default_priority_level=1,
        default_policy=QueuePolicy(max_queue_size=9, allow_timeout_override=True),
        policies={2: QueuePolicy(timeout_s=0.0005, timeout_action=TimeoutAction.DELAY)},
    )
    message: Any = read_back.message
    assert [(group.name, group.count) for group in message.instance_group] == [
        ("m_0", 2),
        ("mine", 2),
    ]


def test_defaults_are_shown_and_read_back_as_they_are(tmp_path: Path) -> None:
    message: Any = read(tmp_path, config()).message
    assert message.name == "m"
    assert message.version_policy.latest.num_versions == 1
    assert [(group.name, group.count) for group in message.instance_group] == [("m", 1)]
    assert message.default_model_filename == "model.onnx"
    assert list(message.dynamic_batching.preferred_batch_size) == [64]
    assert read(tmp_path, text_format.MessageToString(message)).message == message


def test_reshapes_and_ragged_batches(tmp_path: Path) -> None:
    read_back = read(
        tmp_path,
        """
    backend: "onnxruntime"
    max_batch_size: 8
    input { name: "flat" data_type: TYPE_FP32 dims: [2, 4, -1, 6]
            reshape { shape: [8, -1, 1, 6] } }
    input { name: "scalar" data_type: TYPE_FP32 dims: [1] reshape { } }
    input { name: "ragged" data_type: TYPE_FP32 dims: [-1] allow_ragged_batch: true }
    output { name: "out" data_type: TYPE_FP32 dims: [] reshape { shape: [1] } }
    output { name: "pieces" data_type: TYPE_FP32 dims: [-1] }
    batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: ["ends", "stops"]
                  data_type: TYPE_INT32 source_input: "ragged" }
    batch_output { target_name: "pieces" source_input: "ragged" }
    """,
    )
    assert read_back.reshapes == {"flat": (-1, 8, -1, 1, 6), "scalar": (-1,), "out": (-1, 1)}
    assert [spec.shape for spec in read_back.inputs] == [(-1, 2, 4, -1, 6), (-1, 1), (-1, -1)]
    assert read_back.outputs[0].shape == (-1,)
    assert read_back.ragged == {"ragged"}
    kind = BatchInputKind.ACCUMULATED_ELEMENT_COUNT
    assert read_back.batch_inputs == (
        BatchInput("ends", kind, "INT32", "ragged"),
        BatchInput("stops", kind, "INT32", "ragged"),
    )
    assert read_back.batch_outputs == (BatchOutput("pieces", "ragged"),)


@pytest.mark.parametrize(
    ("policy", "served"),
    [("", [3]), ("latest { num_versions: 2 }", [2, 3]), ("all { }", [1, 2, 3])],
)
def test_version_policies(tmp_path: Path, policy: str, served: list[int]) -> None:
    text = config(extra=f"version_policy {{ {policy} }}" if policy else "")
    assert read(tmp_path, text).version_policy.choose([3, 1, 2]) == served


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("optimization { eager_batching: true }", "6: optimization.eager_batching is not supp"),
        ("optimization { priority: PRIORITY_MAX }", "6: optimization.priority is not supported"),
        ("optimization { cuda { graphs: true } }", "6: optimization.cuda is not supported"),
        ("optimization { graph { level: 3 } }", "6: optimization.graph.level must be one of"),
        (
            'optimization { execution_accelerators { gpu_execution_accelerator { name: "x" } } }',
            "gpu_execution_accelerator[0].name must be one of ['tensorrt', 'cuda'], got 'x'",
        ),
        ("dynamic_batching { preferred_batch_size: [65] }", "preferred_batch_size must lie"),
        ("dynamic_batching { priority_levels: 101 }", "priority_levels must be at most 100"),
        ("dynamic_batching { priority_levels: 2 }", "default_priority_level must lie between 1"),
        (
            "dynamic_batching { priority_queue_policy { key: 3 } }",
            "6: dynamic_batching.priority_queue_policy[3] must lie between 1 and",
        ),
        (
            "dynamic_batching { priority_levels: 1 default_priority_level: 1\n"
            "priority_queue_policy { key: 1 value {\ntimeout_action: 7 } } }",
            "8: dynamic_batching.priority_queue_policy[1].timeout_action has the unknown value 7",
        ),
        (
            "dynamic_batching { preserve_ordering: true } instance_group { count: 2 }",
            "6: dynamic_batching.preserve_ordering must be false with 2 instances",
        ),
        (
            "dynamic_batching { preserve_ordering: true priority_levels: 2"
            " default_priority_level: 1 }",
            "preserve_ordering must be false with 2 priority_levels",
        ),
        (
            "dynamic_batching { preserve_ordering: true default_queue_policy {"
            " timeout_action: DELAY default_timeout_microseconds: 1 } }",
            "preserve_ordering must be false where timeout_action is DELAY",
        ),
        ("instance_group { kind: KIND_MODEL }", "6: instance_group[0].kind KIND_MODEL is not"),
        ("instance_group { kind: KIND_CPU gpus: 0 }", "6: instance_group[0].gpus must not be"),
        ("instance_group { gpus: [0, 0] }", "6: instance_group[0].gpus must be different"),
        ("instance_group { }\ninstance_group { passive: true }", "7: instance_group[1].passive is"),
        ("instance_group { count: 1025 }", "6: instance_group must make at most 1024 instances"),
        ("instance_group { rate_limiter { } }", "6: instance_group[0].rate_limiter is not"),
        ("version_policy { specific { } }", "6: version_policy.specific.versions must list"),
        ('default_model_filename: "../m"', "6: default_model_filename must stay inside"),
        ('name: "other"', "6: name must equal its directory's name 'm', got 'other'"),
        ('runtime: "x"', "6: runtime is not supported"),
        ('cc_model_filenames { key: "x" value: "y" }', "6: cc_model_filenames is not supported"),
        ('metric_tags { key: "x" value: "y" }', "6: metric_tags is not supported"),
        ("max_batch_size: 8", "6: Message type"),
        ("input { dims: [1] }", "6: input[1].name is required"),
        ('input { name: "x" dims: [1] }', "6: input[1].name 'x' is declared twice"),
        (
            'input { name: "z" data_type: TYPE_FP32\ndims: [0] }',
            "7: input[1].dims must be 1 or more, or -1, got [0]",
        ),
        ('input { name: "z" data_type: 77 }', "input[1].data_type has the unknown value 77"),
        ('input { name: "z" is_shape_tensor: true }', "6: input[1].is_shape_tensor is not"),
        (
            'input { name: "z" format: FORMAT_NHWC dims: [3] }',
            "6: input[1].format FORMAT_NHWC needs 3 dims, got [3]",
        ),
        (
            'input { name: "z" dims: [2, -1]\nreshape { shape: [-1, 2] } }',
            "7: input[1].reshape.shape must have the elements of dims [2, -1]",
        ),
        ('output { name: "x" dims: [4] reshape { shape: [2, 2] } }', "'x' must have the same"),
        (
            'batch_input { target_name: "n" data_type: TYPE_INT32 source_input: "q" }',
            "6: batch_input[0].source_input 'q' is no input",
        ),
        (
            'batch_input { target_name: "x" data_type: TYPE_INT32 source_input: "x" }',
            "6: batch_input[0].target_name 'x' is declared twice",
        ),
        (
            'batch_input { target_name: "n" data_type: TYPE_INT64 source_input: "x" }',
            "6: batch_input[0].data_type must be TYPE_INT32 or TYPE_FP32, got TYPE_INT64",
        ),
        (
            'batch_output { target_name: "n" source_input: "x" }',
            "6: batch_output[0].target_name 'n' is no output",
        ),
        ("model_transaction_policy { decoupled: true }", "decoupled must be false with backend"),
        (
            "response_cache { enable: true } sequence_batching { }",
            "6: response_cache.enable must be false with sequence_batching",
        ),
        ("dynamic_batching { } sequence_batching { }", "scheduling_choice"),
        ('platform: "tensorrt_plan"', "'tensorrt_plan' is not that of backend 'onnxruntime'"),
        ("{", "6: '{': Expected identifier"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(tmp_path: Path, line: str, problem: str) -> None:
    text = refusal(tmp_path, config(extra=line))
    assert problem in text
    assert text.startswith(f"{tmp_path}/m/config.pbtxt:")
    assert "\n" not in text


@pytest.mark.parametrize("scheduler", ["dynamic_batching", "sequence_batching"])
def test_a_decoupled_model_has_no_scheduler(tmp_path: Path, scheduler: str) -> None:
    decoupled = "model_transaction_policy { decoupled: true }"
    assert read(tmp_path, config(backend="fake", extra=decoupled)).decoupled
    text = config(backend="fake", extra=f"{decoupled} {scheduler} {{ }}")
    assert f"decoupled must be false with {scheduler}" in refusal(tmp_path, text)


def test_a_size_below_zero(tmp_path: Path) -> None:
    text = refusal(tmp_path, config(max_batch_size=-1))
    assert ":3: max_batch_size must be 0 or more, got -1" in text


def test_lines_in_all_the_ways_to_write_a_field(tmp_path: Path) -> None:
    text = """
# backend: "comment" {
backend: 'onnx\\'run{time'  # input [
input: [
  { name: "{" dims: 1, dims: 2 },
  <
    name: "b";
    dims: [
      1
    ]
    dims: -2
  >
]
parameters { key: "a.b" value { string_value: "x" } }
"""
    assert ":8: input[1].dims must be" in refusal(
        tmp_path, text.replace("onnx\\'run{time", "onnxruntime")
    )
    assert ":5: input[0].data_type is required" in refusal(tmp_path, text)


def test_the_line_of_an_entry_without_a_key(tmp_path: Path) -> None:
    text = config(
        backend="fake",
        extra="""
model_warmup {
  inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 zero_data: true } }
  inputs {
    value { data_type: TYPE_FP32 dims: 4 zero_data: true }
  }
}
""",
    )
    assert ":10: model_warmup[0].inputs[''] is no input of the model" in refusal(tmp_path, text)


def test_a_backend_is_required(tmp_path: Path) -> None:
    assert "backend is required" in refusal(tmp_path, "max_batch_size: 1")


def test_only_some_backends_can_tell_their_tensors(tmp_path: Path) -> None:
    text = 'backend: "onnxruntime" input { name: "x" } output { name: "y" }'
    read_back = read(tmp_path, text)
    assert [(spec.datatype, spec.shape) for spec in read_back.inputs] == [("", ())]
    assert read(tmp_path, 'backend: "onnxruntime"').inputs == ()
    assert "input is required" in refusal(tmp_path, 'backend: "fake"')
    assert "input[0].data_type is required" in refusal(tmp_path, text.replace("onnxruntime", "p"))
    text = text.replace("onnxruntime", "p").replace('"x"', '"x" data_type: TYPE_FP32')
    assert "input[0].dims is required" in refusal(tmp_path, text)


def test_a_model_without_a_config_is_what_its_graph_says(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    with pytest.raises(ConfigError, match=r"m/config.pbtxt: no such file, and no version"):
        read_config(directory)
    (directory / "007").mkdir()
    (directory / "007" / "model.onnx").touch()
    with pytest.raises(ConfigError, match="no such file"):
        read_config(directory)
    (directory / "7").mkdir()
    (directory / "7" / "model.onnx").touch()
    read_back = read_config(directory)
    assert (read_back.name, read_back.backend) == ("m", "onnxruntime")
    assert (read_back.inputs, read_back.outputs) == ((), ())
    assert read(tmp_path, "max_batch_size: 2").backend == "onnxruntime"


# What a load call sends.


def test_an_override_may_be_written_in_every_way_that_protobuf_allows(tmp_path: Path) -> None:
    directory = write_config(tmp_path, "m", "")
    snake = read_override(
        '{"backend": "fake", "max_batch_size": "16",'
        ' "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4", -1]}],'
        ' "output": [{"name": "y", "data_type": 11, "dims": [4]}],'
        ' "dynamic_batching": {"max_queue_delay_microseconds": "5"}}',
        directory,
    )
    camel = read_override(
        '{"backend": "fake", "maxBatchSize": 16,'
        ' "input": [{"name": "x", "dataType": "TYPE_FP32", "dims": [4, -1]}],'
        ' "output": [{"name": "y", "dataType": "TYPE_FP32", "dims": [4]}],'
        ' "dynamicBatching": {"maxQueueDelayMicroseconds": 5}}',
        directory,
    )
    assert snake == camel
    assert snake.inputs[0].shape == (-1, 4, -1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "config: must be a JSON object"),
        ("[]", "config: must be a JSON object"),
        ("{", "config: cannot be parsed: Failed to load JSON"),
        ('{"max_batch_size": 1.5}', "config: cannot be parsed: Failed to parse max_batch_size"),
        ('{"batch_size": 1}', 'has no field named "batch_size"'),
        ('{"backend": "fake"}', "config: input is required: the model declares none"),
        ('{"backend": "\\ud800"}', "config: cannot be parsed"),
        ('{"name": "other"}', "config: name must equal its directory's name 'm'"),
        ('{"max_batch_size": 1, "max_batch_size": 2}', "config: cannot be parsed"),
        ('{"parameters": {"a": {"string_value": {}}}}', "config: cannot be parsed"),
        ('{"runtime": "x"}', "config: runtime is not supported by this server"),
        ('{"a":' * 20_000, "config: is nested deeper than 32 levels"),
        ('{"input":' + "[" * 500 + "]" * 500 + "}", "config: is nested deeper than"),
        ('{"name": "\\"[[' + '\\"[' * 300_000, "config: cannot be parsed: Failed to load JSON"),
        ("[" * 1_100_000, "config: is longer than"),
        ('{"max_batch_size": ' + "9" * 5000 + "}", "config: cannot be parsed"),
        (
            '{"backend": "onnxruntime", "output":'
            ' [{"name": "y", "dims": [1], "label_filename": "none.txt"}]}',
            "config: output[0].label_filename cannot be read: 'none.txt': No such file",
        ),
    ],
)
def test_a_bad_override_names_the_field_and_no_path(
    tmp_path: Path, text: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        read_override(text, write_config(tmp_path, "m", ""))
    assert problem in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


_NAMES = [field.name for field in model_config_pb2.ModelConfig.DESCRIPTOR.fields]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*_NAMES, "step", "state", "dims", "shape", "a"]), inner, max_size=3
        )
    ),
)


@PATIENT
@given(st.dictionaries(st.sampled_from(_NAMES), _JSON, max_size=4))
def test_no_override_does_more_than_be_refused(content: dict[str, Any]) -> None:
    with suppress(ConfigError):
        read_override(json.dumps(content), Path(__file__).parent)


# What a random valid config says is read the same from text and from JSON, and again from the
# message that callers are shown.

_DIMS = st.lists(st.sampled_from([-1, 1, 2, 3]), min_size=1, max_size=3)
_TYPES = st.sampled_from(["TYPE_FP32", "TYPE_STRING", "TYPE_INT64", "TYPE_BF16"])
_WORDS = st.text(min_size=1, max_size=6)


@st.composite
def _messages(draw: st.DrawFn) -> Any:
    batched = draw(st.booleans())
    names = draw(st.lists(_WORDS, min_size=2, max_size=5, unique=True))
    split = draw(st.integers(1, len(names) - 1))
    message = model_config_pb2.ModelConfig(
        backend="fake", max_batch_size=draw(st.integers(1, 64)) if batched else 0
    )
    for position, name in enumerate(names):
        group = message.input if position < split else message.output
        dims = draw(_DIMS)
        item = group.add(name=name, data_type=draw(_TYPES), dims=dims)
        if draw(st.booleans()):
            item.reshape.shape.extend([*dims, 1])
        if position < split:
            item.optional = draw(st.booleans())
            item.allow_ragged_batch = batched and draw(st.booleans())
    for key, value in draw(st.dictionaries(_WORDS, _WORDS, max_size=3)).items():
        message.parameters[key].string_value = value
    for _ in range(draw(st.integers(0, 2))):
        message.instance_group.add(
            count=draw(st.integers(0, 3)), kind="KIND_GPU", gpus=draw(st.sets(st.integers(0, 7)))
        )
    if batched and draw(st.booleans()):
        batching = message.dynamic_batching
        batching.max_queue_delay_microseconds = draw(st.integers(0, 10**12))
        batching.default_queue_policy.max_queue_size = draw(st.integers(0, 2**32 - 1))
    elif draw(st.booleans()):
        batching = message.sequence_batching
        batching.direct.minimum_slot_utilization = draw(st.floats(0, 1, width=32))
        batching.state.add(
            input_name="".join(names) + "i", output_name="o", data_type="TYPE_FP32", dims=[2]
        )
    return message


@PATIENT
@given(message=_messages())
def test_text_and_json_and_what_is_shown_say_the_same(
    message: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    repository = tmp_path_factory.mktemp("repository", numbered=True)
    text = text_format.MessageToString(message)
    from_text = read(repository, text)
    from_json = read_override(json_format.MessageToJson(message), repository / "m")
    assert from_text == from_json
    shown = read(repository, text_format.MessageToString(from_text.message))
    assert shown.message == from_text.message
    assert (shown.inputs, shown.outputs, shown.reshapes, shown.sequences, shown.parameters) == (
        from_text.inputs,
        from_text.outputs,
        from_text.reshapes,
        from_text.sequences,
        from_text.parameters,
    )
    assert [spec.shape[-1] for spec in from_text.inputs] == [t.dims[-1] for t in message.input]


# Files that a config names.


def labelled(filename: str) -> str:
    return (
        'backend: "onnxruntime" output { name: "y" dims: [1] label_filename: '
        f"{json.dumps(filename)} }}"
    )


def test_a_link_must_not_lead_out_of_the_model_but_may_lead_into_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    real = write_config(tmp_path / "elsewhere", "m", labelled("labels.txt"))
    (real / "deep").mkdir()
    (real / "deep" / "names").write_text("a\nb\n")
    (tmp_path / "m").symlink_to(real)
    (real / "labels.txt").symlink_to("deep/names")
    assert read_config(tmp_path / "m").labels == {"y": ("a", "b")}
    (real / "labels.txt").unlink()
    (real / "labels.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match=r":1: output\[0\].label_filename must stay inside"):
        read_config(tmp_path / "m")
    (real / "labels.txt").unlink()
    (real / "labels.txt").symlink_to("labels.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "m")
    (real / "labels.txt").unlink()
    os.mkfifo(real / "labels.txt")
    with pytest.raises(ConfigError, match="must be a file"):
        read_config(tmp_path / "m")


def test_a_model_file_must_not_lead_out_either(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    directory = write_config(tmp_path, "m", config(extra='default_model_filename: "deep/g.onnx"'))
    (directory / "1" / "deep").mkdir(parents=True)
    assert read_config(directory).model_filename == "deep/g.onnx"
    (directory / "shared.onnx").touch()
    (directory / "1" / "deep" / "g.onnx").symlink_to(directory / "shared.onnx")
    assert read_config(directory).model_filename == "deep/g.onnx"
    (directory / "1" / "deep" / "g.onnx").unlink()
    (directory / "1" / "deep" / "g.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match="6: default_model_filename must stay inside"):
        read_config(directory)


def test_labels_that_are_no_labels(tmp_path: Path) -> None:
    directory = write_config(tmp_path, "m", labelled("l"))
    (directory / "l").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_config(directory)
    (directory / "l").write_bytes(b"x" * 10_000_001)
    with pytest.raises(ConfigError, match="is longer than 10000000 bytes"):
        read_config(directory)


_PARTS = st.sampled_from(["..", ".", "secret", "inside", "link", "", "/", "~", "a" * 300, "\0"])
_FILENAMES = st.lists(_PARTS, min_size=1, max_size=5).map("/".join) | st.text(
    alphabet=string.printable + "\0é", min_size=1, max_size=20
)


@pytest.mark.parametrize("kind", ["labels", "warmup", "state", "graph"])
def test_no_filename_escapes(tmp_path: Path, kind: str) -> None:
    """The secret is the only file that has content, and it lies beside the model directory."""
    (tmp_path / "secret").write_text("secret")
    directory = write_config(tmp_path, "m", "")
    for folder in (directory, *(directory / name for name in ("warmup", "initial_state", "1"))):
        folder.mkdir(exist_ok=True)
        (folder / "inside").touch()
        (folder / "link").symlink_to(tmp_path)

    @PATIENT
    @given(_FILENAMES)
    def attempt(filename: str) -> None:
        message = model_config_pb2.ModelConfig(backend="onnxruntime")
        if kind == "labels":
            message.output.add(name="y", label_filename=filename)
        elif kind == "graph":
            message.default_model_filename = filename
        elif kind == "warmup":
            item = message.model_warmup.add().inputs["x"]
            item.MergeFrom(type(item)(data_type="TYPE_INT8", dims=[1], input_data_file=filename))
        else:
            state = message.sequence_batching.state.add(
                input_name="i", output_name="o", data_type="TYPE_INT8", dims=[1]
            )
            state.initial_state.add(name="n", data_type="TYPE_INT8", dims=[1], data_file=filename)
        try:
            found = read_override(json_format.MessageToJson(message), directory)
        except ConfigError:
            return
        if kind == "graph":
            path = directory / "1" / found.model_filename
            assert path.resolve().is_relative_to(directory)
        assert not any(found.labels.values())
        assert not found.warmups
        assert found.sequences is None

    attempt()
