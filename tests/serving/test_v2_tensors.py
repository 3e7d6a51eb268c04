from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.errors import InvalidRequest, Malformed, SlipwayError
from serving.fronts.v2_tensors import (
    check_size,
    check_spec,
    from_bytes,
    from_json,
    raw_tensor,
    to_bytes,
    to_json,
)
from serving.types import DATATYPES, DYNAMIC, NUMPY_TYPES, Array, TensorSpec

BF16 = NUMPY_TYPES["BF16"]
numeric = st.sampled_from([t for name, t in NUMPY_TYPES.items() if name not in ("BYTES", "BF16")])
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
# Any sixteen bits are a BF16.
bfloat_tensors = hnp.arrays(np.uint16, shapes).map(lambda bits: bits.view(BF16))
tensors = hnp.arrays(numeric, shapes) | bfloat_tensors


@st.composite
def byte_tensors(draw: st.DrawFn) -> Array:
    shape = draw(shapes)
    array = np.empty(math.prod(shape), dtype=object)
    array[:] = [draw(st.binary(max_size=9)) for _ in range(array.size)]
    return array.reshape(shape)


def same(a: Array, b: Array) -> bool:
    if a.dtype == object:
        return a.shape == b.shape and a.ravel().tolist() == b.ravel().tolist()
    if a.dtype.kind in "fV":
        a, b = a.astype(np.float64), b.astype(np.float64)
        return a.shape == b.shape and np.array_equal(a, b, equal_nan=True)
    return a.dtype == b.dtype and np.array_equal(a, b)


def nested(tensor: Array) -> Any:
    return (tensor.astype(np.float32) if tensor.dtype == BF16 else tensor).tolist()


@given(tensors | byte_tensors())
def test_raw_bytes_round_trip(tensor: Array) -> None:
    raw = to_bytes(tensor)
    assert same(from_bytes("x", DATATYPES[tensor.dtype], tensor.shape, raw), tensor)


@given(tensors)
def test_json_round_trip_keeps_every_bit(tensor: Array) -> None:
    data = json.loads(to_json("x", tensor))
    assert same(from_json("x", DATATYPES[tensor.dtype], tensor.shape, data), tensor)
    if isinstance(data := nested(tensor), list):
        assert same(from_json("x", DATATYPES[tensor.dtype], tensor.shape, data), tensor)


@pytest.mark.parametrize("datatype", NUMPY_TYPES)
def test_tensors_without_elements_and_without_dimensions(datatype: str) -> None:
    none = from_bytes("x", datatype, (0, 4), b"")
    assert (none.shape, DATATYPES[none.dtype]) == ((0, 4), datatype)
    assert bytes(to_bytes(none)) == b""
    assert to_json("x", none) == b"[]"
    assert same(from_json("x", datatype, (0, 4), []), none)
    assert same(from_json("x", datatype, (2, 0), [[], []]), none.reshape(2, 0))
    one: Any = {"BYTES": "a", "BOOL": True}.get(datatype, 1)
    scalar = from_json("x", datatype, (), [one])
    assert scalar.shape == ()
    assert json.loads(to_json("x", scalar)) == [one]
    assert same(from_bytes("x", datatype, (), to_bytes(scalar)), scalar)


def test_bf16_takes_integers_and_rounds_like_any_float() -> None:
    tensor = from_json("x", "BF16", (3,), [1, 2**64 - 1, 0.1])
    assert tensor.dtype == BF16
    assert nested(tensor) == [1.0, 2.0**64, 0.10009765625]
    assert same(from_json("x", "BF16", (3,), json.loads(to_json("x", tensor))), tensor)
    assert bytes(to_bytes(tensor[:1])) == b"\x80\x3f"
    assert to_json("x", np.array([np.nan, -np.inf], BF16)) == b"[NaN, -Infinity]"


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
        ("BF16", [3.4e38, 0], "values outside BF16"),
        ("BF16", ["1", 0], "must be numbers for BF16, got a string"),
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
    # A value that the datatype does not have is good grammar still.
    assert isinstance(refusal.value, Malformed) != ("values outside" in problem)


def test_infinity_may_be_sent() -> None:
    assert from_json("x", "FP32", (2,), [math.inf, 1.0]).tolist() == [math.inf, 1.0]


