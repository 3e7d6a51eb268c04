"""Filling in a configuration from a graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.completion import complete
from serving.config import Batching, ModelConfig
from serving.errors import ConfigError
from serving.pbtxt import read_config
from serving.types import NUMPY_TYPES, TensorSpec
from tests.support import config, write_config

ROWS_IN = [TensorSpec("x", "FP32", (-1, 4)), TensorSpec("bias", "FP32", (-1, 4), optional=True)]
ROWS_OUT = [TensorSpec("y", "BYTES", (-1,))]


def read(tmp_path: Path, text: str) -> ModelConfig:
    return read_config(write_config(tmp_path, "m", text))


def completed(
    tmp_path: Path,
    text: str,
    inputs: Sequence[TensorSpec] = ROWS_IN,
    outputs: Sequence[TensorSpec] = ROWS_OUT,
) -> ModelConfig:
    found = complete(read(tmp_path, text), inputs, outputs)
    # What callers are shown is a config that says the same without the graph.
    again = read(tmp_path, text_format.MessageToString(found.message))
    assert again.message == found.message
    assert (again.inputs, again.outputs, again.reshapes, again.max_batch_size) == (
        found.inputs,
        found.outputs,
        found.reshapes,
        found.max_batch_size,
    )
    return found


def test_a_config_that_says_nothing_batches_if_the_graph_can(tmp_path: Path) -> None:
    before = read(tmp_path, 'backend: "onnxruntime"')
    message = before.message.SerializeToString()
    found = complete(before, ROWS_IN, ROWS_OUT)
    assert before.message.SerializeToString() == message
    assert found == completed(tmp_path, 'backend: "onnxruntime"')
    assert (found.max_batch_size, found.batching) == (4, Batching())
    assert found.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert found.outputs == (TensorSpec("y", "BYTES", (-1, 1)),)
    assert found.reshapes == {"y": (-1,)}
    shown: Any = found.message
    assert list(shown.input[0].dims) == [4]
    assert list(shown.output[0].dims) == [1]
    assert shown.output[0].HasField("reshape")
    assert list(shown.dynamic_batching.preferred_batch_size) == [4]


def test_weights_that_a_graph_lists_as_inputs_do_not_show(tmp_path: Path) -> None:
    graph = [TensorSpec("x", "FP32", (-1, 4)), TensorSpec("w", "FP32", (4, 4), optional=True)]
    found = completed(tmp_path, 'backend: "onnxruntime"', graph)
    assert (found.max_batch_size, found.inputs) == (4, (graph[0],))
    declared = 'backend: "onnxruntime" input { name: "w" data_type: TYPE_FP32 optional: true }'
    assert completed(tmp_path, declared, graph).inputs == (graph[1],)


def test_a_graph_that_cannot_batch(tmp_path: Path) -> None:
    fixed = [TensorSpec("x", "FP32", (1, 4))]
    found = completed(tmp_path, 'backend: "onnxruntime"', fixed, [TensorSpec("y", "FP32", ())])
    assert (found.max_batch_size, found.batching) == (0, None)
    assert found.inputs == tuple(fixed)
    assert found.outputs == (TensorSpec("y", "FP32", (1,)),)
    assert found.reshapes == {"y": ()}


def test_a_batch_size_that_is_given(tmp_path: Path) -> None:
    found = completed(tmp_path, 'backend: "onnxruntime" max_batch_size: 8')
    assert (found.max_batch_size, found.batching) == (8, Batching())
    found = completed(tmp_path, 'backend: "onnxruntime" max_batch_size: 1')
    assert (found.max_batch_size, found.batching) == (1, None)
    with pytest.raises(ConfigError, match=r"'m': input 'x' has the shape \[1, 4\] in the graph,"):
        completed(
            tmp_path,
            'backend: "onnxruntime" max_batch_size: 8',
            [TensorSpec("x", "FP32", (1, 4))],
        )


def test_one_side_may_be_missing(tmp_path: Path) -> None:
    text = 'backend: "onnxruntime" input { name: "x" data_type: TYPE_FP32 dims: [-1, 4] }'
    found = completed(tmp_path, text)
    assert found.max_batch_size == 0
    assert found.inputs == (ROWS_IN[0],)
    assert found.outputs == (TensorSpec("y", "BYTES", (-1,)),)


def test_what_the_server_fills_and_reads_is_not_declared(tmp_path: Path) -> None:
    text = """
    backend: "onnxruntime"
    max_batch_size: 2
    sequence_batching {
      control_input { name: "start" control { int32_false_true: [0, 1] } }
      state { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [1] }
    }
    """
    shape = (-1, 1)
    found = completed(
        tmp_path,
        text,
        [*ROWS_IN, TensorSpec("start", "INT32", shape), TensorSpec("before", "FP32", shape)],
        [*ROWS_OUT, TensorSpec("after", "FP32", shape)],
    )
    assert [spec.name for spec in found.inputs] == ["x"]
    assert [spec.name for spec in found.outputs] == ["y"]
    assert found.batching is None
    assert found.sequences is not None


def test_tensors_that_are_half_declared(tmp_path: Path) -> None:
    text = """
    backend: "onnxruntime"
    max_batch_size: 2
    input { name: "x" }
    input { name: "bias" data_type: TYPE_FP32 optional: true }
    output { name: "y" dims: [] }
    """
    found = completed(tmp_path, text)
    assert found.inputs == tuple(ROWS_IN)
    assert found.outputs == tuple(ROWS_OUT)
    assert found.batching is None
    with pytest.raises(ConfigError, match="input 'q' needs data_type and dims, for there is no"):
        completed(tmp_path, text.replace('"x"', '"q"'))


def test_nothing_is_done_where_nothing_is_open(tmp_path: Path) -> None:
    for text in (config(), config(dims="[]"), config(backend="fake", max_batch_size=0, extra="")):
        before = read(tmp_path, text)
        specs = [TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "FP32", (-1,))]
        assert complete(before, specs, specs) is before


def test_warm_up_is_checked_when_the_inputs_are_known(tmp_path: Path) -> None:
    text = """
    backend: "onnxruntime"
    model_warmup { inputs { key: "%s" value { data_type: TYPE_FP32 dims: %d zero_data: true } } }
    """
    assert completed(tmp_path, text % ("x", 4)).warmups[0].rows == 1
    with pytest.raises(ConfigError, match=r"model_warmup\[0\].inputs: 'x' must be FP32 \[4\], got"):
        completed(tmp_path, text % ("x", 5))
    with pytest.raises(ConfigError, match="'z' is no input of the graph"):
        completed(tmp_path, text % ("z", 4))
    with pytest.raises(ConfigError, match="'x' is missing"):
        completed(tmp_path, text % ("z", 4), [*ROWS_IN, TensorSpec("z", "FP32", (-1, 4))])


_SHAPES = st.lists(st.sampled_from([-1, 1, 5]), max_size=3).map(tuple)
_SPECS = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(st.sampled_from(list(NUMPY_TYPES)), _SHAPES), min_size=1
).map(lambda items: [TensorSpec(name, *rest) for name, rest in items.items()])


@settings(deadline=None, max_examples=60)
@given(inputs=_SPECS, outputs=_SPECS, size=st.integers(0, 3))
def test_every_tensor_of_the_graph_is_as_the_graph_has_it(
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    size: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    outputs = [TensorSpec(f"out_{s.name}", s.datatype, s.shape) for s in outputs]
    text = f'backend: "onnxruntime" max_batch_size: {size}'
    repository = tmp_path_factory.mktemp("repository", numbered=True)
    can_batch = all(spec.shape[:1] == (-1,) for spec in [*inputs, *outputs])
    if size and not can_batch:
        with pytest.raises(ConfigError, match="without the batch dimension"):
            completed(repository, text, inputs, outputs)
        return
    found = completed(repository, text, inputs, outputs)
    for spec, original in zip([*found.inputs, *found.outputs], [*inputs, *outputs], strict=True):
        in_model = found.reshapes.get(spec.name, spec.shape)
        assert (spec.name, spec.datatype, in_model) == (
            original.name,
            original.datatype,
            original.shape,
        )
        assert spec.shape
    assert found.max_batch_size == (size or (4 if can_batch else 0))
