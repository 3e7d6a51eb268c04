"""The sequence scheduler's contract, with its real driver on a real event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from serving.config import (
    Control,
    ControlKind,
    ModelConfig,
    SequenceBatching,
    SequenceStrategy,
    State,
    VersionPolicy,
)
from serving.engines.base import Engine
from serving.errors import Expired, InferenceFailed, InvalidRequest, ModelLoadError, Unavailable
from serving.scheduling.batch import BatchLayout
from serving.scheduling.sequence import SequenceScheduler
from serving.types import InferRequest, Run, SequenceStep, Tensors, TensorSpec

DIRECT, OLDEST = SequenceStrategy.DIRECT, SequenceStrategy.OLDEST

START = Control("START", ControlKind.START, "INT32")
END = Control("END", ControlKind.END, "BOOL")
READY = Control("READY", ControlKind.READY, "FP32", -1.0, 1.0)
CORRID = Control("CORRID", ControlKind.CORRID, "UINT64")
SUM = State("sum", "next_sum", "FP64", (1,))


class Recorder(Engine):
    """Keeps every run's inputs; y = x after a pause. Fails where a ready row is negative."""

    inputs = (TensorSpec("x", "FP64", (-1, 1)),)
    outputs = (TensorSpec("y", "FP64", (-1, 1)),)

    def __init__(self, pause_s: float = 0.0):
        self.runs: list[Tensors] = []
        self.running = 0
        self._pause_s = pause_s

    async def infer(self, inputs: Tensors) -> Tensors:
        self.runs.append(inputs)
        self.running += 1
        try:
            await asyncio.sleep(self._pause_s)
            if (inputs["x"] < 0).any():
                raise ValueError("this run fails")
            return self.compute(inputs)
        finally:
            self.running -= 1

    def compute(self, inputs: Tensors) -> Tensors:
        return {"y": inputs["x"]}

    def values(self, name: str = "x") -> list[list[Any]]:
        """One tensor of every run, flat."""
        return [run[name].ravel().tolist() for run in self.runs]

    async def close(self) -> None:
        assert self.running == 0


class Accumulator(Recorder):
    """Keeps the sums itself, one for each slot: y is the sum of its slot since START."""

    def __init__(self, pause_s: float = 0.0):
        super().__init__(pause_s)
        self._sums = np.zeros((8, 1))

    def compute(self, inputs: Tensors) -> Tensors:
        sums = self._sums[: len(inputs["x"])]
        sums[inputs["START"] == 1] = 0
        sums += np.where(inputs["READY"] > 0, inputs["x"], 0)
        return {"y": sums.copy()}


class ImplicitSum(Recorder):
    """Lets the server keep the sum."""

    def compute(self, inputs: Tensors) -> Tensors:
        total = inputs["sum"] + inputs["x"]
        return {"y": total, "next_sum": total}


class Grower(Recorder):
    """Its state is all the values so far; y is how many these are."""

    def compute(self, inputs: Tensors) -> Tensors:
        values = np.concatenate([inputs["past"], inputs["x"]], axis=1)
        return {"y": np.full_like(inputs["x"], values.shape[1]), "now": values}


CONFIG = ModelConfig(
    name="m",
    backend="fake",
    platform="",
    max_batch_size=4,
    inputs=(TensorSpec("x", "FP64", (-1, -1)),),
    outputs=(TensorSpec("y", "FP64", (-1, -1)),),
    version_policy=VersionPolicy(),
    model_filename="",
    message=model_config_pb2.ModelConfig(),
)


def scheduler(
    engine: Engine,
    strategy: SequenceStrategy = DIRECT,
    *,
    max_batch_size: int = 4,
    instances: int = 1,
    runs: list[Run] | None = None,
    config: ModelConfig = CONFIG,
    **rules: Any,
) -> SequenceScheduler:
    return SequenceScheduler(
        engine,
        SequenceBatching(strategy, **rules),
        max_batch_size=max_batch_size,
        instances=instances,
        on_run=(runs if runs is not None else []).append,
        layout=BatchLayout(replace(config, max_batch_size=max_batch_size)),
    )


