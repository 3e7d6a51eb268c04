"""Images, step by step, against diffusers' own loop, and whoever is drawn beside them."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler

from serving.config import ModelConfig
from serving.diffusion.parameters import SolverName
from serving.diffusion.settings import NoiseSchedule
from serving.errors import InferenceFailed, InvalidRequest, ModelLoadError
from serving.pbtxt import read_config
from serving.scheduling.meter import LateMeter
from serving.scheduling.step_policy import StepPolicy
from serving.scheduling.stepping import StepScheduler
from serving.steppers.diffusion import DiffusionStepper, load
from serving.steppers.drawing import Drawing
from serving.types import InferRequest, Parameter, Tensors
from tests.drawing import CLASSES, SIZE, write_painter
from training.tasks.image_generation.steps import SCHEDULERS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# What a network without training says of noise alone would be divided by nearly nothing; of v it is
# not.
NOISE = NoiseSchedule(
    beta_schedule="squaredcos_cap_v2", timestep_spacing="leading", prediction_type="v_prediction"
)


@pytest.fixture(scope="module")
def painters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    repository = tmp_path_factory.mktemp("painters")
    networks = {
        "classes": write_painter(repository, "classes", has_classes=True, noise=NOISE),
        "free": write_painter(repository, "free", has_classes=False, noise=NOISE),
    }
    return repository, networks


@pytest.fixture(params=["classes", "free"])
def painter(
    request: pytest.FixtureRequest, painters: tuple[Path, dict[str, Any]]
) -> Iterator[tuple[DiffusionStepper, Any]]:
    repository, networks = painters
    stepper = open_stepper(repository, request.param)
    yield stepper, networks[request.param]
    stepper.close()


def open_stepper(repository: Path, name: str) -> DiffusionStepper:
    config: ModelConfig = read_config(repository / name)
    return load(config, repository / name / "1")


def asked(*prompts: str, **parameters: Parameter) -> InferRequest:
    tensor = np.array([[prompt.encode()] for prompt in prompts], np.object_)
    return InferRequest("", {"prompt": tensor}, parameters=parameters)


def stepper_has_classes(stepper: DiffusionStepper) -> bool:
    return any(spec.name == "class_labels" for spec in stepper._unet.inputs)


def begun(stepper: DiffusionStepper, request: InferRequest) -> Drawing:
    [job] = stepper.plan(request, streams=False)
    stepper.begin([job])
    return job


@torch.no_grad()
def by_diffusers(
    network: Any, scheduler: Any, steps: int, seed: int, label: int | None, guidance: float
) -> list[Any]:
    """The samples before the first step and after each."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    sample = torch.randn(1, 1, SIZE, SIZE, generator=generator) * scheduler.init_noise_sigma
    made = [sample]
    for timestep in scheduler.timesteps:
        given = scheduler.scale_model_input(sample, timestep)
        if label is None:
            output = network(given, timestep).sample
        else:
            labels = torch.tensor([len(CLASSES), label])
            without, wanted = network(given.repeat(2, 1, 1, 1), timestep, labels).sample.chunk(2)
            output = without + guidance * (wanted - without)
        draws = {"generator": generator} if isinstance(scheduler, DDPMScheduler) else {}
        sample = scheduler.step(output, timestep, sample, **draws).prev_sample
        made.append(sample)
    return made


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [3, 20])
def test_every_latent_is_that_of_diffusers(
    painter: tuple[DiffusionStepper, Any], scheduler: SolverName, steps: int
) -> None:
    stepper, network = painter
    has_classes = stepper_has_classes(stepper)
    theirs = SCHEDULERS[scheduler].from_config(NOISE.model_dump())
    expected = by_diffusers(network, theirs, steps, 7, 1 if has_classes else None, 2.0)
    guidance: dict[str, Parameter] = {"guidance_scale": 2.0} if has_classes else {}
    job = begun(
        stepper,
        asked(
            "one" if has_classes else "",
            scheduler=scheduler,
            num_inference_steps=steps,
            seed=7,
            **guidance,
        ),
    )
    for number, sample in enumerate(expected):
        scale = max(1.0, float(sample.abs().max()))
        np.testing.assert_allclose(job.sample / scale, sample[0].numpy() / scale, atol=1e-4)
        if number < steps:
            stepper.step([job])
    assert job.place == len(expected) - 1
    stepper.end(job)
    assert stepper.memory_bytes == 0


