"""The scheduler's contract, with its real driver on a real event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from serving.config import Batching, ModelConfig, QueuePolicy, VersionPolicy
from serving.engines.base import Engine
from serving.errors import Expired, InferenceFailed, Overloaded, Unavailable
from serving.scheduling import gathering
from serving.scheduling.batch import BatchLayout
from serving.scheduling.dynamic import DynamicScheduler
from serving.scheduling.policy import BatchPolicy
from serving.scheduling.returns import Returns
from serving.types import InferRequest, Tensors, TensorSpec


@pytest.fixture(autouse=True, scope="module", params=["one by one", "gathered"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever their size, requests that wait are gathered, or none is."""
    with pytest.MonkeyPatch.context() as patched:
        least_bytes = 0 if request.param == "gathered" else 1 << 40
        patched.setattr(gathering, "LEAST_BYTES", least_bytes)
        yield


class Doubler(Engine):
    """y = 2x after a pause; fails at the chosen runs, and whenever a row is negative.

    Of the runs that it is given, every `at_once`-th is without the pause; 0 is none.
    """

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)

    def __init__(
        self, pause_s: float = 0.0, failing_runs: frozenset[int] = frozenset(), at_once: int = 0
    ):
        self.batches: list[int] = []
        self.order: list[float] = []
        self.running = 0
        self.most_running = 0
        self._pause_s = pause_s
        self._failing_runs = failing_runs
        self._at_once = at_once

    def infer_at_once(self, inputs: Tensors) -> Tensors | None:
        if not self._at_once or (len(self.batches) + 1) % self._at_once:
            return None
        self._begin(inputs)
        return self._end(inputs)

    async def infer(self, inputs: Tensors) -> Tensors:
        self._begin(inputs)
        try:
            await asyncio.sleep(self._pause_s)
        except asyncio.CancelledError:
            self.running -= 1
            raise
        return self._end(inputs)

    def _begin(self, inputs: Tensors) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.batches.append(len(inputs["x"]))
        self.order.extend(inputs["x"][:, 0])

    def _end(self, inputs: Tensors) -> Tensors:
        self.running -= 1
        if len(self.batches) in self._failing_runs or (inputs["x"] < 0).any():
            raise ValueError("this run fails")
        return {"y": inputs["x"] * 2}

    async def close(self) -> None:
        assert self.running == 0


CONFIG = ModelConfig(
    name="doubler",
    backend="fake",
    platform="",
    max_batch_size=8,
    inputs=Doubler.inputs,
    outputs=Doubler.outputs,
    version_policy=VersionPolicy(),
    model_filename="",
    message=model_config_pb2.ModelConfig(),
)


def scheduler(
    engine: Engine, batching: Batching | None = None, *, max_rows: int = 8, instances: int = 1
) -> DynamicScheduler:
    return DynamicScheduler(
        engine,
        BatchPolicy(max_rows, batching or Batching(), returns=Returns(instances=instances)),
        BatchLayout(CONFIG),
        instances=instances,
        on_run=lambda run: None,
    )


def request(value: float, rows: int = 1, **wishes: float) -> InferRequest:
    tensor = np.full((rows, 1), value, np.float32)
    return InferRequest("doubler", {"x": tensor}, **wishes)  # type: ignore[arg-type]


async def test_requests_of_one_turn_share_a_batch() -> None:
    engine = Doubler()
    batches = scheduler(engine)
    answers = await asyncio.gather(*(batches.infer(request(i), 1) for i in range(8)))
    assert engine.batches == [8]
    assert [answer["y"].item() for answer in answers] == [2.0 * i for i in range(8)]
    await batches.stop()


async def test_an_instance_goes_on_before_answers_are_handed_out() -> None:
    engine = Doubler()
    batches = scheduler(engine, max_rows=1)
    waiting: list[int] = []

    async def ask(value: int) -> None:
        await batches.infer(request(value), 1)
        waiting.append(batches.depth)

    await asyncio.gather(*(ask(value) for value in range(3)))
    assert waiting == [1, 0, 0]
    await batches.stop()


async def test_a_cancelled_request_leaves_its_batch_mates_alone() -> None:
    engine = Doubler(pause_s=0.05)
    batches = scheduler(engine)
    tasks = [asyncio.create_task(batches.infer(request(i), 1)) for i in range(4)]
    await asyncio.sleep(0.02)
    assert engine.running == 1
    tasks[0].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert [o["y"].item() for o in outcomes[1:] if isinstance(o, dict)] == [2.0, 4.0, 6.0]
    await batches.stop()


async def test_a_request_cancelled_in_the_queue_is_not_computed() -> None:
    engine = Doubler(pause_s=0.05)
    batches = scheduler(engine, max_rows=1)
    tasks = [asyncio.create_task(batches.infer(request(i), 1)) for i in range(3)]
    await asyncio.sleep(0.02)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert engine.order == [0.0, 2.0]
    await batches.stop()


