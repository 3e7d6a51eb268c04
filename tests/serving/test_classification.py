from __future__ import annotations

import math
import timeit
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.errors import InvalidRequest
from serving.fronts import classification
from serving.fronts.classification import classify
from serving.types import NUMPY_TYPES, Array

NUMERIC = [name for name in NUMPY_TYPES if name != "BYTES"]


def classes(tensor: Any, k: int, labels: tuple[str, ...] = (), batched: bool = False) -> Any:
    result = classify("y", np.asarray(tensor), k, labels, batched)
    assert result.dtype == object
    return result.tolist()


def test_values_are_written_like_c_does() -> None:
    assert classes(np.array([1.5, 3.3, 1e-5], np.float32), 3, ("cat", "pickle")) == [
        b"3.300000:1:pickle",
        b"1.500000:0:cat",
        b"0.000010:2",
    ]
    assert classes(np.array([7, -3, 32], np.int32), 2) == [b"32:2", b"7:0"]
    assert classes([-1e-9, 1e20], 2) == [b"100000000000000000000.000000:1", b"-0.000000:0"]
    assert classes([False, True], 2) == [b"1:1", b"0:0"]


@pytest.mark.parametrize("datatype", NUMERIC)
def test_every_numeric_datatype(datatype: str) -> None:
    dtype = NUMPY_TYPES[datatype]
    form = "1.000000:1" if dtype.kind in "fV" else "1:1"
    assert classes(np.array([0, 1], np.int8).astype(dtype), 1) == [form.encode()]


@pytest.mark.parametrize("datatype", [name for name in NUMERIC if "INT" in name])
def test_the_ends_of_every_integer_type(datatype: str) -> None:
    limits = np.iinfo(NUMPY_TYPES[datatype])
    tensor = np.array([limits.min, 1, limits.max], limits.dtype)
    assert classes(tensor, 3) == [
        f"{limits.max}:2".encode(),
        b"1:1",
        f"{limits.min}:0".encode(),
    ]


def test_equals_keep_their_order_and_not_a_number_is_last() -> None:
    tensor = [math.nan, 1, -math.inf, 1, math.inf, math.nan]
    assert classes(tensor, 9) == [
        b"inf:4",
        b"1.000000:1",
        b"1.000000:3",
        b"-inf:2",
        b"nan:0",
        b"nan:5",
    ]


def test_rows_of_a_batch_are_classified_each() -> None:
    tensor = np.arange(12).reshape(2, 3, 2)
    assert classes(tensor, 2, batched=True) == [[b"5:5", b"4:4"], [b"11:5", b"10:4"]]
    assert classes(tensor, 2) == [b"11:11", b"10:10"]


@pytest.mark.parametrize(
    ("shape", "batched", "expected"),
    [
        ((), False, (1,)),
        ((), True, (1, 1)),
        ((3,), True, (3, 1)),
        ((3,), False, (3,)),
        ((2, 9), True, (2, 4)),
        ((2, 9), False, (4,)),
        ((0, 9), True, (0, 4)),
        ((2, 0), True, (2, 0)),
        ((0,), False, (0,)),
    ],
)
def test_shapes(shape: tuple[int, ...], batched: bool, expected: tuple[int, ...]) -> None:
    assert classify("y", np.ones(shape), 4, (), batched).shape == expected


def test_what_cannot_be_classified() -> None:
    with pytest.raises(InvalidRequest, match="'y' needs numbers, but it is BYTES"):
        classes(np.array([b"a"], dtype=object), 1)
    with pytest.raises(InvalidRequest, match="at most 1000000 elements, got 1000001"):
        classes(np.zeros(classification.MAX_ELEMENTS + 1, np.int8), 1)
    with pytest.raises(InvalidRequest, match="must be 1 or more, got 0"):
        classes([1.0], 0)


def test_a_label_that_is_no_text_and_one_that_is_empty() -> None:
    assert classes([2, 1, 0], 3, ("", "\ud800")) == [b"2:0", b"1:1:?", b"0:2"]


@given(
    hnp.arrays(
        st.sampled_from([NUMPY_TYPES[name] for name in NUMERIC if name != "BF16"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    st.integers(1, 2**63 - 1),
    st.booleans(),
)
def test_each_class_is_an_element_and_none_is_greater(tensor: Array, k: int, batched: bool) -> None:
    result = classify("y", tensor, k, (), batched)
    rows = tensor.reshape(len(tensor), -1) if batched and tensor.ndim and tensor.size else None
    flat = rows if rows is not None else tensor.reshape(1, -1)
    for row, elements in zip(flat, result.reshape(len(flat), -1), strict=tensor.size > 0):
        indices = [int(element.split(b":")[1]) for element in elements]
        assert len(set(indices)) == len(indices) == min(k, row.size)
        chosen = [row[index].item() for index in indices]
        numbers = [value for value in chosen if not math.isnan(value)]
        assert numbers == sorted(numbers, reverse=True)
        assert chosen[: len(numbers)] == numbers


@pytest.mark.parametrize("datatype", NUMERIC)
@pytest.mark.parametrize("k", [1, 5, 100, 128, 129, 600])
def test_long_rows_have_the_same_classes_as_if_all_were_sorted(
    datatype: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(k)
    rows = [
        random.normal(size=600) * 50,
        random.integers(0, 3, 600),
        np.where(np.arange(600) % 2, -0.0, 0.0),
        np.where(random.random(600) < 0.5, math.nan, random.normal(size=600)),
        np.where(random.random(600) < 0.99, math.nan, random.normal(size=600)),
        np.full(600, -math.inf),
    ]
    with np.errstate(invalid="ignore"):
        tensor = np.stack(rows).astype(NUMPY_TYPES[datatype])
    chosen = classify("y", tensor, k, (), True)
    monkeypatch.setattr(classification, "_LONG_ROW", 10**9)
    assert chosen.tolist() == classify("y", tensor, k, (), True).tolist()


def test_few_classes_of_a_very_long_row_are_found_without_sorting_it() -> None:
    tensor = np.random.default_rng(0).normal(size=classification.MAX_ELEMENTS).astype(np.float32)
    sorting = min(timeit.repeat(lambda: np.argsort(tensor, kind="stable"), number=1, repeat=3))
    took = min(timeit.repeat(lambda: classify("y", tensor, 5, (), False), number=1, repeat=3))
    assert took < sorting / 3
