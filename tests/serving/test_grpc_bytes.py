"""ModelInfer's short ways of reading and writing: what they say is what protobuf says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from serving.errors import RequestError
from serving.fronts.grpc_framing import PREFIX, Aborted, MessageReader
from serving.fronts.v2_call import InferCall
from serving.fronts.v2_grpc_bytes import response_bytes
from serving.fronts.v2_grpc_messages import parse_infer, render_infer
from serving.fronts.v2_grpc_patterns import MAX_PATTERNS, Patterns
from serving.shared_memory import SharedMemory
from serving.types import NUMPY_TYPES, InferRequest, InferResponse
from tests.support import sample

MEMORY = SharedMemory(enabled=True)
TEXT = st.sampled_from(["", "m", "x", "größe", "a" * 130])
SIZES = st.lists(st.integers(0, 3), max_size=3)
NUMBERS = [name for name in NUMPY_TYPES if name != "BYTES"]


@st.composite
def requests(draw: st.DrawFn) -> Any:
    """Those that can be inferred, and some that cannot."""
    message = service_pb2.ModelInferRequest(
        model_name=draw(TEXT), model_version=draw(st.sampled_from(["", "1"])), id=draw(TEXT)
    )
    for number in range(draw(st.integers(0, 3))):
        datatype = draw(st.sampled_from([*NUMBERS, "BYTES", "FP31"]))
        shape = draw(SIZES)
        name = draw(st.sampled_from([f"x{number}", "x", ""]))
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        itemsize = NUMPY_TYPES[datatype].itemsize if datatype in NUMPY_TYPES else 1
        size = int(np.prod(shape)) * itemsize
        message.raw_input_contents.append(draw(st.binary(min_size=size, max_size=size)))
    for name in draw(st.lists(st.sampled_from(["y", "z"]), max_size=2)):
        output = message.outputs.add(name=name)
        if draw(st.integers(0, 9)) == 0:
            output.parameters["classification"].int64_param = 1
    for key in draw(st.lists(st.sampled_from(["mine", "priority", "sequence_id"]), max_size=2)):
        message.parameters[key].int64_param = draw(st.integers(0, 2))
    return message


@st.composite
def rewritten(draw: st.DrawFn, message: Any) -> bytes:
    """A message's bytes, and what others may write, or break, in their place."""
    data = bytes(message.SerializeToString())
    match draw(st.integers(0, 6)):
        case 0:  # cut short
            return data[: draw(st.integers(0, len(data)))]
        case 1:  # a field again, or one that nobody knows, or a submessage to be merged
            more: bytes = service_pb2.ModelInferRequest(id=draw(TEXT)).SerializeToString()
            unknown = b"\xfa\x3f\x01z"
            return draw(st.sampled_from([data + more, unknown + data, data + unknown]))
        case 2:  # one byte that is another
            changed = bytearray(data or b"x")
            changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
            return bytes(changed)
        case 3:  # other values, another id
            for i, raw in enumerate(message.raw_input_contents):
                message.raw_input_contents[i] = bytes(len(raw))
            message.id = draw(TEXT)
            return bytes(message.SerializeToString())
        case 4:  # values moved from one input to the next
            raws = list(message.raw_input_contents)
            if len(raws) > 1:
                message.raw_input_contents[0] = raws[0] + raws[1][:1]
                message.raw_input_contents[1] = raws[1][1:]
            return bytes(message.SerializeToString())
        case 5:  # a shape whose sizes are not packed, which protobuf takes, too
            return data.replace(b"\x1a\x02\x01\x02", b"\x18\x01\x18\x02")
        case _:
            return data


def said(call: InferCall) -> Any:
    """All that a call says, to be compared."""
    request = call.request
    return (
        [(name, each.dtype, each.shape, each.tobytes()) for name, each in request.inputs.items()],
        (request.model_name, request.model_version, request.id, request.outputs),
        (request.priority, request.timeout_s, request.sequence, dict(request.parameters)),
        (call.wishes, call.binary_by_default, call.wants_empty_final),
    )


class AnyModel:
    """To which every request is welcome."""

    def rows(self, request: InferRequest) -> int:
        return 1


MODEL = AnyModel()


def by_protobuf(data: bytes) -> InferCall | None:
    try:
        return parse_infer(service_pb2.ModelInferRequest.FromString(data), MEMORY)
    except (DecodeError, RequestError):
        return None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_is_known_is_what_protobuf_says(data: st.DataObject) -> None:
    patterns: Patterns[AnyModel] = Patterns()
    messages = data.draw(st.lists(requests(), min_size=1, max_size=3))
    for message in messages:
        written = bytes(message.SerializeToString())
        call = by_protobuf(written)
        if call is not None:
            patterns.learn(written, message, call, MODEL)
    for message in messages:
        for _ in range(3):
            asked = data.draw(rewritten(message))
            known = patterns.request(asked)
            if known is not None:
                expected = by_protobuf(asked)
                assert expected is not None
                request, model = known
                assert said(InferCall(request)) == said(expected)
                assert (model, request.rows) == (MODEL, 1)


