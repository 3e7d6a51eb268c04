"""Arrays that are read by their known type and shape are what the whole parser makes of them."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import RequestError
from serving.fronts.v2_numbers import MANY, reader
from serving.fronts.v2_tensors import from_json
from serving.types import NUMPY_TYPES, Array

ODD_NUMBERS = (
    *("-0", "0.0", "-0.0", "1E5", "1.0e-3", "1e38", "3.5e38", "1e400", "5e-324", "1e-400"),
    *("65504", "65520", "255", "256", "-129", "18446744073709551615", "9007199254740993"),
)
NO_NUMBERS = (
    *("NaN", "Infinity", "true", "false", "null", '"1"', '"ul"', "01", "1.", "+1", ".5", "0x1"),
    *("[1]", "[]", "{}", "", "1 2", "1e", "\u00b2", "'1'", "-"),
)
NUMBERS = st.one_of(
    st.integers(-300, 300).map(str),
    st.integers(-(2**65), 2**65).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(ODD_NUMBERS),
)
SPACE = st.sampled_from(["", " ", "\n", "\t ", "\x0b"])


def whole(datatype: str, shape: tuple[int, ...], text: bytes) -> Array | None:
    """By the parser that knows what is wrong."""
    try:
        return from_json("x", datatype, shape, orjson.loads(text))
    except (RequestError, orjson.JSONDecodeError):
        return None


def joined(elements: list[str], space: str) -> bytes:
    return f"[{space}{f'{space},{space}'.join(elements)}{space}]".encode()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_what_is_read_is_what_the_whole_parser_reads(data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from([name for name in NUMPY_TYPES if name != "BYTES"]))
    elements = data.draw(st.lists(NUMBERS, min_size=1, max_size=6))
    if data.draw(st.booleans()):
        elements.insert(
            data.draw(st.integers(0, len(elements))), data.draw(st.sampled_from(NO_NUMBERS))
        )
    elements *= data.draw(st.sampled_from([1, 1, MANY]))
    text = joined(elements, data.draw(SPACE))
    text = text[: text.index(b"]") + 1]
    count = len(elements) + data.draw(st.sampled_from([0, 0, 0, -1, 1]))
    shape = (count,) if data.draw(st.booleans()) else (1, count)
    read = reader(NUMPY_TYPES[datatype], shape)
    found = None if read is None else read(text)
    expected = whole(datatype, shape, text)
    if found is not None:
        assert expected is not None
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("count", [3, MANY])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT8", "INT64", "UINT8", "UINT64"])
def test_plain_numbers_are_left_to_nobody(datatype: str, count: int) -> None:
    text = joined(["1", "2", "100"] + ["0"] * (count - 3), " ")
    read = reader(NUMPY_TYPES[datatype], (1, count))
    assert read is not None
    found = read(text)
    assert found is not None
    assert found[0, :3].tolist() == [1, 2, 100]


@pytest.mark.parametrize("count", [1, 2, MANY])
@pytest.mark.parametrize(
    "text",
    ["", " ", "1", '"12"', "{}", '{"1": 2}', "[", "1]", "[1", "[1],[2]", "[1] [2]", "[[1],[2]]"],
)
def test_what_is_no_array_of_the_shape_is_not_read(count: int, text: str) -> None:
    read = reader(np.dtype(np.float32), (count,))
    assert read is not None
    assert read(text.encode()) is None
