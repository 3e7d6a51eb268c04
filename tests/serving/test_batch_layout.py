"""What a model sees of several requests, and what each request gets back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import model_config_pb2

from serving.config import (
    BatchInput,
    BatchInputKind,
    BatchOutput,
    ModelConfig,
    VersionPolicy,
)
from serving.errors import InferenceFailed, InvalidRequest, ModelLoadError
from serving.scheduling.batch import BatchLayout
from serving.scheduling.padding import ORDINARY, PaddingRule
from serving.types import NUMPY_TYPES, Array, Tensors, TensorSpec

Shape = tuple[int, ...]


def spec(name: str, shape: Shape, datatype: str = "FP32", *, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, datatype, shape, optional)


def config(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (), **rest: Any) -> ModelConfig:
    base = ModelConfig(
        name="m",
        backend="fake",
        platform="",
        max_batch_size=8,
        inputs=inputs,
        outputs=outputs,
        version_policy=VersionPolicy(),
        model_filename="",
        message=model_config_pb2.ModelConfig(),
    )
    return replace(base, **rest)


def layout(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (), **rest: Any) -> BatchLayout:
    return BatchLayout(config(*inputs, outputs=outputs, **rest))


def numbers(*shape: int, start: int = 0, dtype: Any = np.float32) -> Array:
    return np.arange(start, start + math.prod(shape)).reshape(shape).astype(dtype)


def words(*rows: list[bytes]) -> Array:
    tensor = np.empty((len(rows), len(rows[0])), object)
    for row, elements in enumerate(rows):
        for column, element in enumerate(elements):
            tensor[row, column] = element
    return tensor


def same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()


def rows_of(parts: list[Tensors]) -> list[int]:
    return [len(next(iter(part.values()))) for part in parts]


def test_one_request_passes_uncopied() -> None:
    plain = layout(spec("x", (-1, 3)), outputs=(spec("y", (-1, 3)),))
    part = {"x": numbers(2, 3)}
    assert plain.stack([part])["x"] is part["x"]
    [answer] = plain.split({"y": part["x"]}, [part], [2])
    assert np.shares_memory(answer["y"], part["x"])


@pytest.mark.parametrize(
    ("can_be", "inputs", "rest"),
    [
        (True, [spec("x", (-1, 3)), spec("y", (-1,))], {}),
        (False, [spec("x", (3,))], {"max_batch_size": 0}),
        (False, [spec("x", (-1, 3)), spec("y", (-1, -1))], {}),
        (False, [spec("x", (-1, 3)), spec("y", (-1, 3), optional=True)], {}),
        (False, [spec("x", (-1, 3), "BYTES")], {}),
        (False, [spec("x", (-1, 3))], {"reshapes": {"x": (-1, 3, 1)}}),
        (False, [spec("x", (-1, -1))], {"ragged": frozenset({"x"})}),
    ],
)
def test_what_can_be_gathered(can_be: bool, inputs: list[TensorSpec], rest: dict[str, Any]) -> None:
    assert layout(*inputs, **rest).can_be_gathered == can_be


def test_without_a_batch_dimension_everything_passes() -> None:
    single = layout(spec("x", ()), outputs=(spec("y", ()),), max_batch_size=0)
    part = {"x": np.array(3, np.float32)}
    assert single.stack([part]) == part
    assert single.split({"y": part["x"]}, [part], [1]) == [{"y": part["x"]}]


def test_a_ragged_input_without_a_batch_dimension_keeps_its_shape() -> None:
    single = layout(spec("x", (-1, -1)), max_batch_size=0, ragged=frozenset("x"))
    assert single.stack([{"x": numbers(2, 3)}])["x"].shape == (2, 3)


def test_the_key_tells_what_can_share_a_run() -> None:
    x, extra = spec("x", (-1, -1)), spec("extra", (-1, 1), optional=True)
    plain, ragged = layout(x, extra), layout(x, extra, ragged=frozenset("x"))
    short, long = {"x": numbers(1, 2)}, {"x": numbers(2, 3)}
    assert plain.key(short) != plain.key(long)
    assert plain.key(short) == plain.key({"x": numbers(4, 2)})
    assert ragged.key(short) == ragged.key(long)
    assert ragged.key(short) != ragged.key({**short, "extra": numbers(1, 1)})
    assert isinstance(hash(ragged.key(short)), int)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_model_that_loses_rows_fails(rows: int) -> None:
    plain = layout(spec("x", (-1, 1)), outputs=(spec("y", (-1, 1)),))
    parts = [{"x": numbers(2, 1)}]
    with pytest.raises(InferenceFailed, match=r"'y' has shape \[\d, 1\] for a batch of 2 rows"):
        plain.split({"y": numbers(rows, 1)}, parts, [2])


# Reshapes


@pytest.mark.parametrize(
    ("caller", "model", "sent", "seen"),
    [
        ((-1, 4), (-1, 2, 2), (3, 4), (3, 2, 2)),
        ((-1, 1), (-1,), (3, 1), (3,)),
        ((-1, -1), (-1, 1, -1), (3, 5), (3, 1, 5)),
        ((-1, -1, 2), (-1, -1), (3, 5, 2), (3, 10)),
        ((-1, 6), (-1, -1, 2), (3, 6), (3, 3, 2)),
        ((-1, -1, 3, -1), (-1, 3, -1, -1), (2, 4, 3, 5), (2, 3, 4, 5)),
        ((-1, -1), (-1, -1, 1), (3, 0), (3, 0, 1)),
    ],
)
def test_a_reshape_goes_in_and_back_out(
    caller: Shape, model: Shape, sent: Shape, seen: Shape
) -> None:
    shaped = layout(
        spec("x", caller), outputs=(spec("y", caller),), reshapes={"x": model, "y": model}
    )
    part = {"x": numbers(*sent)}
    stacked = shaped.stack([part, part])
    assert stacked["x"].shape == (2 * seen[0], *seen[1:])
    for answer in shaped.split({"y": stacked["x"]}, [part, part], [sent[0]] * 2):
        assert same(answer["y"], part["x"])


def test_a_reshape_without_a_batch_dimension() -> None:
    shaped = layout(
        spec("x", (1,)),
        outputs=(spec("y", (1,)),),
        max_batch_size=0,
        reshapes={"x": (), "y": ()},
    )
    part = {"x": numbers(1)}
    stacked = shaped.stack([part])
    assert stacked["x"].shape == ()
    assert shaped.split({"y": stacked["x"]}, [part], [1])[0]["y"].shape == (1,)


def test_what_does_not_fit_a_reshape_is_said_to_be_whose_fault_it_is() -> None:
    shapes = {"x": (-1, -1, 4), "y": (-1, 2, 2)}
    shaped = layout(spec("x", (-1, -1)), outputs=(spec("y", (-1, 4)),), reshapes=shapes)
    with pytest.raises(InvalidRequest, match="input 'x' of shape"):
        shaped.stack([{"x": numbers(1, 7)}])
    part = {"x": numbers(1, 8)}
    for wrong in (numbers(1, 2, 3), numbers(1, 4)):
        with pytest.raises(InferenceFailed, match="output 'y' has shape"):
            shaped.split({"y": wrong}, [part], [1])


# Ragged, padded


def padded(**parameters: str) -> BatchLayout:
    return layout(
        spec("tokens", (-1, -1), "INT64"),
        spec("mask", (-1, -1), "BOOL"),
        outputs=(spec("logits", (-1, -1, 2)), spec("pooled", (-1, 5))),
        ragged=frozenset({"tokens", "mask"}),
        parameters={key.replace("__", "."): value for key, value in parameters.items()},
    )


def sentence(rows: int, length: int) -> Tensors:
    return {
        "tokens": numbers(rows, length, start=1, dtype=np.int64),
        "mask": np.ones((rows, length), bool),
    }


def test_each_request_is_padded_to_the_longest() -> None:
    parts = [sentence(1, 2), sentence(2, 4)]
    stacked = padded(pad_value="7", pad_value__mask="0").stack(parts)
    assert stacked["tokens"].tolist() == [[1, 2, 7, 7], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert stacked["mask"].tolist() == [[True, True, False, False], [True] * 4, [True] * 4]


def test_outputs_get_the_length_of_the_request() -> None:
    parts = [sentence(1, 2), sentence(2, 4)]
    outputs = {"logits": numbers(3, 4, 2), "pooled": numbers(3, 5)}
    first, second = padded().split(outputs, parts, [1, 2])
    assert same(first["logits"], outputs["logits"][:1, :2])
    assert same(second["logits"], outputs["logits"][1:])
    assert same(first["pooled"], outputs["pooled"][:1])


def test_an_output_of_another_length_is_left_alone() -> None:
    parts = [sentence(1, 2), sentence(1, 4)]
    first, _ = padded().split({"logits": numbers(2, 9, 2)}, parts, [1, 1])
    assert first["logits"].shape == (1, 9, 2)


def test_unpad_says_which_outputs_follow() -> None:
    parts = [sentence(1, 2), sentence(1, 4)]
    outputs = {"logits": numbers(2, 4, 2)}
    [first, _] = padded(unpad="").split(outputs, parts, [1, 1])
    assert first["logits"].shape == (1, 4, 2)
    explicit = padded(unpad=" logits = mask ")
    assert explicit.split(outputs, parts, [1, 1])[0]["logits"].shape == (1, 2, 2)
    with pytest.raises(InferenceFailed, match=r"'logits' has shape \[1, 9, 2\]"):
        explicit.split({"logits": numbers(2, 9, 2)}, parts, [1, 1])


def test_an_output_may_have_one_element_for_several_of_its_input() -> None:
    explicit = padded(unpad="logits=tokens/3")
    parts = [sentence(1, 7), sentence(1, 10), sentence(1, 1)]
    pieces = explicit.split({"logits": numbers(3, 4, 2)}, parts, [1, 1, 1])
    assert [piece["logits"].shape for piece in pieces] == [(1, 3, 2), (1, 4, 2), (1, 1, 2)]
    with pytest.raises(InferenceFailed, match="'tokens' asks for 4 in dimension 1"):
        explicit.split({"logits": numbers(3, 3, 2)}, parts, [1, 1, 1])


def test_strings_are_padded_with_empty_ones() -> None:
    texts = layout(spec("x", (-1, -1), "BYTES"), ragged=frozenset("x"))
    parts = [{"x": words([b"a\0"])}, {"x": words([b"", b"b"], [b"c", b"\0"])}]
    stacked = texts.stack(parts)["x"]
    assert stacked.tolist() == [[b"a\0", b""], [b"", b"b"], [b"c", b"\0"]]


@pytest.mark.parametrize(
    ("datatype", "text", "value"),
    [
        ("FP16", "-1e9", -math.inf),
        ("BF16", "2.5", 2.5),
        ("FP64", "0.1", 0.1),
        ("INT8", "-128", -128),
        ("UINT64", "18446744073709551615", 2**64 - 1),
        ("BOOL", "1", True),
    ],
)
def test_pad_values_of_every_kind(datatype: str, text: str, value: object) -> None:
    ragged = layout(
        spec("x", (-1, -1), datatype), ragged=frozenset("x"), parameters={"pad_value": text}
    )
    parts = [{"x": np.zeros((1, size), NUMPY_TYPES[datatype])} for size in (1, 2)]
    assert ragged.stack(parts)["x"][0, 1] == value


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pad_value": "many"}, "parameters pad_value must be a value of 'tokens'"),
        ({"pad_value": "0.5"}, "which is INT64, got '0.5'"),
        ({"pad_value__mask": "-1"}, "parameters pad_value.mask must"),
        ({"unpad": "logits=pooled"}, "parameters unpad must be"),
        ({"unpad": "tokens"}, "parameters unpad must be"),
        ({"unpad": "logits=tokens/0"}, "parameters unpad must be"),
        ({"unpad": "logits=tokens/many"}, "parameters unpad must be"),
    ],
)
def test_parameters_that_make_no_sense(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        padded(**parameters)


@pytest.mark.parametrize(
    ("parameter", "ragged", "message"),
    [
        ("1", "x", "max_padding must be a share from 0 to below 1, got '1'"),
        ("much", "x", "max_padding must be a share from 0 to below 1, got 'much'"),
        ("0.25", "", "max_padding needs an input with allow_ragged_batch"),
    ],
)
def test_a_share_of_padding_that_makes_no_sense(parameter: str, ragged: str, message: str) -> None:
    wrong = config(
        spec("x", (-1, -1)),
        ragged=frozenset(ragged),
        parameters={"max_padding": parameter},
    )
    with pytest.raises(ModelLoadError, match=message):
        PaddingRule.read(wrong)


def test_a_share_of_padding() -> None:
    x = spec("x", (-1, -1))
    assert PaddingRule.read(config(x)) == ORDINARY
    parameters = {"max_padding": "0.25"}
    rule = PaddingRule.read(config(x, ragged=frozenset("x"), parameters=parameters))
    assert rule == PaddingRule(4 / 3, 0, passes_over=True)


# Ragged, concatenated


def described(kind: BatchInputKind, datatype: str = "FP32") -> BatchLayout:
    return layout(
        spec("x", (-1, -1, -1)),
        ragged=frozenset("x"),
        batch_inputs=(BatchInput("about", kind, datatype, "x"),),
    )


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        (BatchInputKind.ELEMENT_COUNT, [6, 4]),
        (BatchInputKind.ACCUMULATED_ELEMENT_COUNT, [6, 10]),
        (BatchInputKind.ACCUMULATED_ELEMENT_COUNT_WITH_ZERO, [0, 6, 10]),
        (BatchInputKind.MAX_ELEMENT_COUNT_AS_SHAPE, [0] * 6),
        (BatchInputKind.ITEM_SHAPE, [[3, 1], [3, 1], [2, 2]]),
        (BatchInputKind.ITEM_SHAPE_FLATTEN, [3, 1, 3, 1, 2, 2]),
    ],
)
def test_batch_inputs_describe_their_source(kind: BatchInputKind, about: list[Any]) -> None:
    """The item shapes are the example in Triton's model_config.proto."""
    parts = [{"x": numbers(2, 3, 1)}, {"x": numbers(1, 2, 2, start=6)}]
    for datatype in ("FP32", "INT32"):
        stacked = described(kind, datatype).stack(parts)
        assert same(stacked["x"], numbers(10))
        assert same(stacked["about"], np.array(about, NUMPY_TYPES[datatype]))


