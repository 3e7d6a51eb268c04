"""Pictures of what a text says, by three graphs and one stepper, against diffusers' pipeline."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from serving.diffusion.parameters import SolverName
from serving.errors import InferenceFailed, InvalidRequest
from serving.pbtxt import read_config
from serving.scheduling.stepping import StepScheduler
from serving.steppers.diffusion import DiffusionStepper, load
from serving.steppers.drawing import Drawing
from serving.types import Tensors
from tests.serving.test_diffusion import asked, begun, draw, scheduling
from tests.training import pipelines
from training.importing import import_checkpoint
from training.tasks.image_generation.steps import SCHEDULERS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT, UNWANTED = "a red house", "blurry"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The pipeline, and the repository with the model `painter` that was made of it."""
    directory = tmp_path_factory.mktemp("stable")
    pipelines.stable_diffusion(directory / "checkpoint")
    import_checkpoint(directory / "checkpoint", directory / "repository", "painter", None)
    make: Any = StableDiffusionPipeline
    pipeline = make.from_pretrained(directory / "checkpoint", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, directory / "repository"


@pytest.fixture
def stepper(imported: tuple[Any, Path]) -> Iterator[DiffusionStepper]:
    model = imported[1] / "painter"
    stepper = load(read_config(model), model / "1")
    yield stepper
    stepper.close()


def drawn(stepper: DiffusionStepper, job: Drawing) -> tuple[list[Any], Any]:
    """The samples after each step, and the image."""
    samples = []
    while True:
        place = job.place
        news = stepper.step([job])
        if job.place > place:
            samples.append(job.sample.copy())
        if news and news[-1].is_last:
            stepper.end(job)
            return samples, news[-1].event


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmsolver++"])
@pytest.mark.parametrize("size", [None, (16, 32)])
def test_latents_and_pixels_are_those_of_the_pipeline(
    imported: tuple[Any, Path],
    stepper: DiffusionStepper,
    scheduler: SolverName,
    size: tuple[int, int] | None,
) -> None:
    pipeline, _ = imported
    noise = stepper._settings.noise
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(noise.model_dump())
    expected: list[Any] = []

    def note(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        expected.append(tensors["latents"][0].numpy().copy())
        return {}

    height, width = size or (None, None)
    [image] = pipeline(
        PROMPT,
        negative_prompt=UNWANTED,
        num_inference_steps=6,
        guidance_scale=3.0,
        height=height,
        width=width,
        generator=torch.Generator().manual_seed(9),
        callback_on_step_end=note,
        output_type="np",
    ).images
    sizes = {} if size is None else {"height": size[0], "width": size[1]}
    job = begun(
        stepper,
        asked(
            PROMPT,
            negative_prompt=UNWANTED,
            num_inference_steps=6,
            guidance_scale=3.0,
            scheduler=scheduler,
            seed=9,
            **sizes,
        ),
    )
    samples, pixels = drawn(stepper, job)
    for ours, theirs in zip(samples, expected, strict=True):
        largest = max(1.0, float(np.abs(theirs).max()))
        np.testing.assert_allclose(ours / largest, theirs / largest, atol=1e-4)
    assert pixels.shape == image.shape
    assert np.abs(pixels.astype(int) - (255 * image).round().astype(int)).max() <= 1


async def test_sizes_and_prompts_share_steps_and_change_nothing(stepper: DiffusionStepper) -> None:
    chance = random.Random(1)

    def request(number: int) -> Any:
        drawn = random.Random(number)
        height, width = drawn.choice([(16, 16), (16, 32), (32, 16)])
        return asked(
            drawn.choice(["a red house", "two dogs", ""]),
            seed=number,
            num_inference_steps=drawn.randint(1, 8),
            guidance_scale=drawn.choice([1.0, 4.0]),
            height=height,
            width=width,
        )

    async def late(scheduler: StepScheduler[Drawing], number: int) -> Any:
        await asyncio.sleep(chance.random() * 0.2)
        asking = asyncio.create_task(draw(scheduler, request(number)))
        if number % 6 == 5:
            await asyncio.sleep(chance.random() * 0.05)
            asking.cancel()
        await asyncio.wait([asking])
        return None if asking.cancelled() else asking.result()

    async with scheduling(stepper) as scheduler:
        alone = [await draw(scheduler, request(number)) for number in range(18)]
        stormy = await asyncio.gather(*(late(scheduler, number) for number in range(18)))
        for one, other in zip(alone, stormy, strict=True):
            assert other is None or np.array_equal(one, other)
    assert stepper.memory_bytes == 0


async def test_partial_images_come_in_order(stepper: DiffusionStepper) -> None:
    async with scheduling(stepper) as scheduler:
        whole = await draw(scheduler, asked(PROMPT, seed=2, num_inference_steps=5))
        streams = [
            scheduler.stream(asked(PROMPT, seed=2, num_inference_steps=5), 1) for _ in range(3)
        ]

        async def read(stream: Any) -> list[Any]:
            async with aclosing(stream):
                return [response["image"] async for response in stream]

        for images in await asyncio.gather(*map(read, streams)):
            assert len(images) == 5
            assert np.array_equal(images[-1], whole)


async def test_a_prompt_that_cannot_be_read_fails_alone(stepper: DiffusionStepper) -> None:
    encoder: Any = stepper._text_encoder
    tokens = stepper._planner._tokens
    poison = min(set(tokens("zebra").tolist()) - set(tokens("house").tolist()))
    compute = encoder.run

    class Fragile:
        inputs, outputs, bind = encoder.inputs, encoder.outputs, encoder.bind

        def run(self, inputs: Tensors) -> Tensors:
            if (inputs["input_ids"] == poison).any():
                raise RuntimeError("cannot bear this one")
            answer: Tensors = compute(inputs)
            return answer

    stepper._text_encoder = Fragile()
    async with scheduling(stepper) as scheduler:
        answers: list[Any] = await asyncio.gather(
            *(
                draw(scheduler, asked(prompt, seed=1, num_inference_steps=2))
                for prompt in ("house", "zebra", "house")
            ),
            return_exceptions=True,
        )
    assert isinstance(answers[1], InferenceFailed)
    assert np.array_equal(answers[0], answers[2])


def test_what_does_not_fit_is_refused(stepper: DiffusionStepper) -> None:
    for wish, problem in (
        ({"width": 33}, "'width' and 'height': expected multiples of"),
        ({"width": 48, "height": 4096}, "expected at most 4 times the pixels of"),
    ):
        with pytest.raises(InvalidRequest, match=problem):
            stepper.plan(asked(PROMPT, **wish), streams=False)
    with pytest.raises(InvalidRequest, match="prompt: expected at most"):
        stepper.plan(asked("house " * 200), streams=False)


class Decoder:
    """Takes its time, counts, and may fail."""

    def __init__(self, graph: Any, *, seconds: float = 0.0, fails: bool = False):
        self.inputs, self.outputs, self.bind = graph.inputs, graph.outputs, graph.bind
        self.count = 0
        self._graph = graph
        self._seconds = seconds
        self._fails = fails

    def run(self, inputs: Tensors) -> Tensors:
        self.count += 1
        time.sleep(self._seconds)
        answer: Tensors = self._graph.run(inputs)
        if self._fails:
            answer["image"][0, 0, 0, 0] = np.nan
        return answer


async def test_who_leaves_holds_nobody_up(stepper: DiffusionStepper) -> None:
    decoder = Decoder(stepper._image_decoder, seconds=0.05)
    stepper._image_decoder = decoder
    async with scheduling(stepper) as scheduler:
        stream = scheduler.stream(asked(PROMPT, seed=1, num_inference_steps=200), 1)
        async with aclosing(stream):
            await anext(stream)
        before = decoder.count
        await draw(scheduler, asked(PROMPT, seed=2, num_inference_steps=1))
        assert decoder.count <= before + 3


async def test_pictures_that_are_not_numbers_fail(stepper: DiffusionStepper) -> None:
    stepper._image_decoder = Decoder(stepper._image_decoder, fails=True)
    async with scheduling(stepper) as scheduler:
        with pytest.raises(InferenceFailed, match="not finite"):
            await draw(scheduler, asked(PROMPT, seed=1, num_inference_steps=2))
