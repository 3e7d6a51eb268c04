from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest, Malformed, NotFound, SlipwayError, TooLarge
from serving.fronts.v2_call import (
    InferCall,
    OutputWish,
    Region,
    check_wishes,
    output_wish,
    place,
    read_region,
    region_of,
    request_parameters,
)
from serving.fronts.v2_tensors import to_bytes
from serving.shared_memory import DIRECTORY, SharedMemory
from serving.types import NUMPY_TYPES, InferRequest, InferResponse, SequenceStep, TensorSpec

needs_shared_memory = pytest.mark.skipif(
    not Path(DIRECTORY).is_dir(), reason="this machine has no /dev/shm"
)


@pytest.fixture
def regions() -> Iterator[SharedMemory]:
    """A region `a` of 64 zero bytes."""
    path = Path(DIRECTORY, f"test-{uuid4()}")
    path.write_bytes(bytes(64))
    regions = SharedMemory(enabled=True)
    regions.register("a", path.name, 0, 64)
    yield regions
    regions.close()
    path.unlink()


def taken(parameters: Mapping[str, object]) -> tuple[InferRequest, tuple[bool, bool]]:
    request = InferRequest("m", {})
    return request, request_parameters(request, parameters)


def test_no_parameters_change_nothing() -> None:
    assert taken({}) == (InferRequest("m", {}), (False, False))


def test_parameters_go_where_they_belong() -> None:
    request, flags = taken(
        {
            "sequence_id": 7,
            "sequence_start": True,
            "sequence_end": False,
            "priority": 3,
            "timeout": 1_500_000,
            "binary_data_output": True,
            "triton_enable_empty_final_response": True,
            "text": "é",
            "whole": -(2**63),
            "fraction": 0.5,
            "flag": False,
        }
    )
    assert flags == (True, True)
    assert request.sequence == SequenceStep(7, start=True, end=False)
    assert request.priority == 3
    assert request.timeout_s == 1.5
    assert request.parameters == {
        "text": "é",
        "whole": -(2**63),
        "fraction": 0.5,
        "flag": False,
    }


@pytest.mark.parametrize(
    ("parameters", "step"),
    [
        ({"sequence_id": 2**64 - 1}, SequenceStep(2**64 - 1)),
        ({"sequence_id": "s", "sequence_end": True}, SequenceStep("s", end=True)),
        ({"sequence_id": "é" * 64}, SequenceStep("é" * 64)),
        ({"sequence_id": 0, "sequence_start": True}, None),
        ({"sequence_id": "", "sequence_start": True}, None),
        ({"sequence_start": True, "sequence_end": True}, None),
    ],
)
def test_sequences(parameters: Mapping[str, object], step: SequenceStep | None) -> None:
    assert taken(parameters)[0].sequence == step


@pytest.mark.parametrize(
    ("key", "value", "kind", "problem"),
    [
        ("sequence_id", -1, InvalidRequest, "from 0 to 18446744073709551615, got -1"),
        ("sequence_id", 2**64, InvalidRequest, "got 18446744073709551616"),
        ("sequence_id", True, Malformed, "must be an integer or a string, got True"),
        ("sequence_id", 1.0, Malformed, "must be an integer or a string, got 1.0"),
        ("sequence_id", None, Malformed, "must be an integer or a string, got None"),
        ("sequence_id", "é" * 65, InvalidRequest, "at most 128 bytes"),
        ("sequence_start", 1, Malformed, "must be true or false, got 1"),
        ("sequence_end", "true", Malformed, "must be true or false, got 'true'"),
        ("priority", "high", Malformed, "must be an integer, got 'high'"),
        ("priority", True, Malformed, "must be an integer, got True"),
        ("priority", -1, InvalidRequest, "from 0 to"),
        ("timeout", "5", Malformed, "must be an integer, got '5'"),
        ("timeout", 0.5, Malformed, "must be an integer, got 0.5"),
        ("timeout", 10**400, InvalidRequest, "from 0 to"),
        ("binary_data_output", 1, Malformed, "must be true or false, got 1"),
        ("triton_enable_empty_final_response", {}, Malformed, "got an object"),
        ("headers", "x", InvalidRequest, "'headers' is reserved"),
        ("triton_x", 1, InvalidRequest, "'triton_x' is reserved"),
        ("x", None, InvalidRequest, "parameter 'x' has invalid type.* got None"),
        ("x", [], InvalidRequest, "parameter 'x' has invalid type.* got an array"),
        ("x", {}, InvalidRequest, "parameter 'x' has invalid type.* got an object"),
    ],
)
def test_parameters_that_are_refused(
    key: str, value: object, kind: type[InvalidRequest], problem: str
) -> None:
    with pytest.raises(InvalidRequest, match=problem) as refusal:
        taken({"other": 1, key: value})
    assert type(refusal.value) is kind
    assert key in str(refusal.value)