def test_one_request_is_flattened_too() -> None:
    stacked = described(BatchInputKind.ACCUMULATED_ELEMENT_COUNT).stack([{"x": numbers(1, 2, 3)}])
    assert stacked["x"].shape == (6,)
    assert stacked["about"].tolist() == [6]


def scattered() -> BatchLayout:
    return layout(
        spec("x", (-1, -1)),
        outputs=(spec("y", (-1, -1)), spec("sums", (-1, 1))),
        ragged=frozenset("x"),
        batch_outputs=(BatchOutput("y", "x"),),
    )


def test_a_batch_output_is_cut_by_its_source() -> None:
    parts = [{"x": numbers(1, 2)}, {"x": numbers(2, 0)}, {"x": numbers(2, 3, start=2)}]
    stacked = scattered().stack(parts)
    outputs = {"y": stacked["x"] * 2, "sums": numbers(5, 1)}
    answers = scattered().split(outputs, parts, [1, 2, 2])
    for part, answer in zip(parts, answers, strict=True):
        assert same(answer["y"], part["x"] * 2)
        assert len(answer["sums"]) == len(part["x"])


def test_a_batch_output_of_the_wrong_size_fails() -> None:
    with pytest.raises(InferenceFailed, match="'y' has 3 elements where 'x' asks for 2"):
        scattered().split({"y": numbers(3)}, [{"x": numbers(1, 2)}], [1])


