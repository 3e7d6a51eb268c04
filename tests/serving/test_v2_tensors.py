from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.errors import InvalidRequest
from serving.fronts.v2_tensors import check_spec, from_bytes, from_json, to_bytes, to_json
from serving.types import DATATYPES, NUMPY_TYPES, Array

numeric = st.sampled_from([t for name, t in NUMPY_TYPES.items() if name != "BYTES"])
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
tensors = hnp.arrays(numeric, shapes)


@st.composite
def byte_tensors(draw: st.DrawFn) -> Array:
    shape = draw(shapes)
    array = np.empty(math.prod(shape), dtype=object)
    array[:] = [draw(st.binary(max_size=9)) for _ in range(array.size)]
    return array.reshape(shape)


def same(a: Array, b: Array) -> bool:
    if a.dtype == object:
        return a.shape == b.shape and a.ravel().tolist() == b.ravel().tolist()
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@given(tensors | byte_tensors())
def test_raw_bytes_round_trip(tensor: Array) -> None:
    raw = to_bytes(tensor)
    assert same(from_bytes("x", DATATYPES[tensor.dtype], tensor.shape, raw), tensor)


@given(tensors)
def test_json_round_trip_keeps_every_bit(tensor: Array) -> None:
    data = json.loads(to_json("x", tensor))
    assert same(from_json("x", DATATYPES[tensor.dtype], tensor.shape, data), tensor)
    nested = tensor.tolist()
    if isinstance(nested, list):
        assert same(from_json("x", DATATYPES[tensor.dtype], tensor.shape, nested), tensor)


@given(byte_tensors(), st.data())
def test_cut_or_lengthened_byte_strings_are_refused(tensor: Array, data: st.DataObject) -> None:
    raw = bytes(to_bytes(tensor))
    for broken in (raw + b"\x01", raw[: data.draw(st.integers(0, max(0, len(raw) - 1)))]):
        if broken != raw:
            with pytest.raises(InvalidRequest, match="'x'"):
                from_bytes("x", "BYTES", tensor.shape, broken)


@pytest.mark.parametrize(
    ("datatype", "data", "problem"),
    [
        ("FP32", "1", "must be an array, got a string"),
        ("FP32", ["1", 2], "must be numbers for FP32, got a string"),
        ("FP32", [True, 2], "must be numbers for FP32, got a boolean"),
        ("FP32", [None, 2], "must be numbers for FP32, got null"),
        ("FP32", [{}, 2], "must be numbers for FP32, got an object"),
        ("FP32", [[1, 2], [3]], "not a regular array"),
        ("FP32", [[1], 2], "not a regular array"),
        ("FP32", [1e39, 0], "values outside FP32"),
        ("FP16", [7e4, 0], "values outside FP16"),
        ("INT32", [1.5, 2], "must be integers for INT32, got a fraction"),
        ("INT32", [1.0, 2], "must be integers for INT32, got a fraction"),
        ("UINT8", [256, 0], "values outside UINT8"),
        ("UINT8", [-1, 0], "values outside UINT8"),
        ("INT64", [2**63, 0], "values outside INT64"),
        ("BOOL", [0, 1], "must be true or false for BOOL, got an integer"),
        ("BYTES", ["a", 1], "must be strings for BYTES, got an integer"),
        ("FP32", [1, 2, 3], "has 3 elements"),
        ("FP32", [], "has 0 elements"),
    ],
)
def test_json_that_does_not_fit_is_refused_by_name(datatype: str, data: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as refusal:
        from_json("x", datatype, (2,), data)
    assert "'x'" in str(refusal.value)


def test_infinity_may_be_sent() -> None:
    assert from_json("x", "FP32", (2,), [math.inf, 1.0]).tolist() == [math.inf, 1.0]


@pytest.mark.parametrize(
    ("datatype", "shape"),
    [
        ("FLOAT", [1]),
        (3, [1]),
        ("FP32", "1"),
        ("FP32", 1),
        ("FP32", [-1]),
        ("FP32", [1.0]),
        ("FP32", [True]),
        ("FP32", [1] * 65),
        ("FP32", [2**40, 2**40]),
    ],
)
def test_hostile_declarations_are_refused(datatype: object, shape: object) -> None:
    with pytest.raises(InvalidRequest, match="'x'"):
        check_spec("x", datatype, shape)
