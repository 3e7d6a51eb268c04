"""The generation stepper: the tokens of transformers' `generate`, whoever generates beside.

Small random models of three architectures, exported as the shipped ones are. Texts are numbers, so
that a token is a word.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serving.engines.base import Graph
from serving.engines.onnx_graph import OnnxGraph
from serving.engines.onnx_session import SessionSettings
from serving.errors import InferenceFailed, InvalidRequest
from serving.scheduling.meter import LateMeter
from serving.scheduling.step_policy import Capacity
from serving.scheduling.stepping import StepScheduler
from serving.steppers.advance import Advance
from serving.steppers.beginnings import FINE_PADDING, alike
from serving.steppers.cache import KeyValueCache
from serving.steppers.decoding import Greedy
from serving.steppers.generation import GenerationStepper
from serving.steppers.settings import GenerationSettings
from serving.steppers.tokens import Generation
from serving.types import Array, InferRequest, Iteration, Parameter, Tensors
from tests.stepped import gpt2, llama, marian
from training.graphs.graphs import to_onnx
from training.graphs.settings import generation_settings

VOCABULARY = 400
EOS, PAD = 0, 1


class Numbers:
    """A tokenizer for texts like "12 7 301"."""

    eos = EOS
    special = frozenset({EOS, PAD})
    unsettled = frozenset[int]()
    languages: tuple[str, ...] = ()
    source_language: str | None = None

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(str(token) for token in tokens if token not in self.special)


@dataclass(frozen=True)
class Exported:
    model: Any
    settings: GenerationSettings
    directory: Path

    def stepper(
        self, *, slots: int = 16, memory_mb: int = 64, encoder: Graph | None = None
    ) -> GenerationStepper:
        if self.settings.is_encoder_decoder and encoder is None:
            encoder = self.graph("encoder.onnx")
        return GenerationStepper(
            self.graph("decoder.onnx"),
            encoder,
            self.settings,
            Numbers(),
            slots=slots,
            threads=2,
            memory_bytes=memory_mb << 20,
        )

    def graph(self, name: str) -> OnnxGraph:
        path = self.directory / name
        return OnnxGraph(path, SessionSettings(str(path)).open(path, None).session)

    def generate(self, tokens: Sequence[int], **options: Any) -> list[int]:
        """What transformers makes of it."""
        inputs = torch.tensor([list(tokens)])
        with torch.no_grad():
            output = self.model.generate(
                inputs, attention_mask=torch.ones_like(inputs), do_sample=False, **options
            )
        made: list[int] = output[0].tolist()
        made = made[1:] if self.settings.is_encoder_decoder else made[len(tokens) :]
        return [token for token in made if token not in (EOS, PAD)]


@pytest.fixture(scope="module", params=[marian, gpt2, llama], ids=["marian", "gpt2", "llama"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    build: Callable[..., Any] = request.param
    model = build(VOCABULARY, eos=EOS, pad=PAD)
    directory = tmp_path_factory.mktemp("generation")
    for name, graph in to_onnx(model).items():
        (directory / name).write_bytes(graph.SerializeToString())
    settings = GenerationSettings.model_validate(generation_settings(model), strict=False)
    return Exported(model, settings, directory)


@asynccontextmanager
async def scheduling(
    stepper: GenerationStepper, meter: LateMeter | None = None
) -> AsyncIterator[StepScheduler[Generation]]:
    stepper.warm()
    scheduler = StepScheduler(stepper, None, meter=meter or LateMeter())
    yield scheduler
    await asyncio.wait_for(scheduler.stop(), 60)
    stepper.close()


def asked(*texts: Sequence[int], **parameters: Parameter) -> InferRequest:
    column = np.empty((len(texts), 1), np.object_)
    for row, tokens in enumerate(texts):
        column[row, 0] = " ".join(map(str, tokens)).encode()
    return InferRequest("model", {"text_input": column}, parameters=parameters)


def words(outputs: Tensors) -> list[list[int]]:
    texts: Array = outputs["text_output"][:, 0]
    return [[int(word) for word in text.split()] for text in texts]


async def ask(
    scheduler: StepScheduler[Generation], tokens: Sequence[int], **parameters: Parameter
) -> list[int]:
    return words(await scheduler.infer(asked(tokens, **parameters), 1))[0]


def texts(chance: random.Random, count: int) -> list[list[int]]:
    lengths = [chance.choice([1, 2, 5, 8, 13, 16, 17, 18, 25, 33, 40]) for _ in range(count)]
    return [[chance.randrange(2, VOCABULARY) for _ in range(length)] for length in lengths]


async def test_greedy_and_beams_are_those_of_transformers(exported: Exported) -> None:
    chance = random.Random(1)
    async with scheduling(exported.stepper()) as scheduler:
        for index, tokens in enumerate(texts(chance, 20)):
            options: dict[str, Any] = {"max_new_tokens": chance.choice([1, 2, 20, 60])}
            if index % 2:
                options |= {"num_beams": 4, "length_penalty": chance.choice([0.5, 1.0, 2.0])}
            assert await ask(scheduler, tokens, **options) == exported.generate(tokens, **options)


async def test_in_a_storm_everybody_gets_what_they_get_alone(exported: Exported) -> None:
    chance = random.Random(2)
    cases: list[tuple[list[int], dict[str, Parameter]]] = []
    for index, tokens in enumerate(texts(chance, 64)):
        options: dict[str, Parameter] = {"max_new_tokens": chance.choice([1, 2, 5, 20, 60])}
        match index % 5:
            case 0:
                options |= {"num_beams": 4, "length_penalty": 0.5}
            case 1:
                options |= {"do_sample": True, "seed": index, "temperature": 1.3, "top_k": 20}
            case 2:
                options |= {"repetition_penalty": 1.3}
        cases.append((tokens, options))

    async def late(scheduler: StepScheduler[Generation], index: int, alone: list[int]) -> bool:
        tokens, options = cases[index]
        await asyncio.sleep(chance.random() * 0.2)
        task = asyncio.create_task(ask(scheduler, tokens, **options))
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.05)
            task.cancel()
        try:
            assert await task == alone
        except asyncio.CancelledError:
            return False
        return True

    # Few slots and short turns, so that many are suspended.
    stepper = exported.stepper(slots=8)
    stepper.capacity = Capacity(8, 64 << 20, stepper.capacity.unit_bytes, quantum=4)
    meter = Counting()
    async with scheduling(stepper, meter) as scheduler:
        alone = [await ask(scheduler, tokens, **options) for tokens, options in cases]
        assert meter.suspended == 0
        outcomes = await asyncio.gather(
            *(late(scheduler, index, expected) for index, expected in enumerate(alone))
        )
    assert meter.suspended > 20
    assert sum(outcomes) > 40


class Counting(LateMeter):
    def __init__(self) -> None:
        super().__init__()
        self.suspended = 0

    def iterated(self, iteration: Iteration) -> None:
        self.suspended += iteration.suspended


async def test_streams_are_the_whole_in_parts(exported: Exported) -> None:
    tokens = [5, 6, 7]
    async with scheduling(exported.stepper()) as scheduler:
        whole = await scheduler.infer(asked(tokens, max_new_tokens=30), 1)
        parts = []
        request = asked(tokens, max_new_tokens=30)
        async with aclosing(scheduler.stream(request, 1)) as responses:
            parts = [response["text_output"][0, 0] async for response in responses]
    assert b"".join(parts) == whole["text_output"][0, 0]
    assert len(parts) > 10


async def test_a_plain_text_is_looked_at_where_it_may_end(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    take = Greedy.take

    def counted(decoding: Greedy, token: int) -> Advance:
        nonlocal looks
        looks += 1
        return take(decoding, token)

    monkeypatch.setattr(Greedy, "take", counted)
    async with scheduling(exported.stepper()) as scheduler:
        whole = await ask(scheduler, [5, 6, 7], max_new_tokens=30)
        assert len(whole) > 10
        # The first token of a prompt, and the last of all.
        assert looks <= 3
        looks = 0
        await ask(scheduler, [5, 6, 7], max_new_tokens=30, min_new_tokens=1)
        assert looks >= len(whole)


async def test_rows_of_a_request_are_answered_in_their_order(exported: Exported) -> None:
    rows = texts(random.Random(3), 5)
    async with scheduling(exported.stepper(slots=2)) as scheduler:
        together = words(await scheduler.infer(asked(*rows, max_new_tokens=10), 5))
        assert together == [await ask(scheduler, row, max_new_tokens=10) for row in rows]


async def test_a_stop_string_ends_a_text(exported: Exported) -> None:
    async with scheduling(exported.stepper()) as scheduler:
        whole = await ask(scheduler, [9, 10], max_new_tokens=30)
        stop = f"{whole[4]} {whole[5]}"
        request = asked([9, 10], max_new_tokens=30, stop=stop)
        cut = (await scheduler.infer(request, 1))["text_output"][0, 0].decode()
        assert f"{' '.join(map(str, whole))} ".startswith(cut.lstrip())
        assert stop not in cut
        async with aclosing(scheduler.stream(request, 1)) as responses:
            parts = [response["text_output"][0, 0].decode() async for response in responses]
    assert "".join(parts) == cut


async def test_one_row_that_cannot_be_computed_fails_alone(exported: Exported) -> None:
    """A weight that is not a number, which only one token meets."""
    model = exported.model
    embedding = model.get_input_embeddings().weight
    if model.get_output_embeddings().weight is embedding:
        pytest.skip("the output layer has the same weights, so every text meets this one")
    kept = embedding[300].clone()
    try:
        with torch.no_grad():
            embedding[300] = float("nan")
        broken = Exported(model, exported.settings, exported.directory / "broken")
        broken.directory.mkdir(exist_ok=True)
        for name, graph in to_onnx(model).items():
            (broken.directory / name).write_bytes(graph.SerializeToString())
    finally:
        with torch.no_grad():
            embedding[300] = kept
    async with scheduling(broken.stepper()) as scheduler:
        good, bad = await asyncio.gather(
            ask(scheduler, [5, 6], max_new_tokens=3),
            ask(scheduler, [5, 300], max_new_tokens=3),
            return_exceptions=True,
        )
    assert isinstance(bad, InferenceFailed)
    assert isinstance(good, list)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=50))
def test_beginnings_waste_little_on_padding(lengths: list[int]) -> None:
    groups = list(alike(range(len(lengths)), lengths))
    assert sorted(chain.from_iterable(groups)) == list(range(len(lengths)))
    for group in groups:
        taken_in = [lengths[index] for index in group]
        padded = len(group) * max(taken_in)
        assert padded <= max(FINE_PADDING, 4 / 3 * sum(taken_in))


async def test_more_than_there_is_memory_for_waits_its_turn(exported: Exported) -> None:
    stepper = exported.stepper(slots=64, memory_mb=1)
    capacity = stepper.capacity
    held = []

    class Watching(LateMeter):
        def iterated(self, iteration: Iteration) -> None:
            held.append(stepper.memory_bytes)

    rows = texts(random.Random(4), 80)
    async with scheduling(stepper, Watching()) as scheduler:
        answers = await asyncio.gather(*(ask(scheduler, row, max_new_tokens=40) for row in rows))
        assert answers[7] == await ask(scheduler, rows[7], max_new_tokens=40)
    assert max(held) <= capacity.memory_bytes


async def test_a_source_that_cannot_be_encoded_fails_alone(exported: Exported) -> None:
    if not exported.settings.is_encoder_decoder:
        pytest.skip("has no encoder")
    poison = 7

    class Fragile(OnnxGraph):
        def run(self, inputs: Tensors) -> Tensors:
            if (inputs["input_ids"] == poison).any():
                raise RuntimeError("cannot bear this one")
            return super().run(inputs)

    path = exported.directory / "encoder.onnx"
    fragile = Fragile(path, SessionSettings(str(path)).open(path, None).session)
    rows = [[5, 6, 9], [5, poison, 9], [8, 9, 10], [11, 12]]
    async with scheduling(exported.stepper(encoder=fragile)) as scheduler:
        answers = await asyncio.gather(
            *(ask(scheduler, row, max_new_tokens=8) for row in rows), return_exceptions=True
        )
        assert isinstance(answers[1], InferenceFailed)
        for index in (0, 2, 3):
            assert answers[index] == await ask(scheduler, rows[index], max_new_tokens=8)


async def test_who_finds_no_memory_is_told_so(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = exported.stepper()
    async with scheduling(stepper) as scheduler:

        def grow(*_: object) -> None:
            raise MemoryError("no memory")

        with monkeypatch.context() as patch:
            patch.setattr(KeyValueCache, "grow", grow)
            all_at_once = [ask(scheduler, [5, 6, 7], max_new_tokens=30) for _ in range(12)]
            answers = await asyncio.wait_for(
                asyncio.gather(*all_at_once, return_exceptions=True), 20
            )
        answer = await ask(scheduler, [5, 6, 7], max_new_tokens=30)
        failed = [each for each in answers if isinstance(each, InferenceFailed)]
        assert failed
        assert {str(error) for error in failed} == {"no memory"}
        assert all(each == answer for each in answers if not isinstance(each, InferenceFailed))


@pytest.mark.parametrize(
    ("text", "parameters", "problem"),
    [
        (b"\xff", {}, r"'text_input' is not UTF-8 at byte 0"),
        (b"7 " * 9000, {}, r"has 18000 bytes, and this model reads at most"),
        (b"7 " * 200, {}, r"the input has 200 tokens; the model reads at least 1 and at most 12"),
        (b"", {}, r"the input has 0 tokens"),
        (b"7", {"max_new_tokens": 0}, r"parameter 'max_new_tokens'"),
        (b"7", {"max_new_tokens": 1000}, r"parameter 'max_new_tokens': expected at most 127"),
        (b"7", {"maximum": 3}, r"parameter 'maximum' is not known; expected any of"),
        (b"7", {"temperature": "hot"}, r"parameter 'temperature'"),
    ],
)
async def test_what_cannot_be_answered_is_refused(
    exported: Exported, text: bytes, parameters: dict[str, Parameter], problem: str
) -> None:
    async with scheduling(exported.stepper()) as scheduler:
        request = InferRequest(
            "model", {"text_input": np.array([[text]], np.object_)}, parameters=parameters
        )
        with pytest.raises(InvalidRequest, match=problem):
            await scheduler.infer(request, 1)


async def test_what_needs_more_than_there_is_is_refused(exported: Exported) -> None:
    async with scheduling(exported.stepper(slots=2)) as scheduler:
        with pytest.raises(InvalidRequest, match="needs 4 slots and more memory than"):
            await ask(scheduler, [5], num_beams=4)