@pytest.mark.parametrize(
    ("scheduler", "pipeline"), [("ddpm", DDPMPipeline), ("ddim", DDIMPipeline)]
)
def test_images_are_those_of_the_pipeline(
    painters: tuple[Path, dict[str, Any]], scheduler: SolverName, pipeline: Any
) -> None:
    repository, networks = painters
    theirs = pipeline(networks["free"], SCHEDULERS[scheduler].from_config(NOISE.model_dump()))
    theirs.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(11)
    [expected] = theirs(generator=generator, num_inference_steps=12, output_type="np").images
    stepper = open_stepper(repository, "free")
    [news] = run(stepper, asked("", scheduler=scheduler, num_inference_steps=12, seed=11))
    difference = news.astype(int) - (255 * expected).round().astype(int)
    assert np.abs(difference).max() <= 1
    stepper.close()


def run(stepper: DiffusionStepper, request: InferRequest) -> list[Any]:
    """The images of one request, each stepped alone."""
    images = []
    for job in stepper.plan(request, streams=False):
        stepper.begin([job])
        while True:
            news = stepper.step([job])
            if news and news[-1].is_last:
                images.append(news[-1].event)
                break
        stepper.end(job)
    return images


@asynccontextmanager
async def scheduling(stepper: DiffusionStepper) -> AsyncIterator[StepScheduler[Drawing]]:
    scheduler = StepScheduler[Drawing](stepper, None, meter=LateMeter())
    try:
        yield scheduler
    finally:
        await scheduler.stop()


async def draw(scheduler: StepScheduler[Drawing], request: InferRequest) -> Any:
    return (await scheduler.infer(request, len(request.inputs["prompt"])))["image"]


async def test_an_image_is_the_same_alone_and_in_a_storm(
    painter: tuple[DiffusionStepper, Any],
) -> None:
    stepper, _ = painter
    has_classes = stepper_has_classes(stepper)
    chance = random.Random(3)

    def request(number: int) -> InferRequest:
        drawn = random.Random(number)
        guidance = {"guidance_scale": drawn.choice([0.0, 1.5, 4.0])} if has_classes else {}
        return asked(
            drawn.choice(["zero", "one", "a two"]) if has_classes else "",
            seed=number,
            scheduler=drawn.choice(list(SCHEDULERS)),
            num_inference_steps=drawn.randint(1, 30),
            **guidance,
        )

    async with scheduling(stepper) as scheduler:
        alone = [await draw(scheduler, request(number)) for number in range(32)]

        async def late(number: int) -> Any:
            await asyncio.sleep(chance.random() * 0.3)
            asking = asyncio.create_task(draw(scheduler, request(number)))
            if number % 5 == 4:
                await asyncio.sleep(chance.random() * 0.05)
                asking.cancel()
            await asyncio.wait([asking])
            return None if asking.cancelled() else asking.result()

        stormy = await asyncio.gather(*(late(number) for number in range(32)))
        left = sum(image is None for image in stormy)
        assert 0 < left < 16
        for one, other in zip(alone, stormy, strict=True):
            assert other is None or np.array_equal(one, other)
    assert stepper.memory_bytes == 0


async def test_a_stream_shows_what_comes(painter: tuple[DiffusionStepper, Any]) -> None:
    stepper, _ = painter
    prompt = "zero" if stepper_has_classes(stepper) else ""
    async with scheduling(stepper) as scheduler:
        whole = await draw(scheduler, asked(prompt, seed=1))
        for wanted, shown in ((None, 10), (0, 1), (3, 4), (50, 10)):
            wishes: dict[str, Parameter] = {} if wanted is None else {"partial_images": wanted}
            responses = scheduler.stream(asked(prompt, seed=1, **wishes), 1)
            async with aclosing(responses):
                images = [response["image"] async for response in responses]
            assert len(images) == shown
            assert np.array_equal(images[-1], whole)


async def test_rows_are_drawn_as_if_each_were_asked_for(
    painters: tuple[Path, dict[str, Any]],
) -> None:
    stepper = open_stepper(painters[0], "classes")
    async with scheduling(stepper) as scheduler:
        together = await draw(scheduler, asked("zero", "one", "one", seed=5))
        for number, prompt in enumerate(["zero", "one", "one"]):
            alone = await draw(scheduler, asked(prompt, seed=5 + number))
            assert np.array_equal(together[number : number + 1], alone)
        assert not np.array_equal(
            await draw(scheduler, asked("zero")), await draw(scheduler, asked("zero"))
        )
    stepper.close()