def test_a_batch_output_needs_a_source_of_its_rank() -> None:
    with pytest.raises(ModelLoadError, match="needs a source"):
        layout(
            spec("x", (-1, -1)),
            outputs=(spec("y", (-1, -1, -1)),),
            batch_outputs=(BatchOutput("y", "x"),),
        )


# An identity gives every request its own back, whatever the layout


@st.composite
def requests(
    draw: st.DrawFn, tail: Shape, *, ragged: bool, datatypes: tuple[str, ...]
) -> tuple[str, list[Tensors]]:
    """Parts of shape [rows, *tail]; each -1 of the tail is drawn, once for all unless ragged."""
    datatype = draw(st.sampled_from(datatypes))
    elements = st.binary(max_size=3) if datatype == "BYTES" else st.integers(0, 1)

    def drawn() -> Shape:
        return tuple(draw(st.integers(0, 4)) if size == -1 else size for size in tail)

    common = drawn()
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        shape = (draw(st.integers(1, 3)), *(drawn() if ragged else common))
        values = draw(st.lists(elements, min_size=math.prod(shape), max_size=math.prod(shape)))
        tensor = np.empty(math.prod(shape), object)
        for index, value in enumerate(values):
            tensor[index] = value
        parts.append({"x": tensor.reshape(shape).astype(NUMPY_TYPES[datatype])})
    return datatype, parts