async def test_a_request_that_the_model_cannot_bear_fails_alone() -> None:
    engine = Doubler()
    batches = scheduler(engine)
    outcomes = await asyncio.gather(
        *(batches.infer(request(value), 1) for value in (1, -1, 3)), return_exceptions=True
    )
    assert isinstance(outcomes[1], InferenceFailed)
    assert [o["y"].item() for o in outcomes if isinstance(o, dict)] == [2.0, 6.0]
    await batches.stop()


async def test_a_model_that_loses_rows_fails_instead_of_misleading() -> None:
    class Loses(Doubler):
        async def infer(self, inputs: Tensors) -> Tensors:
            return {"y": inputs["x"][:1]}

    batches = scheduler(Loses())
    with pytest.raises(InferenceFailed, match="for a batch of 2 rows"):
        await batches.infer(request(1, rows=2), 2)
    await batches.stop()


async def test_a_timeout_answers_while_the_engine_is_busy() -> None:
    engine = Doubler(pause_s=0.5)
    rules = Batching(default_policy=QueuePolicy(allow_timeout_override=True))
    batches = scheduler(engine, rules)
    busy = asyncio.create_task(batches.infer(request(1), 1))
    await asyncio.sleep(0.05)
    with pytest.raises(Expired):
        await batches.infer(request(2, timeout_s=0.05), 1)
    assert engine.running == 1
    await busy
    await batches.stop()


async def test_stop_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    engine = Doubler(pause_s=0.02)
    batches = scheduler(engine, max_rows=1)
    tasks = [asyncio.create_task(batches.infer(request(i), 1)) for i in range(5)]
    await asyncio.sleep(0)
    stopping = asyncio.create_task(batches.stop())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await batches.infer(request(9), 1)
    assert [answer["y"].item() for answer in await asyncio.gather(*tasks)] == [0, 2, 4, 6, 8]
    await stopping


async def test_giving_up_fails_what_waits_and_lets_run_what_runs() -> None:
    engine = Doubler(pause_s=0.1)
    batches = scheduler(engine, max_rows=1)
    tasks = [asyncio.create_task(batches.infer(request(i), 1)) for i in range(50)]
    await asyncio.sleep(0.02)
    batches.give_up()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = Counter(type(outcome) for outcome in outcomes)
    assert kinds == {dict: 1, Unavailable: 49}
    await batches.stop()
    assert engine.running == 0


@dataclass(frozen=True)
class Caller:
    rows: int
    priority: int
    timeout_s: float
    cancel_after_s: float | None
    pause_s: float


callers = st.builds(
    Caller,
    rows=st.integers(1, 4),
    priority=st.integers(0, 3),
    timeout_s=st.sampled_from([0.0, 0.0, 0.001, 0.004]),
    cancel_after_s=st.sampled_from([None, None, None, 0.0, 0.002]),
    pause_s=st.sampled_from([0.0, 0.0, 0.0, 0.001]),
)


@given(
    callers=st.lists(callers, max_size=50),
    failing_runs=st.frozensets(st.integers(1, 20)),
    instances=st.integers(1, 3),
    delay_s=st.sampled_from([0.0, 0.001]),
    max_queue_size=st.sampled_from([0, 5]),
    at_once=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_every_accepted_request_gets_exactly_one_outcome(
    callers: list[Caller],
    failing_runs: frozenset[int],
    instances: int,
    delay_s: float,
    max_queue_size: int,
    at_once: int,
) -> None:
    engine = Doubler(pause_s=0.001, failing_runs=failing_runs, at_once=at_once)
    rules = Batching(
        max_queue_delay_s=delay_s,
        preferred_batch_sizes=(4,),
        priority_levels=3,
        default_priority_level=2,
        default_policy=QueuePolicy(max_queue_size=max_queue_size, allow_timeout_override=True),
    )

    async def call(batches: DynamicScheduler, number: int, caller: Caller) -> str:
        sent = request(
            number + 1, caller.rows, priority=caller.priority, timeout_s=caller.timeout_s
        )
        try:
            async with asyncio.timeout(caller.cancel_after_s):
                outputs = await batches.infer(sent, caller.rows)
        except Overloaded:
            return "refused"
        except TimeoutError:
            return "cancelled"
        except Expired:
            return "expired"
        except InferenceFailed:
            return "failed"
        assert outputs["y"].tolist() == [[2.0 * (number + 1)]] * caller.rows
        return "answered"

    async def scenario() -> list[str]:
        batches = scheduler(engine, rules, instances=instances)
        tasks = []
        for number, caller in enumerate(callers):
            tasks.append(asyncio.create_task(call(batches, number, caller)))
            await asyncio.sleep(caller.pause_s)
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(*tasks)
            await batches.stop()
        assert batches.depth == 0
        assert engine.running == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return outcomes

    outcomes = asyncio.run(scenario())
    assert len(outcomes) == len(callers)
    assert all(rows <= 8 for rows in engine.batches)
    assert engine.most_running <= instances
    if instances == 1 and not failing_runs:
        for level in (1, 2, 3):
            numbers = [
                int(value) - 1
                for value in dict.fromkeys(engine.order)
                if (callers[int(value) - 1].priority or 2) == level
            ]
            assert numbers == sorted(numbers)
