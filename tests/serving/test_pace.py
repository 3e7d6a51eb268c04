"""Which graphs run on the event loop."""

from __future__ import annotations

from pathlib import Path
from time import monotonic, thread_time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from serving.engines.pace import QUICK_S, SLOW_S, Pace, is_fixed, may_repeat
from serving.types import Tensors, TensorSpec
from tests.support import write_model


def rows(count: int) -> Tensors:
    return {"x": np.zeros((count, 4), np.float32)}


def paced(*seconds: float, count: int = 1) -> Pace:
    pace = Pace(is_fixed=True)
    for each in seconds:
        pace.ran(rows(count), each, pace.clock)
    return pace


def test_a_graph_is_known_by_nine_runs() -> None:
    assert not paced(*[QUICK_S / 2] * 8).is_quick(rows(1))
    assert paced(*[QUICK_S / 2] * 9).is_quick(rows(1))
    assert not paced(*[QUICK_S / 2] * 8, QUICK_S * 2).is_quick(rows(1))
    assert paced(QUICK_S * 2, *[QUICK_S / 2] * 9).is_quick(rows(1))


def test_who_was_slow_once_is_not_trusted_again() -> None:
    assert not paced(SLOW_S * 2, *[QUICK_S / 2] * 99).is_quick(rows(1))


def test_a_graph_that_is_known_well_is_timed_by_the_day_until_a_run_seems_long() -> None:
    pace = paced(*[QUICK_S / 2] * 255)
    assert pace.clock is thread_time
    pace.ran(rows(1), QUICK_S / 2, pace.clock)
    assert pace.clock is monotonic
    # That may have been somebody else's time.
    pace.ran(rows(1), SLOW_S * 2, pace.clock)
    assert pace.clock is thread_time
    assert pace.is_quick(rows(1))
    pace.ran(rows(1), QUICK_S * 2, pace.clock)
    assert not pace.is_quick(rows(1))


def test_inputs_are_not_much_larger_than_those_it_is_known_by() -> None:
    pace = paced(*[QUICK_S / 2] * 9, count=2)
    assert pace.is_quick(rows(8))
    assert not pace.is_quick(rows(9))
    assert not paced(*[QUICK_S / 2] * 9, count=4096).is_quick(rows(4097))


@pytest.mark.parametrize(
    ("shape", "datatype", "batches", "expected"),
    [
        ((-1, 4), "FP32", True, True),
        ((-1, 4), "FP32", False, False),
        ((4,), "FP32", False, True),
        ((-1, -1), "FP32", True, False),
        ((-1, 1), "BYTES", True, False),
    ],
)
def test_rows_of_one_size(
    shape: tuple[int, ...], datatype: str, batches: bool, expected: bool
) -> None:
    assert is_fixed([TensorSpec("x", datatype, shape)], batches=batches) is expected


def test_a_graph_that_repeats_as_often_as_a_value_says(tmp_path: Path) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Identity", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [4]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [4]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)],
        "graph",
        [
            helper.make_tensor_value_info("times", TensorProto.INT64, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    path = tmp_path / "loop.onnx"
    onnx.save(helper.make_model(graph), path)
    assert may_repeat(path)
    straight = write_model(tmp_path, "double", operation="Add") / "1" / "model.onnx"
    assert not may_repeat(straight)
