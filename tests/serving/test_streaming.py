"""Decoupled models: the scheduler's contract, and the engine that stands in for a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from serving.config import (
    BatchInput,
    BatchInputKind,
    Control,
    ControlKind,
    ModelConfig,
    SequenceBatching,
    SequenceStrategy,
    State,
    VersionPolicy,
)
from serving.engines.fake import FakeEngine, load
from serving.errors import Expired, InferenceFailed, InvalidRequest, Unavailable
from serving.scheduling.batch import BatchLayout
from serving.scheduling.streaming import StreamScheduler
from serving.types import NUMPY_TYPES, Array, InferRequest, Parameter, Run, Tensors, TensorSpec

REPEAT = ModelConfig(
    name="repeat_int32",
    backend="fake",
    platform="",
    max_batch_size=0,
    inputs=(
        TensorSpec("IN", "INT32", (-1,)),
        TensorSpec("DELAY", "UINT32", (-1,), optional=True),
        TensorSpec("WAIT", "UINT32", (1,), optional=True),
    ),
    outputs=(TensorSpec("OUT", "INT32", (1,)), TensorSpec("IDX", "UINT32", (1,))),
    version_policy=VersionPolicy(),
    model_filename="",
    message=model_config_pb2.ModelConfig(),
    decoupled=True,
)


def engine(config: ModelConfig = REPEAT, **parameters: str) -> FakeEngine:
    return load(replace(config, parameters=parameters), Path("models/m/1"))


def scheduler(
    engine: FakeEngine,
    *,
    instances: int = 1,
    runs: list[Run] | None = None,
    config: ModelConfig = REPEAT,
) -> StreamScheduler:
    return StreamScheduler(
        engine,
        instances=instances,
        on_run=(lambda run: None) if runs is None else runs.append,
        layout=BatchLayout(config),
    )


def request(*elements: int, **wishes: Any) -> InferRequest:
    return InferRequest("repeat_int32", {"IN": np.array(elements, np.int32)}, **wishes)


async def read(streams: StreamScheduler, sent: InferRequest) -> list[int]:
    async with aclosing(streams.stream(sent, 1)) as responses:
        return [response["OUT"].item() async for response in responses]


# The engine


def same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.tolist() == b.tolist()


async def responses(of: FakeEngine, **inputs: Array) -> list[Tensors]:
    return [response async for response in of.stream(inputs, {})]


async def test_one_response_for_every_element() -> None:
    answers = await responses(engine(), IN=np.array([[4], [2]], np.int32))
    for index, (answer, element) in enumerate(zip(answers, [4, 2], strict=True)):
        assert list(answer) == ["OUT", "IDX"]
        assert same(answer["OUT"], np.array([element], np.int32))
        assert same(answer["IDX"], np.array([index], np.uint32))


async def test_no_elements_no_responses() -> None:
    assert await responses(engine(), IN=np.zeros(0, np.int32)) == []


async def test_responses_take_the_shape_and_type_of_the_outputs() -> None:
    batched = replace(
        REPEAT,
        max_batch_size=4,
        inputs=(TensorSpec("IN", "BYTES", (-1, -1)),),
        outputs=(TensorSpec("OUT", "BYTES", (-1, -1)), TensorSpec("IDX", "BYTES", (-1, 2))),
    )
    words = np.array([[b"a", b""]], object)
    first, second = await responses(engine(batched), IN=words)
    assert (first["OUT"].tolist(), first["IDX"].tolist()) == ([[b"a"]], [[b"0", b"0"]])
    assert (second["OUT"].tolist(), second["IDX"].tolist()) == ([[b""]], [[b"1", b"1"]])


async def test_delays_are_kept() -> None:
    inputs = {
        "IN": np.array([1, 2], np.int32),
        "DELAY": np.array([20, 60], np.uint32),
        "WAIT": np.array([40], np.uint32),
    }
    began = time.monotonic()
    times = [time.monotonic() - began async for _ in engine().stream(inputs, {})]
    assert times[0] >= 0.019
    assert times[1] - times[0] >= 0.059
    assert time.monotonic() - began - times[1] >= 0.039


async def test_there_must_be_a_delay_for_every_element() -> None:
    with pytest.raises(InvalidRequest, match="'DELAY' has 1 elements for 2 responses"):
        await responses(engine(), IN=np.zeros(2, np.int32), DELAY=np.zeros(1, np.uint32))


async def test_a_chosen_response_fails() -> None:
    answers = engine(fail_every="3").stream(request(5, 6, 7).inputs, {})
    assert [(await anext(answers))["OUT"].item() for _ in range(2)] == [5, 6]
    with pytest.raises(RuntimeError, match="response 3 fails, as configured"):
        await anext(answers)


async def test_echoes_go_on_when_inputs_are_fewer() -> None:
    outputs = tuple(TensorSpec(name, kind, (-1,)) for name, kind in [("A", "INT32"), ("B", "FP32")])
    single = engine(replace(REPEAT, decoupled=False, outputs=outputs))
    echo = await single.infer({"IN": np.array([1, 2], np.int32)})
    assert echo["A"].tolist() == [1, 2]
    assert same(echo["B"], np.array([1.0, 2.0], np.float32))
    nothing = await single.infer({})
    assert same(nothing["B"], np.array([0.0], np.float32))
    scalar = await single.infer({"IN": np.array(3, np.int32)})
    assert scalar["A"].item() == 3


async def test_the_fake_model_has_what_its_config_gives_it() -> None:
    sequences = SequenceBatching(
        SequenceStrategy.DIRECT,
        controls=(Control("START", ControlKind.START, "INT32"),),
        states=(State("S_IN", "S_OUT", "FP32", (2,)),),
    )
    given = replace(
        REPEAT,
        decoupled=False,
        max_batch_size=2,
        inputs=(TensorSpec("x", "INT32", (-1, 4)),),
        outputs=(TensorSpec("y", "INT32", (-1, 4)),),
        reshapes={"x": (-1, 2, 2), "y": (-1, 2, 2)},
    )
    fake = engine(replace(given, sequences=sequences))
    assert [(spec.name, spec.shape) for spec in fake.inputs] == [
        ("x", (-1, 2, 2)),
        ("START", (-1, 1)),
        ("S_IN", (-1, 2)),
    ]
    state = np.ones((1, 2), np.float32)
    outputs = await fake.infer({"x": np.zeros((1, 2, 2), np.int32), "S_IN": state})
    assert outputs["S_OUT"] is state
    ragged = engine(
        replace(
            given,
            ragged=frozenset("x"),
            batch_inputs=(BatchInput("n", BatchInputKind.ELEMENT_COUNT, "INT32", "x"),),
        )
    )
    assert [(spec.name, spec.shape) for spec in ragged.inputs] == [("x", (-1,)), ("n", (-1,))]


# The scheduler


async def test_a_stream_is_stamped_and_told_of() -> None:
    runs: list[Run] = []
    streams = scheduler(engine(delay_ms="10"), runs=runs)
    sent = request(3, 4)
    assert await read(streams, sent) == [3, 4]
    stamps = sent.stamps
    assert 0 < stamps.queued <= stamps.batched <= stamps.started
    assert stamps.answered == stamps.computed >= stamps.started + 0.019
    assert runs == [Run(1, stamps.batched, stamps.started, stamps.computed, stamps.answered)]
    await streams.stop()


async def test_others_wait_in_order_of_arrival() -> None:
    fake = engine(delay_ms="2")
    streams = scheduler(fake)
    finished: list[int] = []

    async def call(number: int) -> None:
        assert await read(streams, request(number, number)) == [number, number]
        finished.append(number)

    tasks = [asyncio.create_task(call(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert (streams.depth, fake.running) == (4, 1)
    await asyncio.gather(*tasks)
    assert finished == list(range(5))
    assert streams.depth == 0


async def test_a_slow_reader_holds_only_its_own_stream() -> None:
    fake = engine()
    streams = scheduler(fake, instances=2)
    async with aclosing(streams.stream(request(*range(100)), 1)) as slow:
        assert (await anext(slow))["OUT"].item() == 0
        assert await read(streams, request(1, 2, 3)) == [1, 2, 3]
        assert fake.running == 1
    assert fake.running == 0
    await streams.stop()


async def test_nothing_is_computed_ahead() -> None:
    made = []

    class Counting(FakeEngine):
        async def stream(
            self, inputs: Tensors, parameters: Mapping[str, Parameter]
        ) -> AsyncGenerator[Tensors, None]:
            for number in range(100):
                made.append(number)
                yield {"OUT": np.array([number])}

    async with aclosing(scheduler(Counting(REPEAT)).stream(request(1), 1)) as answers:
        await anext(answers)
        await asyncio.sleep(0.01)
        assert made == [0]


async def test_closing_early_frees_the_instance() -> None:
    fake = engine()
    streams = scheduler(fake)
    early = streams.stream(request(1, 2, 3), 1)
    assert (await anext(early))["OUT"].item() == 1
    waiting = asyncio.create_task(read(streams, request(7)))
    await asyncio.sleep(0.01)
    assert (streams.depth, fake.running) == (1, 1)
    await early.aclose()
    assert await waiting == [7]
    await streams.stop()


async def test_a_cancelled_reader_frees_the_instance() -> None:
    fake = engine(delay_ms="10000")
    streams = scheduler(fake)
    reader = asyncio.create_task(read(streams, request(1)))
    await asyncio.sleep(0.01)
    assert fake.running == 1
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert fake.running == 0
    async with asyncio.timeout(1):
        await streams.stop()


async def test_a_request_cancelled_in_the_queue_is_never_begun() -> None:
    runs: list[Run] = []
    streams = scheduler(engine(delay_ms="10"), runs=runs)
    tasks = [asyncio.create_task(read(streams, request(i))) for i in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [outcomes[0], outcomes[2]] == [[0], [2]]
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert len(runs) == 2
    await streams.stop()


async def test_a_turn_given_to_a_request_that_is_just_cancelled_goes_on() -> None:
    streams = scheduler(engine())
    first = streams.stream(request(1), 1)
    await anext(first)
    tasks = [asyncio.create_task(read(streams, request(i))) for i in (2, 3)]
    await asyncio.sleep(0)
    await first.aclose()
    tasks[0].cancel()
    assert await tasks[1] == [3]
    assert isinstance((await asyncio.gather(tasks[0], return_exceptions=True))[0], BaseException)
    async with asyncio.timeout(1):
        await streams.stop()


@pytest.mark.parametrize("limit", ["timeout", "deadline"])
async def test_a_request_whose_time_is_up_is_never_begun(limit: str) -> None:
    streams = scheduler(engine(delay_ms="500"))
    busy = asyncio.create_task(read(streams, request(1)))
    await asyncio.sleep(0)
    soon: dict[str, float] = (
        {"timeout_s": 0.02} if limit == "timeout" else {"deadline": time.monotonic() + 0.02}
    )
    late = request(2, **soon)
    with pytest.raises(Expired):
        await read(streams, late)
    assert not busy.done()
    assert late.stamps.started == 0
    assert streams.depth == 0
    assert await busy == [1]
    with pytest.raises(Expired):
        await read(streams, request(3, deadline=time.monotonic() - 1))
    await streams.stop()


async def test_a_failure_ends_the_stream_and_frees_the_instance() -> None:
    runs: list[Run] = []
    fake = engine(fail_every="2")
    streams = scheduler(fake, runs=runs)
    answers = streams.stream(request(1, 2, 3), 1)
    assert (await anext(answers))["OUT"].item() == 1
    with pytest.raises(InferenceFailed, match="response 2 fails"):
        await anext(answers)
    assert (runs, fake.running) == ([], 0)
    wrong = request(1, 2)
    wrong.inputs["DELAY"] = np.zeros(1, NUMPY_TYPES["UINT32"])
    with pytest.raises(InvalidRequest, match="'DELAY'"):
        await read(streams, wrong)
    assert await read(streams, request(1)) == [1]
    await streams.stop()


async def test_stop_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    streams = scheduler(engine(delay_ms="5"))
    tasks = [asyncio.create_task(read(streams, request(i))) for i in range(3)]
    await asyncio.sleep(0)
    stopping = asyncio.create_task(streams.stop())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await read(streams, request(9))
    assert await asyncio.gather(*tasks) == [[0], [1], [2]]
    async with asyncio.timeout(1):
        await stopping


async def test_giving_up_fails_what_waits_and_lets_stream_what_streams() -> None:
    streams = scheduler(engine(delay_ms="20"))
    tasks = [asyncio.create_task(read(streams, request(i, i))) for i in range(3)]
    await asyncio.sleep(0)
    streams.give_up()
    first, *rest = await asyncio.gather(*tasks, return_exceptions=True)
    assert first == [0, 0]
    assert [type(outcome) for outcome in rest] == [Unavailable, Unavailable]
    async with asyncio.timeout(1):
        await streams.stop()


@dataclass(frozen=True)
class Caller:
    elements: int
    reads: int
    timeout_s: float
    cancel_after_s: float | None
    pause_s: float


callers = st.builds(
    Caller,
    elements=st.integers(0, 4),
    reads=st.integers(0, 5),
    timeout_s=st.sampled_from([0.0, 0.0, 0.001, 0.004]),
    cancel_after_s=st.sampled_from([None, None, 0.0, 0.002]),
    pause_s=st.sampled_from([0.0, 0.0, 0.001]),
)


@given(callers=st.lists(callers, max_size=30), instances=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_no_instance_is_ever_lost(callers: list[Caller], instances: int) -> None:
    most_running = 0

    async def call(streams: StreamScheduler, fake: FakeEngine, caller: Caller) -> None:
        nonlocal most_running
        sent = request(*range(caller.elements), timeout_s=caller.timeout_s)
        got = []
        try:
            async with asyncio.timeout(caller.cancel_after_s):
                async with aclosing(streams.stream(sent, 1)) as responses:
                    async for response in responses:
                        most_running = max(most_running, fake.running)
                        got.append(response["OUT"].item())
                        if len(got) >= caller.reads:
                            break
        except (TimeoutError, Expired, InferenceFailed):
            pass
        assert got == list(range(len(got)))

    async def scenario() -> None:
        fake = engine(delay_ms="0.5", fail_every="4")
        streams = scheduler(fake, instances=instances)
        tasks = []
        for caller in callers:
            tasks.append(asyncio.create_task(call(streams, fake, caller)))
            await asyncio.sleep(caller.pause_s)
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)
            await streams.stop()
        await fake.close()
        assert streams.depth == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
    assert most_running <= instances