def request(id: int | str, value: float, marks: str = "", **wishes: Any) -> InferRequest:
    """`marks` may have "S" for START and "E" for END."""
    step = SequenceStep(id, start="S" in marks, end="E" in marks)
    return InferRequest("m", {"x": np.full((1, 1), value, float)}, sequence=step, **wishes)


def send(
    sequences: SequenceScheduler, id: int | str, value: float, marks: str = "", **wishes: Any
) -> Coroutine[Any, Any, Tensors]:
    return sequences.infer(request(id, value, marks, **wishes), 1)


async def results(*calls: Coroutine[Any, Any, Tensors]) -> list[Any]:
    """The values of y, or the types of what was raised instead."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return [o["y"].item() if isinstance(o, dict) else type(o) for o in outcomes]


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (None, "inference request to model 'm' must specify a non-zero or non-empty correlation"),
        (SequenceStep(0, start=True), "must specify a non-zero or non-empty correlation ID"),
        (SequenceStep("", start=True), "must specify a non-zero or non-empty correlation ID"),
        (
            SequenceStep(7),
            "inference request for sequence 7 to model 'm' must specify the START flag on the"
            " first request of the sequence",
        ),
        (SequenceStep("a", end=True), "sequence a to model 'm' must specify the START flag"),
    ],
)
async def test_a_request_must_say_where_it_belongs(
    sequence: SequenceStep | None, message: str
) -> None:
    sequences = scheduler(Recorder())
    sent = request(1, 0)
    sent.sequence = sequence
    with pytest.raises(InvalidRequest, match=message):
        await sequences.infer(sent, 1)
    assert sequences.depth == 0
    await sequences.stop()


async def test_a_request_has_one_row() -> None:
    sequences = scheduler(Recorder())
    with pytest.raises(InvalidRequest, match="must specify batch-size 1"):
        await sequences.infer(request(1, 0, "S"), 2)
    await sequences.stop()


async def test_a_model_that_keeps_its_state_by_slot_gets_every_request_in_its_slot() -> None:
    engine = Accumulator()
    sequences = scheduler(engine, controls=(START, READY))
    assert await results(send(sequences, 1, 1, "S"), send(sequences, 3, 3, "S")) == [1, 3]
    assert await results(send(sequences, 3, 10), send(sequences, "b", 5, "SE")) == [13, 5]
    assert await results(send(sequences, 3, 100, "E"), send(sequences, "c", 7, "SE")) == [113, 7]
    assert await results(send(sequences, 1, 1, "E")) == [2]
    await sequences.stop()


async def test_controls_tell_the_model_what_each_row_is() -> None:
    engine = Recorder()
    runs: list[Run] = []
    sequences = scheduler(engine, controls=(START, END, READY, CORRID), runs=runs)
    await results(send(sequences, 2**64 - 1, 1, "S"), send(sequences, 2, 1, "S"))
    await results(send(sequences, 2, 3, "E"))
    first = engine.runs[0]
    assert {name: tensor.shape for name, tensor in first.items()} == dict.fromkeys(
        ("x", "START", "END", "READY", "CORRID"), (2, 1)
    )
    assert {name: str(tensor.dtype) for name, tensor in first.items()} == {
        "x": "float64",
        "START": "int32",
        "END": "bool",
        "READY": "float32",
        "CORRID": "uint64",
    }
    assert engine.values("CORRID") == [[2**64 - 1, 2], [0, 2]]
    assert engine.values("START") == [[1, 1], [0, 0]]
    assert engine.values("END") == [[False, False], [False, True]]
    assert engine.values("READY") == [[1, 1], [-1, 1]]
    assert engine.values() == [[1, 1], [0, 3]]
    assert [run.rows for run in runs] == [2, 1]
    assert all(run.batched <= run.started <= run.computed <= run.answered for run in runs)
    await sequences.stop()


async def test_an_empty_row_of_strings_has_empty_strings() -> None:
    class Strings(Recorder):
        async def infer(self, inputs: Tensors) -> Tensors:
            self.runs.append(inputs)
            return {"y": inputs["x"]}

    engine = Strings()
    sequences = scheduler(engine, controls=(replace(CORRID, datatype="BYTES"),))

    def words(id: str, text: bytes, *, start: bool = False) -> InferRequest:
        inputs = {"x": np.array([[text]], object)}
        return InferRequest("m", inputs, sequence=SequenceStep(id, start))

    await asyncio.gather(*(sequences.infer(words(i, b"?", start=True), 1) for i in "ab"))
    await sequences.infer(words("b", b"!"), 1)
    assert engine.values() == [[b"?", b"?"], [b"", b"!"]]
    assert engine.values("CORRID") == [[b"a", b"b"], [b"", b"b"]]
    await sequences.stop()


@pytest.mark.parametrize(
    ("datatype", "id", "fits"),
    [
        ("UINT64", 2**64 - 1, True),
        ("UINT64", -1, False),
        ("INT64", 2**63, False),
        ("INT32", -(2**31), True),
        ("UINT32", 2**32, False),
        ("UINT64", "1", False),
        ("BYTES", "one", True),
        ("BYTES", 1, False),
    ],
)
async def test_an_id_must_fit_the_control_that_tells_it(
    datatype: str, id: int | str, fits: bool
) -> None:
    sequences = scheduler(Recorder(), controls=(replace(CORRID, datatype=datatype),))
    call = send(sequences, id, 1, "SE")
    assert await results(call) == ([1] if fits else [InvalidRequest])
    await sequences.stop()


async def test_integer_and_text_ids_never_collide() -> None:
    sequences = scheduler(ImplicitSum(), states=(SUM,))
    assert await results(send(sequences, 1, 1, "S"), send(sequences, "1", 2, "S")) == [1, 2]
    assert await results(send(sequences, 1, 1), send(sequences, "1", 2)) == [2, 4]
    await sequences.stop()


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
async def test_requests_of_one_sequence_queue_up_in_order(strategy: SequenceStrategy) -> None:
    engine = ImplicitSum()
    sequences = scheduler(engine, strategy, states=(SUM,), max_candidate_sequences=2)
    calls = [
        send(sequences, id, id * value, "S" if value == 1 else "E" if value == 4 else "")
        for value in range(1, 5)
        for id in (1, 10)
    ]
    assert await results(*calls) == [1, 10, 3, 30, 6, 60, 10, 100]
    assert engine.values() == [[1, 10], [2, 20], [3, 30], [4, 40]]
    await sequences.stop()


async def test_a_start_on_a_live_sequence_begins_anew() -> None:
    sequences = scheduler(ImplicitSum(), states=(SUM,))
    calls = [send(sequences, 1, value, marks) for value, marks in [(1, "S"), (2, ""), (3, "S")]]
    assert await results(*calls, send(sequences, 1, 4)) == [1, 3, 3, 7]
    await sequences.stop()


async def test_nothing_follows_an_end() -> None:
    sequences = scheduler(Recorder())
    calls = [send(sequences, 1, 1, "SE"), send(sequences, 1, 2), send(sequences, 1, 3, "S")]
    assert await results(*calls) == [1, InvalidRequest, 3]
    await sequences.stop()


async def test_sequences_beyond_the_slots_wait_for_one_to_end() -> None:
    engine = ImplicitSum()
    sequences = scheduler(engine, max_batch_size=1, states=(SUM,))
    assert await results(send(sequences, 1, 1, "S")) == [1]
    waiting = [asyncio.create_task(send(sequences, 2, v, m)) for v, m in [(5, "S"), (6, "E")]]
    await asyncio.sleep(0.01)
    assert sequences.depth == 2
    assert await results(send(sequences, 1, 2, "E")) == [3]
    assert [(await task)["y"].item() for task in waiting] == [5, 11]
    await sequences.stop()


async def test_an_idle_sequence_ends() -> None:
    sequences = scheduler(ImplicitSum(), max_batch_size=1, states=(SUM,), max_idle_s=0.05)
    assert await results(send(sequences, 1, 1, "S")) == [1]
    assert await results(send(sequences, 2, 5, "S")) == [5]
    assert await results(send(sequences, 1, 1), send(sequences, 2, 5)) == [InvalidRequest, 10]
    await sequences.stop()


async def test_instances_run_at_the_same_time() -> None:
    engine = Recorder(pause_s=0.02)
    sequences = scheduler(engine, max_batch_size=1, instances=2)
    calls = asyncio.gather(*(send(sequences, id, id, "SE") for id in (1, 2, 3)))
    await asyncio.sleep(0.01)
    assert engine.running == 2
    await calls
    await sequences.stop()


async def test_requests_of_different_shapes_run_apart() -> None:
    engine = Recorder()
    sequences = scheduler(engine, controls=(READY,))
    wide = request(2, 2, "S")
    wide.inputs = {"x": np.full((1, 2), 2.0)}
    await asyncio.gather(send(sequences, 1, 1, "S"), sequences.infer(wide, 1))
    assert engine.values() == [[1], [0, 0, 2, 2]]
    assert engine.values("READY") == [[1], [-1, 1]]
    await sequences.stop()


async def test_a_layout_reshapes_what_callers_send_and_get() -> None:
    flat, square = (-1, 1), (-1, 1, 1)
    config = replace(
        CONFIG,
        inputs=(TensorSpec("x", "FP64", flat),),
        outputs=(TensorSpec("y", "FP64", flat),),
        reshapes={"x": square, "y": square},
    )
    engine = Recorder()
    sequences = scheduler(engine, controls=(READY,), config=config)
    await results(send(sequences, 1, 1, "S"), send(sequences, 2, 2, "S"))
    outputs = await send(sequences, 2, 3)
    assert engine.runs[1]["x"].shape == (2, 1, 1)
    assert outputs["y"].shape == (1, 1)
    assert engine.values("READY") == [[1, 1], [-1, 1]]
    await sequences.stop()


async def test_without_a_batch_dimension_nothing_gets_one() -> None:
    engine = ImplicitSum()
    sequences = scheduler(engine, max_batch_size=0, states=(SUM,), controls=(START, READY, CORRID))
    for value, total in (1, 1), (2, 3):
        sent = request(1, value, "S" if value == 1 else "")
        sent.inputs = {"x": np.array([value], float)}
        outputs = await sequences.infer(sent, 1)
        assert outputs["y"].tolist() == [total]
    assert all(tensor.shape == (1,) for run in engine.runs for tensor in run.values())
    await sequences.stop()


async def test_the_state_of_a_dynamic_shape_grows_and_parts_sequences() -> None:
    engine = Grower()
    past = State("past", "now", "FP64", (-1,))
    sequences = scheduler(engine, OLDEST, states=(past,), max_candidate_sequences=4)
    assert await results(send(sequences, 1, 5, "S")) == [2]
    assert await results(send(sequences, 1, 6), send(sequences, 2, 7, "S")) == [3, 2]
    assert engine.values("past") == [[0], [0, 5], [0]]
    assert await results(send(sequences, 2, 8), send(sequences, 1, 9)) == [3, 4]
    await sequences.stop()


async def test_an_empty_row_has_a_state_of_the_shape_of_the_others() -> None:
    engine = Grower()
    sequences = scheduler(engine, states=(State("past", "now", "FP64", (-1,)),))
    await results(send(sequences, 1, 5, "S"), send(sequences, 2, 6, "S"))
    assert await results(send(sequences, 2, 7)) == [3]
    assert engine.values("past") == [[0, 0], [0, 0, 0, 6]]
    assert await results(send(sequences, 1, 8)) == [3]
    await sequences.stop()


@pytest.mark.parametrize(
    ("datatype", "raw", "value"),
    [
        ("FP64", np.array([2.5, 9.0]).tobytes(), 2.5),
        ("BYTES", b"\x02\0\0\0hi\x01\0\0\0!", b"hi"),
        ("BYTES", None, b""),
        ("BF16", None, 0),
    ],
)
async def test_a_sequence_begins_with_the_initial_state(
    datatype: str, raw: bytes | None, value: object
) -> None:
    class Keeps(Recorder):
        def compute(self, inputs: Tensors) -> Tensors:
            return {"y": inputs["x"], "out": inputs["in"]}

    engine = Keeps()
    sequences = scheduler(engine, states=(State("in", "out", datatype, (-1, 1), raw),))
    await results(send(sequences, 1, 1, "S"))
    assert engine.runs[0]["in"].shape == (1, 1, 1)
    assert engine.values("in") == [[value]]
    await sequences.stop()


@pytest.mark.parametrize(("datatype", "raw"), [("FP64", b"1234"), ("BYTES", b"\x02\0")])
async def test_an_initial_state_that_is_too_short_is_refused(datatype: str, raw: bytes) -> None:
    with pytest.raises(ModelLoadError, match="initial state of 'in'"):
        scheduler(Recorder(), states=(State("in", "out", datatype, (1,), raw),))


async def test_a_model_that_does_not_return_its_state_fails() -> None:
    sequences = scheduler(Recorder(), states=(SUM,))
    with pytest.raises(InferenceFailed, match="next_sum"):
        await send(sequences, 1, 1, "S")
    await sequences.stop()


async def test_a_model_that_loses_rows_fails_instead_of_misleading() -> None:
    class Loses(Recorder):
        def compute(self, inputs: Tensors) -> Tensors:
            return {"y": inputs["x"][:-1]}

    sequences = scheduler(Loses())
    with pytest.raises(InferenceFailed, match="for a batch of 1 rows"):
        await send(sequences, 1, 1, "S")
    await sequences.stop()


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
async def test_a_request_that_the_model_cannot_bear_fails_alone(
    strategy: SequenceStrategy,
) -> None:
    engine = ImplicitSum()
    sequences = scheduler(engine, strategy, states=(SUM,), max_candidate_sequences=3)
    assert await results(*(send(sequences, id, id, "S") for id in (1, 2, 3))) == [1, 2, 3]
    second = await results(*(send(sequences, id, v) for id, v in [(1, 1), (2, -1), (3, 3)]))
    assert second == [2, InferenceFailed, 6]
    alone = [[1], [0, -1], [0, 0, 3]] if strategy is DIRECT else [[1], [-1], [3]]
    assert engine.values()[2:] == alone
    assert await results(*(send(sequences, id, id, "E") for id in (1, 2, 3))) == [3, 4, 9]
    await sequences.stop()


async def test_a_request_cancelled_while_its_batch_fails_is_not_run_again() -> None:
    engine = Recorder(pause_s=0.02)
    sequences = scheduler(engine, OLDEST, max_candidate_sequences=2)
    tasks = [asyncio.create_task(send(sequences, id, -id, "S")) for id in (1, 2)]
    await asyncio.sleep(0.01)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    await sequences.stop()
    assert engine.values() == [[-1, -2], [-1]]


async def test_a_sequence_does_not_keep_its_batch_mates_state_in_memory() -> None:
    engine = ImplicitSum()
    sequences = scheduler(engine, states=(SUM,))
    await results(send(sequences, 1, 1, "S"), send(sequences, 2, 2, "S"))
    await results(send(sequences, 1, 1))
    assert engine.runs[1]["sum"].base is None
    await sequences.stop()


async def test_a_request_cancelled_in_the_queue_is_not_computed() -> None:
    engine = ImplicitSum(pause_s=0.02)
    sequences = scheduler(engine, states=(SUM,))
    tasks = [
        asyncio.create_task(send(sequences, 1, value, "S" if value == 1 else ""))
        for value in (1, 10, 100)
    ]
    await asyncio.sleep(0.01)
    assert sequences.depth == 2
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert [tasks[0].result()["y"].item(), tasks[2].result()["y"].item()] == [1, 101]
    assert engine.values() == [[1], [100]]
    await sequences.stop()


async def test_a_request_cancelled_while_it_runs_counts_as_sent() -> None:
    engine = ImplicitSum(pause_s=0.02)
    sequences = scheduler(engine, states=(SUM,))
    task = asyncio.create_task(send(sequences, 1, 1, "S"))
    await asyncio.sleep(0.01)
    task.cancel()
    assert await results(send(sequences, 1, 10)) == [11]
    await sequences.stop()


async def test_without_its_start_a_sequence_is_refused() -> None:
    engine = Recorder(pause_s=0.3)
    sequences = scheduler(engine, max_batch_size=1)
    first = asyncio.create_task(send(sequences, 1, 1, "SE"))
    start = asyncio.create_task(send(sequences, 2, 2, "S"))
    rest = asyncio.create_task(results(send(sequences, 2, 3)))
    await asyncio.sleep(0.01)
    start.cancel()
    assert await rest == [InvalidRequest]
    assert not first.done()
    await first
    assert await results(send(sequences, 2, 4)) == [InvalidRequest]
    await sequences.stop()


@pytest.mark.parametrize("wish", ["timeout_s", "deadline"])
async def test_a_timeout_answers_while_the_engine_is_busy(wish: str) -> None:
    engine = Recorder(pause_s=0.2)
    sequences = scheduler(engine, max_batch_size=1)
    busy = asyncio.create_task(send(sequences, 1, 1, "SE"))
    await asyncio.sleep(0.01)
    until = 0.02 if wish == "timeout_s" else monotonic() + 0.02
    calls = send(sequences, 2, 2, "S", **{wish: until}), send(sequences, 2, 3)
    assert await results(*calls) == [Expired, InvalidRequest]
    assert engine.running == 1
    await busy
    await sequences.stop()


async def test_stamps_tell_when_each_stage_was_reached() -> None:
    sequences = scheduler(Recorder(pause_s=0.01))
    sent = request(1, 1, "SE")
    await sequences.infer(sent, 1)
    stamps = sent.stamps
    reached = [stamps.queued, stamps.batched, stamps.started, stamps.computed, stamps.answered]
    assert reached == sorted(reached)
    assert stamps.computed - stamps.started >= 0.009
    await sequences.stop()


async def test_stop_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    engine = Recorder(pause_s=0.01)
    sequences = scheduler(engine, max_batch_size=1, max_idle_s=60.0)
    calls = [(1, "S"), (1, ""), (2, "SE"), (3, "SE")]
    accepted = asyncio.create_task(
        results(*(send(sequences, id, id, marks) for id, marks in calls))
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stopping = asyncio.create_task(sequences.stop())
    await asyncio.sleep(0)
    late = [send(sequences, 9, 9, "SE"), send(sequences, 1, 1, "E")]
    assert await results(*late) == [Unavailable] * 2
    assert await accepted == [1, 1, 2, 3]
    await stopping
    assert await results(send(sequences, 1, 1)) == [Unavailable]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_stop_does_not_wait_for_sequences_of_which_nothing_is_here() -> None:
    sequences = scheduler(Recorder(), max_idle_s=60.0)
    await results(send(sequences, 1, 1, "S"))
    async with asyncio.timeout(1):
        await sequences.stop()
    assert await results(send(sequences, 1, 1)) == [Unavailable]


async def test_giving_up_fails_what_waits_and_lets_run_what_runs() -> None:
    engine = Recorder(pause_s=0.05)
    sequences = scheduler(engine, max_batch_size=1, max_idle_s=60.0)
    calls = [(1, "S"), (1, ""), (1, "E"), (2, "S"), (2, "E")]
    outcomes = asyncio.create_task(
        results(*(send(sequences, id, id, marks) for id, marks in calls))
    )
    await asyncio.sleep(0.02)
    sequences.give_up()
    assert sequences.depth == 0
    assert await results(send(sequences, 1, 1), send(sequences, 3, 1, "S")) == [Unavailable] * 2
    assert await outcomes == [1, *[Unavailable] * 4]
    await sequences.stop()
    assert engine.running == 0


class Judge(Engine):
    """Sums like `ImplicitSum`, and checks what no model may ever see."""

    inputs = Recorder.inputs
    outputs = Recorder.outputs

    def __init__(self, failing_runs: frozenset[int]):
        self.most_running = 0
        self.seen: list[int] = []
        self.computed: set[int] = set()
        self._running: Counter[int] = Counter()
        self._batches = 0
        self._runs = 0
        self._failing_runs = failing_runs

    async def infer(self, inputs: Tensors) -> Tensors:
        ready = inputs["READY"][:, 0] == 1
        numbers = np.abs(inputs["x"][ready, 0]).astype(int).tolist()
        ids = inputs["CORRID"][ready, 0].tolist()
        assert ids
        assert ready[-1], "empty rows after the last request"
        assert not inputs["CORRID"][~ready].any()
        assert not inputs["sum"][~ready].any()
        assert (inputs["sum"][inputs["START"] == 1] == 0).all()
        self._running.update(ids)
        assert max(self._running.values()) == 1, "two of one sequence at a time"
        self._batches += 1
        self.most_running = max(self.most_running, self._batches)
        self._runs += 1
        run = self._runs
        self.seen.extend(numbers)
        try:
            await asyncio.sleep(0.001)
            if run in self._failing_runs or (inputs["x"] < 0).any():
                raise ValueError("this run fails")
            self.computed.update(numbers)
        finally:
            self._running.subtract(ids)
            self._batches -= 1
        total = inputs["sum"] + inputs["x"]
        return {"y": total, "next_sum": total}

    async def close(self) -> None:
        assert self._batches == 0


@dataclass(frozen=True)
class Caller:
    id: int
    marks: str
    fails: bool
    timeout_s: float
    cancel_after_s: float | None
    pause_s: float


callers = st.builds(
    Caller,
    id=st.integers(1, 4),
    marks=st.sampled_from(["S", "", "", "", "E", "SE"]),
    fails=st.sampled_from([False] * 7 + [True]),
    timeout_s=st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.004]),
    cancel_after_s=st.sampled_from([None, None, None, 0.0, 0.002]),
    pause_s=st.sampled_from([0.0, 0.0, 0.0, 0.001]),
)


@given(
    callers=st.lists(callers, max_size=50),
    strategy=st.sampled_from([DIRECT, OLDEST]),
    max_batch_size=st.integers(1, 3),
    instances=st.integers(1, 2),
    failing_runs=st.frozensets(st.integers(1, 20)),
    delay_s=st.sampled_from([0.0, 0.001]),
)
@settings(max_examples=100, deadline=None)
def test_every_accepted_request_gets_exactly_one_outcome(
    callers: list[Caller],
    strategy: SequenceStrategy,
    max_batch_size: int,
    instances: int,
    failing_runs: frozenset[int],
    delay_s: float,
) -> None:
    engine = Judge(failing_runs)
    # Nothing shall wait for the slot of a sequence that never ends.
    callers = [*callers, *(Caller(id, "SE", False, 0.0, None, 0.0) for id in range(1, 5))]

    async def call(sequences: SequenceScheduler, number: int, caller: Caller) -> str | float:
        value = -number if caller.fails else number
        sent = request(caller.id, value, caller.marks, timeout_s=caller.timeout_s)
        try:
            async with asyncio.timeout(caller.cancel_after_s):
                outputs = await sequences.infer(sent, 1)
        except TimeoutError:
            return "cancelled"
        except InvalidRequest:
            return "refused"
        except Expired:
            return "expired"
        except InferenceFailed:
            return "failed"
        return float(outputs["y"].item())

    async def scenario() -> list[str | float]:
        sequences = scheduler(
            engine,
            strategy,
            max_batch_size=max_batch_size,
            instances=instances,
            states=(SUM,),
            controls=(START, replace(READY, datatype="INT32", false=0), CORRID),
            max_candidate_sequences=2,
            max_queue_delay_s=delay_s,
            minimum_slot_utilization=1.0,
            max_idle_s=60.0,
        )
        tasks = []
        for number, caller in enumerate(callers, 1):
            tasks.append(asyncio.create_task(call(sequences, number, caller)))
            await asyncio.sleep(caller.pause_s)
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*tasks)
            await sequences.stop()
        assert sequences.depth == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await engine.close()
        return outcomes

    outcomes = asyncio.run(scenario())
    assert engine.most_running <= instances
    for id in range(1, 5):
        mine = [number for number, caller in enumerate(callers, 1) if caller.id == id]
        ran = [number for number in dict.fromkeys(engine.seen) if number in mine]
        assert ran == sorted(ran)
        has_begun, total = False, 0.0
        for number in mine:
            outcome, caller = outcomes[number - 1], callers[number - 1]
            if number in engine.seen:
                has_begun = has_begun or "S" in caller.marks
                assert has_begun, "it ran without a START before it"
                total = 0.0 if "S" in caller.marks else total
                total += number if number in engine.computed else 0.0
                assert outcome in (total, "cancelled") or number not in engine.computed
                assert outcome in ("failed", "cancelled", "expired") or number in engine.computed
                has_begun = "E" not in caller.marks
            elif outcome == "refused":
                assert "S" not in caller.marks
                assert not has_begun, "it was refused within a sequence"
            else:
                assert outcome in ("cancelled", "expired")
                has_begun = has_begun and not caller.marks