@pytest.mark.parametrize(
    ("parameters", "wish"),
    [
        ({}, OutputWish()),
        ({"binary_data": True}, OutputWish(binary=True)),
        ({"binary_data": False, "classification": 3}, OutputWish(False, 3)),
        ({"classification": 0}, OutputWish()),
        ({"unknown": []}, OutputWish()),
        (
            {
                "classification": 0,
                "binary_data": False,
                "shared_memory_region": "a",
                "shared_memory_byte_size": 8,
                "shared_memory_offset": 4,
            },
            OutputWish(binary=False, region=Region("a", 8, 4)),
        ),
        (
            {"shared_memory_region": "a", "shared_memory_byte_size": 8},
            OutputWish(region=Region("a", byte_size=8, offset=0)),
        ),
    ],
)
def test_wishes(parameters: Mapping[str, object], wish: OutputWish) -> None:
    assert output_wish("outputs[0].parameters", parameters) == wish


@pytest.mark.parametrize(
    ("changes", "kind", "problem"),
    [
        ({"binary_data": 1}, Malformed, "binary_data must be true or false, got 1"),
        ({"classification": "2"}, Malformed, "classification must be an integer, got '2'"),
        ({"classification": -1}, InvalidRequest, "classification must be an integer from 0"),
        ({"classification": 2}, InvalidRequest, "classification cannot be combined"),
        ({"shared_memory_region": 1}, Malformed, "shared_memory_region must be a string, got 1"),
        ({"shared_memory_region": ""}, InvalidRequest, "must name a region"),
        ({"shared_memory_region": None}, InvalidRequest, "byte_size is set, but shared_memory_"),
        ({"shared_memory_byte_size": None}, InvalidRequest, "byte_size is required"),
        ({"shared_memory_byte_size": "8"}, Malformed, "must be an integer, got '8'"),
        ({"shared_memory_byte_size": -8}, InvalidRequest, "byte_size must be an integer from 0"),
        ({"shared_memory_offset": -1}, InvalidRequest, "offset must be an integer from 0"),
        ({"shared_memory_offset": 1.0}, Malformed, "offset must be an integer, got 1.0"),
    ],
)
def test_wishes_that_are_refused(
    changes: dict[str, Any], kind: type[InvalidRequest], problem: str
) -> None:
    parameters = {"shared_memory_region": "a", "shared_memory_byte_size": 8} | changes
    given = {
        key: value for key, value in parameters.items() if value is not None or key not in changes
    }
    with pytest.raises(InvalidRequest, match=problem) as refusal:
        output_wish("outputs[0].parameters", given)
    assert type(refusal.value) is kind
    assert str(refusal.value).startswith("outputs[0].parameters")


keys = st.sampled_from(
    [
        "binary_data",
        "classification",
        "shared_memory_region",
        "shared_memory_byte_size",
        "shared_memory_offset",
        "sequence_id",
        "sequence_start",
        "priority",
        "timeout",
        "headers",
    ]
)
values: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([])
)