def identity(layout: BatchLayout, parts: list[Tensors]) -> None:
    outputs = {"y": layout.stack(parts)["x"]}
    answers = layout.split(outputs, parts, rows_of(parts))
    assert len({layout.key(part) for part in parts}) == 1
    for part, answer in zip(parts, answers, strict=True):
        assert same(answer["y"], part["x"])


KINDS = ("FP32", "BF16", "BOOL", "UINT8", "BYTES")


@given(requests((-1, 2), ragged=False, datatypes=KINDS))
def test_identity_of_equal_shapes(drawn: tuple[str, list[Tensors]]) -> None:
    datatype, parts = drawn
    shape = (-1, -1, 2)
    identity(layout(spec("x", shape, datatype), outputs=(spec("y", shape, datatype),)), parts)


@given(requests((-1, 2, -1), ragged=True, datatypes=KINDS), st.sampled_from(["0", "1"]))
def test_identity_of_padded_shapes(drawn: tuple[str, list[Tensors]], pad: str) -> None:
    datatype, parts = drawn
    shape = (-1, -1, 2, -1)
    identity(
        layout(
            spec("x", shape, datatype),
            outputs=(spec("y", shape, datatype),),
            ragged=frozenset("x"),
            parameters={"pad_value": pad},
        ),
        parts,
    )