def plain(id: str = "", fill: float = 0.0, *names: str) -> Any:
    message = service_pb2.ModelInferRequest(model_name="m", id=id)
    for name in names or ("x",):
        message.inputs.add(name=name, datatype="FP32", shape=[1, 4])
        message.raw_input_contents.append(np.full(4, fill, np.float32).tobytes())
    return message


def learned(patterns: Patterns[AnyModel], message: Any) -> None:
    call = by_protobuf(message.SerializeToString())
    assert call is not None
    patterns.learn(message.SerializeToString(), message, call, MODEL)


@pytest.mark.parametrize("names", [("x",), ("a", "b")])
def test_another_id_and_other_values_are_known(names: tuple[str, ...]) -> None:
    patterns: Patterns[AnyModel] = Patterns()
    assert patterns.request(plain("", 1, *names).SerializeToString()) is None
    learned(patterns, plain("", 1, *names))
    for id in ("", "another", "ü"):
        known = patterns.request(plain(id, 2, *names).SerializeToString())
        assert known is not None
        request, _ = known
        assert request.id == id
        assert [each.tolist() for each in request.inputs.values()] == [[[2.0] * 4]] * len(names)
    assert patterns.request(plain("i" * 128, 2, *names).SerializeToString()) is None
    broken = plain("ab", 2, *names).SerializeToString().replace(b"ab", b"\xff\xfe")
    assert patterns.request(broken) is None


def test_patterns_are_bounded() -> None:
    patterns: Patterns[AnyModel] = Patterns()
    for number in range(MAX_PATTERNS + 5):
        learned(patterns, plain("", 0, f"x{number}"))
    assert patterns.request(plain("", 0, f"x{number}").SerializeToString()) is not None
    assert patterns.request(plain("", 0, "x0").SerializeToString()) is None
    assert len(patterns._known) <= MAX_PATTERNS


@settings(deadline=None)
@given(
    names=st.tuples(TEXT, st.sampled_from(["", "1"]), TEXT),
    outputs=st.dictionaries(
        TEXT, st.tuples(st.sampled_from(list(NUMPY_TYPES)), SIZES.filter(all)), max_size=3
    ),
)
@example(("m", "1", ""), {"y": ("FP32", [200, 300])})
@example(("m", "1", ""), {"y": ("FP32", [])})
@example(("m", "1", ""), {"y": ("FP32", [0, 4])})
def test_answers_are_written_as_protobuf_writes_them(
    names: tuple[str, str, str], outputs: dict[str, tuple[str, list[int]]]
) -> None:
    tensors = {
        name: sample("FP32", tuple(shape)).astype(NUMPY_TYPES[datatype])
        if datatype == "BF16" or not all(shape)
        else sample(datatype, tuple(shape))
        for name, (datatype, shape) in outputs.items()
    }
    model, version, id = names
    response = InferResponse(model, version, tensors, id)
    assert response_bytes(response) == render_infer(response).SerializeToString()


def test_answers_that_are_not_in_order_in_memory() -> None:
    tensor = np.arange(6, dtype=np.int32).reshape(2, 3).T
    response = InferResponse("m", "1", {"y": tensor})
    assert response_bytes(response) == render_infer(response).SerializeToString()


@given(
    messages=st.lists(st.tuples(st.booleans(), st.binary(max_size=50)), max_size=5),
    cuts=st.lists(st.integers(0, 300), max_size=80),
    rest=st.integers(0, 12),
)
def test_messages_however_they_are_cut(
    messages: list[tuple[bool, bytes]], cuts: list[int], rest: int
) -> None:
    data = b"".join(PREFIX.pack(flag, len(each)) + each for flag, each in messages)
    unfinished = (PREFIX.pack(0, 100) + bytes(50))[:rest]
    data += unfinished
    reader, found = MessageReader(100), []
    ends = sorted({cut for cut in cuts if cut < len(data)})
    for begin, end in zip([0, *ends], [*ends, len(data)], strict=True):
        found += reader.feed(memoryview(data)[begin:end])
    assert found == messages
    assert reader.held == len(unfinished)


def test_a_message_in_very_many_pieces() -> None:
    data = PREFIX.pack(0, 1000) + bytes(range(250)) * 4
    reader, found = MessageReader(1000), []
    for at in range(len(data)):
        found += reader.feed(data[at : at + 1])
    assert found == [(False, data[5:])]
    with pytest.raises(Aborted, match="larger than max"):
        reader.feed(PREFIX.pack(0, 1001))