@pytest.mark.parametrize(
    ("datatype", "shape", "kind"),
    [
        ("FLOAT", [1], InvalidRequest),
        (3, [1], Malformed),
        (None, [1], Malformed),
        ("FP32", "1", Malformed),
        ("FP32", {"1": 1}, Malformed),
        ("FP32", None, Malformed),
        ("FP32", 1, Malformed),
        ("FP32", [-1], Malformed),
        ("FP32", [1.0], Malformed),
        ("FP32", [True], Malformed),
        ("FP32", [[1]], Malformed),
        ("FP32", [1] * 65, InvalidRequest),
        ("FP32", ["x"] * 1_000_000, InvalidRequest),
        ("FP32", [2**40, 2**40], InvalidRequest),
        ("FP32", [0, 2**40, 2**40], InvalidRequest),
        ("BYTES", [2**64 - 1] * 64, InvalidRequest),
    ],
)
def test_hostile_declarations_are_refused(
    datatype: object, shape: object, kind: type[InvalidRequest]
) -> None:
    with pytest.raises(InvalidRequest, match="'x'") as refusal:
        check_spec("x", datatype, shape)
    assert type(refusal.value) is kind
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("datatype", NUMPY_TYPES)
def test_a_huge_declaration_costs_nothing(datatype: str) -> None:
    _, shape = check_spec("x", datatype, [2**16, 2**16] + [1] * 62)
    for parse in (
        lambda: from_json("x", datatype, shape, []),
        lambda: from_json("x", datatype, shape, [[[]]]),
        lambda: from_bytes("x", datatype, shape, b"\0" * 12),
        lambda: check_size("x", datatype, shape, 2**31),
    ):
        with pytest.raises(InvalidRequest, match="'x'"):
            parse()


def test_more_strings_than_declared_are_not_read() -> None:
    with pytest.raises(InvalidRequest, match="but 16777212 bytes follow the last"):
        from_bytes("x", "BYTES", (1,), bytes(2**24))


@given(
    st.sampled_from([*NUMPY_TYPES, "FLOAT"]),
    st.lists(st.integers(0, 4) | st.integers(), max_size=4),
    st.binary(max_size=40),
)
def test_hostile_bytes_are_a_tensor_or_a_refusal(
    datatype: str, shape: list[int], raw: bytes
) -> None:
    with suppress(SlipwayError):
        checked = check_spec("x", datatype, shape)
        assert from_bytes("x", *checked, raw).shape == tuple(shape)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=2), children, max_size=2)
    ),
    max_leaves=12,
)


@given(json_values | st.sampled_from(list(NUMPY_TYPES)), json_values, json_values)
def test_hostile_json_is_a_tensor_or_a_refusal(datatype: Any, shape: Any, data: Any) -> None:
    with suppress(SlipwayError):
        checked = check_spec("x", datatype, shape)
        assert from_json("x", *checked, data).shape == tuple(shape)


@given(st.sampled_from(list(NUMPY_TYPES)), st.lists(st.integers(0, 3), max_size=3), json_values)
def test_hostile_data_is_a_tensor_or_a_refusal(datatype: str, shape: list[int], data: Any) -> None:
    with suppress(SlipwayError):
        assert from_json("x", datatype, tuple(shape), data).shape == tuple(shape)


@pytest.mark.parametrize(
    ("datatype", "dims", "size", "shape"),
    [
        ("FP32", (4,), 16, (4,)),
        ("FP32", (DYNAMIC,), 16, (4,)),
        ("FP32", (DYNAMIC,), 0, (0,)),
        ("BF16", (2, DYNAMIC, 3), 24, (2, 2, 3)),
        ("UINT8", (), 1, ()),
        ("BYTES", (1,), 9, (1,)),
        ("BYTES", (1,), 0, (1,)),
    ],
)
@pytest.mark.parametrize("batches", [False, True])
def test_a_raw_request_takes_its_shape_from_the_model(
    datatype: str, dims: tuple[int, ...], size: int, shape: tuple[int, ...], batches: bool
) -> None:
    spec = TensorSpec("x", datatype, (DYNAMIC, *dims) if batches else dims)
    body = bytes(range(1, size + 1))
    tensor = raw_tensor(spec, body, batches)
    assert tensor.shape == ((1, *shape) if batches else shape)
    assert DATATYPES[tensor.dtype] == datatype
    if datatype == "BYTES":
        assert tensor.ravel().tolist() == [body]
    else:
        assert bytes(to_bytes(tensor)) == body


@pytest.mark.parametrize(
    ("datatype", "dims", "size", "problem"),
    [
        ("FP32", (4,), 15, "takes 16 bytes, got 15"),
        ("FP32", (DYNAMIC, 2), 12, "takes a multiple of 8 bytes, got 12"),
        ("FP32", (DYNAMIC, 0), 0, "takes a multiple of 0 bytes"),
        ("FP32", (DYNAMIC, DYNAMIC), 16, "at most one dynamic dimension"),
        ("BYTES", (2,), 8, r"needs shape \[1\]"),
        ("BYTES", (DYNAMIC,), 8, r"needs shape \[1\]"),
    ],
)
def test_a_raw_request_that_does_not_fit_the_model(
    datatype: str, dims: tuple[int, ...], size: int, problem: str
) -> None:
    with pytest.raises(InvalidRequest, match=problem) as refusal:
        raw_tensor(TensorSpec("x", datatype, (DYNAMIC, *dims)), bytes(size), True)
    assert "'x'" in str(refusal.value)