@given(st.dictionaries(keys | st.text(), values))
def test_hostile_parameters_are_taken_or_refused(parameters: dict[str, object]) -> None:
    for take in (
        lambda: output_wish("x", parameters),
        lambda: region_of("x", parameters),
        lambda: taken(parameters),
    ):
        with suppress(SlipwayError):
            take()


def test_binary_is_as_wished_or_as_for_all() -> None:
    wishes = {"yes": OutputWish(True), "no": OutputWish(False), "any": OutputWish()}
    for default in (False, True):
        call = InferCall(InferRequest("m", {}), wishes, binary_by_default=default)
        assert call.is_binary("yes")
        assert not call.is_binary("no")
        assert call.is_binary("any") is call.is_binary("unnamed") is default


def labels(name: str) -> Sequence[str]:
    return {"y": ("cat", "dog")}.get(name, ())


def placed(wishes: dict[str, OutputWish], regions: SharedMemory, **outputs: Any) -> Any:
    call = InferCall(InferRequest("m", {}), wishes)
    response = InferResponse("m", "1", outputs)
    return place(call, response, labels=labels, shared_memory=regions, batched=True)


@needs_shared_memory
def test_outputs_are_placed_in_the_order_of_the_response(regions: SharedMemory) -> None:
    tensor = np.array([[1, 2]], np.float32)
    region = Region("a", byte_size=9, offset=3)
    wishes = {"z": OutputWish(region=region), "y": OutputWish(classification=1)}
    classes, there, itself = placed(wishes, regions, y=tensor, z=tensor, x=tensor)
    assert [output.name for output in (classes, there, itself)] == ["y", "z", "x"]

    assert (classes.datatype, classes.shape, classes.region) == ("BYTES", (1, 1), None)
    assert classes.tensor.tolist() == [[b"2.000000:1:dog"]]

    assert (there.datatype, there.shape, there.tensor) == ("FP32", (1, 2), None)
    assert there.region == region
    assert regions.read("a", 0, 12) == bytes(3) + tensor.tobytes() + b"\0"

    assert (itself.datatype, itself.shape, itself.region) == ("FP32", (1, 2), None)
    assert itself.tensor is tensor


@needs_shared_memory
def test_nothing_is_written_if_another_output_cannot_be_placed(regions: SharedMemory) -> None:
    wishes = {"x": OutputWish(region=Region("a", 8, 0)), "y": OutputWish(classification=1)}
    texts = np.array([[b"t"]], dtype=object)
    with pytest.raises(InvalidRequest, match="'y' needs numbers"):
        placed(wishes, regions, x=np.array([[1, 2]], np.float32), y=texts)
    assert regions.read("a", 0, 8) == bytes(8)


@needs_shared_memory
@pytest.mark.parametrize(
    ("region", "kind", "problem"),
    [
        (Region("a", 7, 0), InvalidRequest, "should be at least 8 bytes"),
        (Region("a", 8, 57), InvalidRequest, r"Invalid offset \+ byte size"),
        (Region("b", 8, 0), NotFound, "'b'"),
    ],
)
def test_outputs_that_do_not_fit(
    regions: SharedMemory, region: Region, kind: type[SlipwayError], problem: str
) -> None:
    with pytest.raises(kind, match=problem):
        placed({"x": OutputWish(region=region)}, regions, x=np.array([[1, 2]], np.float32))
    assert regions.read("a", 0, 64) == bytes(64)


@needs_shared_memory
@pytest.mark.parametrize("datatype", NUMPY_TYPES)
def test_tensors_without_elements_pass_through_shared_memory(
    regions: SharedMemory, datatype: str
) -> None:
    tensor = np.zeros((0, 3), NUMPY_TYPES[datatype])
    region = Region("a", byte_size=0, offset=64)
    (there,) = placed({"x": OutputWish(region=region)}, regions, x=tensor)
    assert (there.datatype, there.shape, there.region) == (datatype, (0, 3), region)
    assert read_region(regions.for_request(), "x", datatype, (0, 3), region).shape == (0, 3)


