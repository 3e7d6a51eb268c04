from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from serving.config import EnsembleStep, ModelConfig, VersionPolicy
from serving.errors import Expired, InferenceFailed, NotFound, SlipwayError, Unavailable
from serving.scheduling.ensemble import EnsembleScheduler
from serving.types import InferRequest, InferResponse, Run, TensorSpec
from tests.support import (
    await_true,
    metric,
    run_slipway,
    serving,
    write_config,
    write_fake,
    write_model,
)

Infer = Callable[[InferRequest], Awaitable[InferResponse]]


def ensemble(steps: list[EnsembleStep], outputs: list[str]) -> ModelConfig:
    return ModelConfig(
        name="whole",
        backend="ensemble",
        platform="ensemble",
        max_batch_size=0,
        inputs=(TensorSpec("in", "INT64", (1,)),),
        outputs=tuple(TensorSpec(name, "INT64", (1,)) for name in outputs),
        version_policy=VersionPolicy(),
        model_filename="",
        message=model_config_pb2.ModelConfig(),
        steps=tuple(steps),
    )


def step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> EnsembleStep:
    return EnsembleStep(model, "", inputs, outputs)


def request(value: int = 1, **fields: object) -> InferRequest:
    return InferRequest("whole", {"in": np.array([value])}, **fields)  # type: ignore[arg-type]


async def add(request: InferRequest) -> InferResponse:
    total = sum(request.inputs.values()) + 1
    return InferResponse(request.model_name, "1", {"sum": np.asarray(total)})


def scheduler(config: ModelConfig, infer: Infer = add) -> tuple[EnsembleScheduler, list[Run]]:
    runs: list[Run] = []
    return EnsembleScheduler(config, infer, runs.append), runs


@settings(deadline=None)
@given(st.data())
async def test_any_graph_computes_what_its_steps_do(data: st.DataObject) -> None:
    """Each step adds up some tensors that come before it, and one; given in any order."""
    expected, steps = {"in": 5}, []
    for number in range(data.draw(st.integers(1, 8), label="steps")):
        sources = data.draw(st.lists(st.sampled_from(sorted(expected)), min_size=1, max_size=3))
        expected[f"t{number}"] = sum(expected[source] for source in sources) + 1
        inputs = {f"i{position}": source for position, source in enumerate(sources)}
        steps.append(step("add", inputs, {"sum": f"t{number}"}))
    outputs = [name for name in expected if name != "in"]
    wanted = data.draw(st.sets(st.sampled_from(outputs), min_size=1))
    pauses = data.draw(st.randoms(use_true_random=False))
    assert isinstance(pauses, random.Random)

    async def slowly(request: InferRequest) -> InferResponse:
        for _ in range(pauses.randrange(5)):
            await asyncio.sleep(0)
        return await add(request)

    whole, runs = scheduler(ensemble(data.draw(st.permutations(steps)), outputs), slowly)
    answer = await whole.infer(request(5, outputs=tuple(sorted(wanted))), 1)
    assert {name: value.item() for name, value in answer.items()} == {
        name: expected[name] for name in wanted
    }
    assert [run.rows for run in runs] == [1]


async def test_only_steps_that_are_needed_are_run() -> None:
    asked: list[str] = []

    async def note(request: InferRequest) -> InferResponse:
        asked.append(request.model_name)
        return await add(request)

    steps = [
        step("first", {"i": "in"}, {"sum": "a"}),
        step("second", {"i": "a"}, {"sum": "b"}),
        step("aside", {"i": "in"}, {"sum": "c"}),
    ]
    whole, _ = scheduler(ensemble(steps, ["b", "c"]), note)
    await whole.infer(request(outputs=("c",)), 1)
    assert asked == ["aside"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Expired("too late"), Expired),
        (NotFound("gone"), Unavailable),
        (InferenceFailed("secret"), InferenceFailed),
    ],
)
async def test_a_failing_step_is_named_and_stops_the_others(
    error: SlipwayError, kind: type[SlipwayError]
) -> None:
    stopped = asyncio.Event()

    async def infer(request: InferRequest) -> InferResponse:
        if request.model_name == "bad":
            await asyncio.sleep(0.01)
            raise error
        try:
            await asyncio.sleep(10)
        finally:
            stopped.set()
        raise AssertionError

    steps = [step("bad", {"i": "in"}, {"sum": "a"}), step("slow", {"i": "in"}, {"sum": "b"})]
    whole, runs = scheduler(ensemble(steps, ["a", "b"]), infer)
    with pytest.raises(kind) as raised:
        await whole.infer(request(), 1)
    told = raised.value.where if isinstance(raised.value, InferenceFailed) else str(raised.value)
    assert told.startswith("in ensemble 'whole', step 1 (model 'bad'): ")
    assert stopped.is_set()
    assert not runs