async def test_numbers_that_are_not_finite_fail_one_request(
    painters: tuple[Path, dict[str, Any]],
) -> None:
    stepper = open_stepper(painters[0], "free")
    compute = stepper._unet.run

    class Fragile:
        inputs = stepper._unet.inputs
        outputs = stepper._unet.outputs
        bind = stepper._unet.bind

        def run(self, inputs: Tensors) -> Tensors:
            output = compute(inputs)
            output["model_output"][inputs["timestep"] == 500] = np.nan
            return output

    stepper._unet = Fragile()
    async with scheduling(stepper) as scheduler:
        # Of these, two steps make 500 and 0, and three 666, 333 and 0.
        answers: list[Any] = await asyncio.gather(
            *(draw(scheduler, asked("", seed=1, num_inference_steps=n)) for n in (2, 3, 3)),
            return_exceptions=True,
        )
    assert isinstance(answers[0], InferenceFailed)
    assert np.array_equal(answers[1], answers[2])
    stepper.close()


@pytest.mark.parametrize(
    ("model", "prompt", "parameters", "problem"),
    [
        ("classes", "seven", {}, "prompt: expected the name of a class, such as 0, 1, 2"),
        ("classes", "a one or a two", {}, "the name of one class, got those of 1, 2"),
        ("classes", "1", {"negative_prompt": "x"}, "prompt: expected the name of a class"),
        ("classes", "1", {"width": 32}, "'width' and 'height': this model draws 16x16 only"),
        ("classes", "1", {"num_inference_steps": 0}, "'num_inference_steps'"),
        ("classes", "1", {"num_inference_steps": 1001}, "'num_inference_steps'"),
        ("classes", "1", {"scheduler": "heun"}, "parameter 'scheduler': expected 'ddpm'"),
        ("classes", "1", {"steps": 3}, "parameter 'steps' is not known; expected any of"),
        ("classes", "1", {"seed": -1}, "parameter 'seed'"),
        ("classes", "1", {"guidance_scale": float("nan")}, "parameter 'guidance_scale'"),
        ("free", "a dog", {}, "this model draws what it likes"),
        ("free", "", {"guidance_scale": 3.0}, "'guidance_scale': this model cannot be guided"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    painters: tuple[Path, dict[str, Any]],
    model: str,
    prompt: str,
    parameters: dict[str, Parameter],
    problem: str,
) -> None:
    stepper = open_stepper(painters[0], model)
    with pytest.raises(InvalidRequest) as error:
        stepper.plan(asked(prompt, **parameters), streams=False)
    assert problem in str(error.value)
    stepper.close()


def test_a_graph_that_is_not_of_its_settings_is_refused(tmp_path: Path) -> None:
    write_painter(tmp_path, "painter", has_classes=True, noise=NOISE)
    path = tmp_path / "painter/1/diffusion.json"
    document = json.loads(path.read_text())
    document.update(classes=[], unconditional_class=None)
    path.write_text(json.dumps(document))
    with pytest.raises(ModelLoadError, match=r"unet.onnx: expected the inputs sample, timestep,"):
        open_stepper(tmp_path, "painter")


def test_who_needs_more_slots_than_there_are_is_refused(tmp_path: Path) -> None:
    few = 'parameters { key: "slots" value { string_value: "1" } }'
    write_painter(tmp_path, "painter", has_classes=True, noise=NOISE, settings=few)
    stepper = open_stepper(tmp_path, "painter")
    assert stepper.plan(asked("one", guidance_scale=1.0), streams=False)
    with pytest.raises(InvalidRequest, match="needs 2 slots, and the model has 1"):
        stepper.plan(asked("one", guidance_scale=2.0), streams=False)
    stepper.close()


def test_more_than_there_is_memory_for_is_not_begun(tmp_path: Path) -> None:
    """A drawing of this size takes 2 KiB, so that a megabyte is enough for 512 of them."""
    few = 'parameters { key: "memory_mb" value { string_value: "1" } }'
    write_painter(tmp_path, "painter", has_classes=False, noise=NOISE, settings=few)
    stepper = open_stepper(tmp_path, "painter")
    policy = StepPolicy[Drawing](stepper.capacity)
    for number in range(2000):
        [job] = stepper.plan(asked("", seed=number, num_inference_steps=900), streams=False)
        policy.add(job, 0.0)
    for _ in range(3000):
        policy.decide(0.0)
    begun = 2000 - len(policy)
    assert begun <= 512 + stepper.capacity.slots
    stepper.close()