@needs_shared_memory
@pytest.mark.parametrize("datatype", NUMPY_TYPES)
def test_tensors_of_every_datatype_pass_through_shared_memory(
    regions: SharedMemory, datatype: str
) -> None:
    if datatype == "BYTES":
        tensor = np.array([[b"a", b"", b"\xff\0"]], dtype=object)
    else:
        tensor = np.array([[0, 1, 1]], np.int8).astype(NUMPY_TYPES[datatype])
    size = len(to_bytes(tensor))
    placed({"x": OutputWish(region=Region("a", 40, 5))}, regions, x=tensor)
    back = read_region(regions.for_request(), "x", datatype, (1, 3), Region("a", size, 5))
    assert back.dtype == tensor.dtype
    assert back.tolist() == tensor.tolist()


@needs_shared_memory
@pytest.mark.parametrize(
    ("datatype", "region", "kind", "problem"),
    [
        ("FP32", Region("a", 7, 0), InvalidRequest, "takes 8 bytes, got 7"),
        ("FP32", Region("a", 2**63, 0), InvalidRequest, "takes 8 bytes, got 9223372036854775808"),
        ("FP32", Region("a", 8, 60), InvalidRequest, r"Invalid offset \+ byte size"),
        ("FP32", Region("b", 8, 0), NotFound, "'b'"),
        ("BYTES", Region("a", 7, 0), InvalidRequest, "takes at least 8 bytes, got 7"),
        ("BYTES", Region("a", 9, 0), InvalidRequest, "1 bytes follow the last"),
    ],
)
def test_inputs_that_do_not_fit(
    regions: SharedMemory, datatype: str, region: Region, kind: type[SlipwayError], problem: str
) -> None:
    with pytest.raises(kind, match=problem):
        read_region(regions.for_request(), "x", datatype, (2,), region)


@needs_shared_memory
def test_the_inputs_of_a_request_are_bounded_together(regions: SharedMemory) -> None:
    regions.limit_bytes = 24
    memory = regions.for_request()
    for _ in range(3):
        assert read_region(memory, "x", "FP32", (2,), Region("a", 8, 0)).tolist() == [0, 0]
    with pytest.raises(TooLarge, match="limit of 24 bytes"):
        read_region(memory, "x", "FP32", (2,), Region("a", 8, 0))


@needs_shared_memory
@pytest.mark.parametrize(
    ("wish", "kind", "problem"),
    [
        (OutputWish(region=Region("b", 8, 0)), NotFound, "'b'"),
        (OutputWish(region=Region("a", 8, 57)), InvalidRequest, r"Invalid offset \+ byte size"),
        (OutputWish(region=Region("a", 2**64 - 1, 2**64 - 1)), InvalidRequest, "Invalid offset"),
        (OutputWish(classification=1), InvalidRequest, "'t' needs numbers, but it is BYTES"),
    ],
)
def test_wishes_that_cannot_come_true_are_refused_beforehand(
    regions: SharedMemory, wish: OutputWish, kind: type[SlipwayError], problem: str
) -> None:
    call = InferCall(InferRequest("m", {}), {"t": wish})
    with pytest.raises(kind, match=problem):
        check_wishes(call, [TensorSpec("t", "BYTES", (1,))], regions)


@needs_shared_memory
def test_wishes_that_can_come_true(regions: SharedMemory) -> None:
    wishes = {
        "x": OutputWish(classification=1),
        "t": OutputWish(region=Region("a", 64, 0)),
        "unknown": OutputWish(classification=1),
    }
    specs = [TensorSpec("x", "FP32", (1,)), TensorSpec("t", "BYTES", (1,))]
    check_wishes(InferCall(InferRequest("m", {}), wishes), specs, regions)
    check_wishes(InferCall(InferRequest("m", {})), specs, regions)