async def test_a_caller_who_leaves_stops_the_steps() -> None:
    running = asyncio.Event()
    stopped = asyncio.Event()

    async def infer(request: InferRequest) -> InferResponse:
        running.set()
        try:
            await asyncio.sleep(10)
        finally:
            stopped.set()
        raise AssertionError

    whole, _ = scheduler(ensemble([step("slow", {"i": "in"}, {"sum": "a"})], ["a"]), infer)
    asking = asyncio.create_task(whole.infer(request(), 1))
    await running.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert stopped.is_set()


async def test_a_later_step_has_what_is_left_of_the_timeout() -> None:
    left: list[float] = []

    async def infer(request: InferRequest) -> InferResponse:
        left.append(request.timeout_s)
        await asyncio.sleep(0.05)
        return await add(request)

    steps = [step("m", {"i": "in"}, {"sum": "a"}), step("m", {"i": "a"}, {"sum": "b"})]
    whole, _ = scheduler(ensemble(steps, ["b"]), infer)
    await whole.infer(request(timeout_s=1.0), 1)
    assert left[0] > 0.99
    assert 0 < left[1] <= 0.95


CONFIG = """
platform: "ensemble"
max_batch_size: 8
input [ { name: "in" data_type: TYPE_FP32 dims: [4] } ]
output [ { name: "out" data_type: TYPE_FP32 dims: [4] } ]
ensemble_scheduling { step [
  { model_name: "double" model_version: -1
    input_map { key: "x" value: "in" } output_map { key: "y" value: "between" } },
  { model_name: "LAST" model_version: -1
    input_map { key: "x" value: "between" } output_map { key: "y" value: "out" } }
] }
"""


def write_ensemble(repository: Path, name: str, last: str) -> None:
    write_config(repository, name, CONFIG.replace("LAST", last))
    (repository / name / "1").mkdir(exist_ok=True)


def ask(client: tritonclient.http.InferenceServerClient, name: str, value: float) -> float:
    tensor = tritonclient.http.InferInput("in", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.full((1, 4), value, np.float32))
    return float(client.infer(name, [tensor]).as_numpy("out")[0, 0])


def test_served(tmp_path: Path) -> None:
    write_model(tmp_path, "double", operation="Add")
    write_fake(tmp_path, "failing", fail_every=1)
    write_ensemble(tmp_path, "again", "double")
    write_ensemble(tmp_path, "broken", "failing")
    options = (
        "--model-control-mode",
        "explicit",
        "--load-model",
        "again",
        "--load-model",
        "broken",
    )
    with (
        serving(tmp_path, *options) as server,
        tritonclient.http.InferenceServerClient(server.http) as client,
    ):
        assert ask(client, "again", 3) == 12
        with pytest.raises(
            InferenceServerException, match=r"in ensemble 'broken', step 2 \(model 'failing'\)"
        ):
            ask(client, "broken", 1)
        assert metric(server, "nv_inference_request_success", model="double") == 3
        assert metric(server, "nv_inference_request_success", model="again") == 1
        client.unload_model("again", unload_dependents=True)
        # Another ensemble still needs it.
        assert client.is_model_ready("double")
        client.unload_model("broken", unload_dependents=True)
        await_true(lambda: not client.is_model_ready("double"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("LAST", "nobody"), "step 2 (model 'nobody'): the model is not loaded"),
        (('key: "x" value: "between"', 'key: "z" value: "between"'), "has no input 'z'"),
        (("max_batch_size: 8", "max_batch_size: 100"), "the ensemble takes 100 rows"),
        (("dims: [4] } ]\noutput", "dims: [5] } ]\noutput"), "tensor 'in' is FP32 [-1, 5]"),
        (("TYPE_FP32", "TYPE_INT32"), "tensor 'in' is INT32"),
        (('value: "between" } },', 'value: "elsewhere" } },'), "'elsewhere'"),
    ],
)
def test_ensembles_that_do_not_fit(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    write_model(tmp_path, "double", operation="Add")
    write_config(tmp_path, "whole", CONFIG.replace(*change).replace("LAST", "double"))
    (tmp_path / "whole" / "1").mkdir()
    result = run_slipway("check", str(tmp_path))
    assert result.returncode == 1
    assert told in result.stdout