@given(requests((-1, 2, -1), ragged=True, datatypes=KINDS))
def test_identity_of_concatenated_shapes(drawn: tuple[str, list[Tensors]]) -> None:
    datatype, parts = drawn
    shape = (-1, -1, 2, -1)
    identity(
        layout(
            spec("x", shape, datatype),
            outputs=(spec("y", shape, datatype),),
            ragged=frozenset("x"),
            batch_inputs=(BatchInput("n", BatchInputKind.ITEM_SHAPE, "INT32", "x"),),
            batch_outputs=(BatchOutput("y", "x"),),
        ),
        parts,
    )


reshapes: Mapping[Shape, list[Shape]] = {
    (-1, -1, 4): [(-1, -1, 2, 2), (-1, 4, -1), (-1, -1)],
    (-1, -1, 2, -1): [(-1, 2, -1, -1), (-1, -1, -1, 2)],
    (-1, 4): [(-1, 2, 2), (-1, -1), (-1, 4, 1)],
}


@given(st.data(), st.booleans())
def test_identity_of_reshaped_requests(data: st.DataObject, ragged: bool) -> None:
    caller = data.draw(st.sampled_from(list(reshapes)))
    model = data.draw(st.sampled_from(reshapes[caller]))
    datatype, parts = data.draw(requests(caller[1:], ragged=ragged, datatypes=KINDS))
    identity(
        layout(
            spec("x", caller, datatype),
            outputs=(spec("y", caller, datatype),),
            reshapes={"x": model, "y": model},
            ragged=frozenset("x") if ragged else frozenset(),
        ),
        parts,
    )


@given(hnp.array_shapes(min_dims=1, max_dims=3), st.integers(1, 3))
def test_a_padded_request_does_not_depend_on_its_mates(shape: Shape, rows: int) -> None:
    """An elementwise model answers as if the request were alone."""
    dynamic = (-1,) * (len(shape) + 1)
    ragged = layout(spec("x", dynamic), outputs=(spec("y", dynamic),), ragged=frozenset("x"))
    part = {"x": numbers(rows, *shape)}
    larger = {"x": numbers(1, *(size + 1 for size in shape))}
    stacked = ragged.stack([larger, part])
    _, answer = ragged.split({"y": stacked["x"] + 1}, [larger, part], [1, rows])
    assert same(answer["y"], part["x"] + 1)
