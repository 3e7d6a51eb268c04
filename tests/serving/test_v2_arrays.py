"""A JSON request whose tensors' data is taken apart from it says what it says as a whole."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import ModelConfig
from serving.errors import Malformed, RequestError
from serving.fronts import v2_body
from serving.fronts.v2_arrays import MOST_ARRAYS, cut, without_data
from serving.fronts.v2_body import parse_infer, render_infer
from serving.fronts.v2_call import InferCall
from serving.fronts.v2_forms import Forms
from serving.fronts.v2_numbers import is_nested_as
from serving.fronts.v2_patterns import Patterns
from serving.pbtxt.reader import read_text
from serving.shared_memory import SharedMemory
from serving.types import InferRequest, InferResponse

CONFIG = """
backend: "fake"
input [ { name: "x" data_type: TYPE_FP32 dims: [-1] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [-1] } ]
"""
MEMORY = SharedMemory(enabled=False)


class Anything:
    """A model that takes whatever comes, its inputs by their names."""

    config: ModelConfig = read_text(CONFIG, Path("m"))

    def rows(self, request: InferRequest) -> int:
        request.inputs = {name: request.inputs[name] for name in sorted(request.inputs)}
        return 1


MODEL: Any = Anything()

IDS = ["a", "b", "x", "id", "a-1/2", "", "é", "\\", '"', '"data"[', '"data":[1]', "d" * 129]

NUMBERS = {
    "FP32": st.one_of(st.floats(-1e3, 1e3, width=32), st.integers(-9, 9)),
    "INT32": st.integers(-(2**33), 2**33),
    "UINT8": st.integers(-1, 256),
    "BOOL": st.booleans(),
    "BYTES": st.sampled_from(["", "a", '"data":[1]', "[", "]]", "\\"]),
}


def nested(elements: list[Any], sizes: list[int]) -> list[Any]:
    for size in reversed(sizes):
        elements = [elements[at : at + size] for at in range(0, len(elements), max(1, size))]
    return elements


@st.composite
def tensors(draw: st.DrawFn, name: str) -> dict[str, Any]:
    datatype = draw(st.sampled_from(["FP32", "FP32", "INT32", *NUMBERS]))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = draw(st.sampled_from([0, 0, 0, -1, 1])) + int(np.prod(shape))
    elements: list[Any] = [draw(NUMBERS[datatype]) for _ in range(max(0, count))]
    if elements and draw(st.integers(0, 9)) == 0:
        elements[-1] = draw(st.sampled_from([None, True, "1", [1], {}, 0.5, 1e40]))
    data = nested(elements, draw(st.sampled_from([[], shape[1:], shape, [2], [1], [1, 1]])))
    fields: list[tuple[str, Any]] = [
        ("name", name),
        ("datatype", datatype),
        ("shape", shape),
        ("data", data),
    ]
    if draw(st.integers(0, 5)) == 0:
        parameters = {
            "data": draw(st.sampled_from([[1], 1, "x"])),
            "id": draw(st.sampled_from("ab")),
        }
        fields.append(("parameters", parameters))
    return dict(draw(st.permutations(fields)))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    names = draw(st.sampled_from(["x", "x", "xy", "yx", "xyz"]))
    fields: list[tuple[str, Any]] = [("inputs", [draw(tensors(name)) for name in names])]
    if draw(st.booleans()):
        fields.append(("id", draw(st.sampled_from(IDS))))
    if draw(st.integers(0, 5)) == 0:
        fields.append(("data", [1]))
    document = dict(draw(st.permutations(fields)))
    if draw(st.booleans()):
        body = spaced(document, draw(st.randoms())).encode()
    else:
        style: dict[str, Any] = draw(st.sampled_from([{}, {"separators": (",", ":")}]))
        body = json.dumps(document, **style).encode()
    if draw(st.integers(0, 9)) == 0:
        body = body.replace(b'"data"', b'"d\\u0061ta"', 1)
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(body) - 1))
        other = draw(st.sampled_from([b"", b"[", b"]", b",", b"1", b'"']))
        body = body[:at] + other + body[at + 1 :]
    return body


def spaced(value: Any, random: Random) -> str:
    """JSON with a space or a line after some brackets and commas, and not after others."""
    is_lined = random.random() < 0.5

    def pause() -> str:
        return random.choice(["", "", " ", "\n"]) if is_lined else ""

    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)}:{spaced(item, random)}" for key, item in value.items())
        return "{" + ",".join(pause() + pair for pair in pairs) + pause() + "}"
    if isinstance(value, list):
        items = (spaced(item, random) for item in value)
        return "[" + ",".join(pause() + item for item in items) + pause() + "]"
    return json.dumps(value)


def said(body: bytes, least_bytes: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as changed:
        changed.setattr(v2_body, "_MANY_BYTES", least_bytes)
        try:
            return of(parse_infer(MODEL, "", body, None, MEMORY).request)
        except RequestError as error:
            return type(error), str(error)


def of(request: InferRequest) -> Any:
    return request.id, {
        name: (tensor.dtype, tensor.shape, tensor.tolist())
        for name, tensor in request.inputs.items()
    }


@settings(max_examples=500, deadline=None)
@given(bodies())
def test_apart_and_whole(body: bytes) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert said(body, 0, monkeypatch) == said(body, 1 << 30, monkeypatch)


@settings(max_examples=300, deadline=None)
@given(bodies(), bodies())
def test_what_is_known_from_one_is_right_of_another(first: bytes, second: bytes) -> None:
    patterns = Patterns()
    with pytest.MonkeyPatch.context() as monkeypatch:
        for body in (first, second, first):
            whole = said(body, 1 << 30, monkeypatch)
            known = patterns.call(MODEL, "", body, None)
            if known is not None:
                found = of(known.request)
                assert found == whole
                assert list(found[1]) == sorted(whole[1])
            elif not isinstance(whole[0], type):
                patterns.learn(MODEL, body, None, parse_infer(MODEL, "", body, None, MEMORY))


@settings(max_examples=300, deadline=None)
@given(bodies(), st.sampled_from(IDS), st.booleans(), st.lists(st.sampled_from(IDS), min_size=2))
def test_what_is_known_with_one_id_is_right_with_another(
    body: bytes, first: str, is_escaped: bool, others: list[str]
) -> None:
    patterns = Patterns()
    with pytest.MonkeyPatch.context() as monkeypatch:
        for id in (first, first, *others):
            # In place of one that is there, or as one more.
            literal = json.dumps(id, ensure_ascii=is_escaped).encode()
            sent = re.sub(rb'"id": ?"[ab]"', lambda _: b'"id":' + literal, body)  # noqa: B023
            sent = sent.replace(b"{", b'{"id":%b,' % literal, 1) if sent == body else sent
            whole = said(sent, 1 << 30, monkeypatch)
            known = patterns.call(MODEL, "", sent, None)
            if known is not None:
                assert of(known.request) == whole
            elif not isinstance(whole[0], type):
                patterns.learn(MODEL, sent, None, parse_infer(MODEL, "", sent, None, MEMORY))


def body_of(**data: Any) -> bytes:
    inputs = [
        {"name": name, "datatype": "FP32", "shape": list(np.shape(each)), "data": each}
        for name, each in data.items()
    ]
    return json.dumps({"inputs": inputs}).encode()


def test_several_and_nested_arrays_are_known() -> None:
    patterns = Patterns()
    for factor in (1.0, 2.0):
        x, y = np.full((2, 3), factor), np.full((70, 2, 2), -factor)
        body = body_of(y=y.tolist(), x=x.tolist())
        known = patterns.call(MODEL, "", body, None)
        assert (known is None) == (factor == 1.0)
        call = known or parse_infer(MODEL, "", body, None, MEMORY)
        assert (call.request.inputs["x"] == x).all()
        assert (call.request.inputs["y"] == y).all()
        patterns.learn(MODEL, body, None, call)


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("is_raw", [False, True])
def test_of_ids_one_is_enough(where: str, is_raw: bool) -> None:
    values = np.arange(4, dtype=np.float32)
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [4]}
    if is_raw:
        tensor["parameters"] = {"binary_data_size": values.nbytes}
    else:
        tensor["data"] = values.tolist()

    def sent(id: str) -> tuple[bytes, int | None]:
        pairs = [("id", id), ("inputs", [tensor])]
        text = json.dumps(dict(pairs if where == "first" else pairs[::-1])).encode()
        return (text + values.tobytes(), len(text)) if is_raw else (text, None)

    patterns = Patterns()
    body, size = sent("one")
    length = None if size is None else b"%d" % size
    patterns.learn(MODEL, body, size, parse_infer(MODEL, "", body, length, MEMORY))
    for id in ("one", "2", "a longer one-{with}/[much] in it", "d" * 128):
        known = patterns.call(MODEL, "", *sent(id))
        assert known is not None
        assert known.request.id == id
        assert known.request.inputs["x"].tolist() == values.tolist()
    for id in ("", "d" * 129, "é", '"', "\\", "\n"):
        assert patterns.call(MODEL, "", *sent(id)) is None
    # As it is kept, and no JSON.
    body = body.replace(b'"one"', b'"\0"')
    assert patterns.call(MODEL, "", body, None if size is None else size - 2) is None


@pytest.mark.parametrize("key", ["id", r"\u0069d"])
def test_another_id_in_a_text_is_not_the_calls(key: str) -> None:
    text = f'{{"{key}": "%s", "parameters": {{"id": "%s"}}, "inputs": [{{"name": "x", '
    text += '"datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": 1}}]}'
    patterns = Patterns()
    body = (text % ("a", "a")).encode() + b"1"
    length = len(body) - 1
    call = parse_infer(MODEL, "", body, b"%d" % length, MEMORY)
    patterns.learn(MODEL, body, length, call)
    known = patterns.call(MODEL, "", body, length)
    assert known is not None
    assert known.request.id == call.request.id == "a"
    for ids in (("b", "b"), ("b", "a"), ("a", "b")):
        assert patterns.call(MODEL, "", (text % ids).encode() + b"1", length) is None


def test_the_id_of_something_else_may_not_change() -> None:
    text = '{"parameters": {"id": "%s"}, "inputs": [{"name": "x", "datatype": "INT8", "shape": [1],'
    text += ' "data": [1]}]}'
    patterns = Patterns()
    body = (text % "a").encode()
    patterns.learn(MODEL, body, None, parse_infer(MODEL, "", body, None, MEMORY))
    assert patterns.call(MODEL, "", body, None) is not None
    assert patterns.call(MODEL, "", (text % "b").encode(), None) is None


def test_a_call_without_inputs_is_nothing_to_know() -> None:
    for body, size in ((b'{"inputs": []}', None), (b'{"inputs": []}', 14)):
        length = None if size is None else b"%d" % size
        call = parse_infer(MODEL, "", body, length, MEMORY)
        patterns = Patterns()
        patterns.learn(MODEL, body, size, call)
        assert patterns.call(MODEL, "", body, size) is None


def test_a_body_without_a_text_is_not_known_by_it() -> None:
    body = np.ones(4, np.float32).tobytes()
    call = parse_infer(MODEL, "", body, b"0", MEMORY)
    assert call.request.inputs["x"].tolist() == [1.0] * 4
    patterns = Patterns()
    patterns.learn(MODEL, body, 0, call)
    # Which may have been told as 00, and is refused then.
    assert patterns.call(MODEL, "", body, 0) is None


def test_an_answer_of_nothing_but_empty_tensors_is_json_also_with_an_id() -> None:
    request = InferRequest("m", {"x": np.zeros((1, 0), np.float32)}, id="a")
    call = InferCall(request, binary_by_default=True, forms=Forms())
    outputs = {"y": np.zeros((1, 0), np.float32)}
    answers = [
        render_infer(call, MODEL, InferResponse("m", "1", outputs, id), MEMORY)
        for id in ("a", "a", "b")
    ]
    assert [headers for _, headers in answers] == [[(b"content-type", b"application/json")]] * 3
    texts = [json.loads(b"".join(parts)) for parts, _ in answers]
    assert [text.pop("id") for text in texts] == ["a", "a", "b"]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("shape", [(2, 100_000), (1000, 200), (100_000, 2)])
def test_many_numbers_make_few_objects(shape: tuple[int, int]) -> None:
    rows = np.linspace(0, 1, 200_000).reshape(shape).round(4)
    body = body_of(x=rows.tolist(), y=rows[:1].tolist())
    parse_infer(MODEL, "", body, None, MEMORY)
    tracemalloc.start()
    parse_infer(MODEL, "", body, None, MEMORY)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The text, the numbers as they are read, and as they are wanted. A list of Python's floats
    # alone is 32 bytes for each.
    assert most < 2 * len(body) + 8 * rows.size + 4 * rows.size


def test_an_error_names_the_place_in_the_whole_body() -> None:
    rows = body_of(x=np.zeros((300, 5)).tolist())
    body = rows.replace(b"0.0]]", b"0.0.]]")
    with pytest.raises(Malformed, match=rf"char {body.index(b'0.0.]]') + 3}\)"):
        parse_infer(MODEL, "", body, None, MEMORY)


def test_no_more_arrays_are_cut_than_anybody_sends() -> None:
    for count, are_cut in ((MOST_ARRAYS, True), (MOST_ARRAYS + 1, False), (100_000, False)):
        body = b'"data":[1],' * count
        pieces, arrays = cut(body)
        assert len(arrays) == (count if are_cut else 0)
        assert len(pieces) == len(arrays) + 1
        assert without_data(pieces) is None


def test_a_text_with_a_bracket_stands_before_rows() -> None:
    rows = np.arange(4000).reshape(4, 1000).tolist()
    inputs = [
        {"name": "p", "datatype": "BYTES", "shape": [1], "data": ["[INST] " + "hello " * 800]},
        {"name": "x", "datatype": "FP32", "shape": [4, 1000], "data": rows},
    ]
    body = json.dumps({"inputs": inputs}).encode()
    request = parse_infer(MODEL, "", body, None, MEMORY).request
    assert request.inputs["p"].item().startswith(b"[INST] hello")
    assert request.inputs["x"].tolist() == rows


def test_a_key_that_is_written_with_an_escape_is_found_nevertheless() -> None:
    patterns = Patterns()
    tensor = b'{"name":"x","datatype":"FP32","shape":[1,1],"d\\u0061ta":[1]}'
    body = b'{"data":[9],"inputs":[%b]}' % tensor
    for _ in range(2):
        call = patterns.call(MODEL, "", body, None) or parse_infer(MODEL, "", body, None, MEMORY)
        patterns.learn(MODEL, body, None, call)
        assert call.request.inputs["x"].tolist() == [[1.0]]


@pytest.mark.parametrize("shape", [(2**31, 2**31), (2**20,) + (1,) * 20, (0, 5), (5, 0), ()])
def test_a_shape_that_the_text_cannot_have_costs_nothing(shape: tuple[int, ...]) -> None:
    tracemalloc.start()
    assert not is_nested_as(shape, b"[[1],[2]]")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000
