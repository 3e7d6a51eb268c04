"""A model that draws, from noisy digits to a published version, on a tiny recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from onnx import numpy_helper
from PIL import Image

from serving.diffusion.settings import DiffusionSettings
from serving.pbtxt import read_config
from serving.repository import verify_checksums
from tests.training.conftest import Slipway
from training.errors import PublishRefused
from training.parity import ParityReport
from training.recipe import override
from training.recipes.digits_diffusion import digits_diffusion
from training.runs import RunDirectory
from training.split import Indices
from training.tasks.image_classification.images import Images, open_images
from training.tasks.image_generation import network
from training.tasks.image_generation.evaluate import (
    compare_with_held_out,
    frechet_distance,
    seek_copies,
)
from training.tasks.image_generation.network import Averaged, Denoiser
from training.tasks.image_generation.publication import DiffusionPublication
from training.tasks.image_generation.recipe import Sampling
from training.tasks.image_generation.report import DiffusionReport
from training.tasks.image_generation.sampling import draw, from_pixels, to_pixels
from training.tasks.image_generation.steps import SCHEDULERS
from training.tasks.image_generation.verify import verify
from training.tasks.image_generation.workload import DiffusionWorkload

TINY = ("train", "digits-diffusion", "--tiny")
RECIPE = digits_diffusion(tiny=True)
WEIGHTS = "checkpoint/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, slipway: Slipway) -> RunDirectory:
    """Trained and exported."""
    run = RunDirectory(tmp_path_factory.mktemp("shared") / "drawings")
    for command in ((*TINY, "--run-dir", run.path), ("export", run.path)):
        result = slipway(*command)
        assert result.exit_code == 0, result.output
    return run


@pytest.fixture(scope="module")
def workload() -> DiffusionWorkload:
    return DiffusionWorkload(RECIPE, open_images(RECIPE.data, None))


# The network


def test_the_average_follows_what_is_trained_and_draws(workload: DiffusionWorkload) -> None:
    torch.manual_seed(0)
    unet = network.build(RECIPE, 10)
    model = Averaged(Denoiser(unet), decay=0.9)
    inputs = torch.randn(2, 1, 16, 16), torch.tensor([3.0, 900.0]), torch.tensor([1, 10])
    first = [weight.clone() for weight in model.trained.parameters()]
    with torch.no_grad():
        for weight in model.trained.parameters():
            weight.add_(1.0)
    model.train()(*inputs)
    for average, before in zip(model.average.parameters(), first, strict=True):
        # A tenth is kept in the first step, so that the beginning is soon forgotten.
        torch.testing.assert_close(average, before + 0.9)
    assert not any(weight.requires_grad for weight in model.average.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(*inputs), model.average(*inputs))


def test_pixels_come_back_from_what_is_denoised() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    sample = from_pixels(pixels)
    assert (float(sample.min()), float(sample.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_pixels(sample), pixels)
    assert to_pixels(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_whoever_knows_the_picture_draws_it(prediction_type: str) -> None:
    recipe = override(RECIPE, [f"diffusion.prediction_type={prediction_type}"])
    scheduler = network.build_scheduler(recipe)
    pictures = torch.rand(2, 1, 16, 16) * 2.0 - 1.0

    def predict(sample: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        kept = scheduler.alphas_cumprod[timestep.long()].sqrt()[:, None, None, None]
        known = torch.cat([pictures] * 2)
        # Where it is told no class it says nothing, so guidance by 2 doubles the rest.
        noise = (sample - kept * known) / (1.0 - kept**2).sqrt()
        said = (
            noise
            if prediction_type == "epsilon"
            else (kept * sample - known) / (1.0 - kept**2).sqrt()
        )
        return torch.where((labels == 10)[:, None, None, None], 0.0, said / 2.0)

    settings = Sampling(num_inference_steps=20, guidance_scale=2.0)
    classes = np.array([3, 4])
    drawn = draw(predict, scheduler, classes, (1, 16, 16), settings, unconditional=10, seed=5)
    assert np.abs(drawn.astype(int) - to_pixels(pictures).astype(int)).max() <= 1


def test_each_picture_has_a_seed_of_its_own(workload: DiffusionWorkload) -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(network.build(RECIPE, 10)).eval()
    settings = Sampling(num_inference_steps=2, guidance_scale=1.5)

    def drawn(classes: list[int], seed: int) -> Images:
        return draw(
            denoiser,
            workload.scheduler,
            np.array(classes),
            (1, 16, 16),
            settings,
            unconditional=10,
            seed=seed,
        )

    three = drawn([1, 2, 3], seed=7)
    alone = drawn([3], seed=9)[0]
    assert np.abs(three[2].astype(int) - alone.astype(int)).max() <= 1
    assert not np.array_equal(three[0], drawn([1], seed=8)[0])


# What is judged


def normal(mean: float, deviation: float) -> np.ndarray:
    """Two independent features of exactly this mean and deviation."""
    values = np.random.default_rng(0).standard_normal((500, 2))
    values -= values.mean(axis=0)
    values = values @ np.linalg.inv(np.linalg.cholesky(np.cov(values, rowvar=False))).T
    return mean + deviation * values


def test_the_frechet_distance_of_gaussians() -> None:
    assert frechet_distance(normal(0, 1), normal(0, 1)) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(normal(0, 1), normal(3, 1)) == pytest.approx(2 * 3.0**2)
    assert frechet_distance(normal(0, 1), normal(1, 3)) == pytest.approx(2 * (1.0 + 2.0**2))


def test_distances_are_of_equally_many_pictures() -> None:
    chance = np.random.default_rng(0)
    classes, real_classes = np.arange(400) % 4, np.arange(200) % 4
    alike = compare_with_held_out(
        chance.standard_normal((400, 8)), classes, chance.standard_normal((200, 8)), real_classes
    )
    assert alike is not None
    assert alike.ratio == pytest.approx(1.0, abs=0.25)
    few = chance.standard_normal((8, 8))
    assert compare_with_held_out(few, np.arange(8) % 4, few, np.arange(8) % 4) is None


def test_copies_are_found(workload: DiffusionWorkload) -> None:
    images, split = workload.images, workload.split
    copied = images.read(split.train[:3])
    noise = np.random.default_rng(0).integers(0, 256, copied.shape, dtype=np.uint8)
    found = seek_copies(np.concatenate([copied, noise]), images, split.train, split.held_out)
    assert found.drawn_smallest == 0.0
    assert found.copies == 0.5
    assert 0.0 < found.held_out_smallest < found.held_out_median


# A run


def test_an_epoch_shows_each_picture_as_often_as_the_recipe_says() -> None:
    recipe = override(RECIPE, ["passes=3", "batch_size=1"])
    workload = DiffusionWorkload(recipe, open_images(recipe.data, None))
    batches = workload.batches(np.random.default_rng(1))
    assert len(batches) == workload.steps
    shown: Indices = np.concatenate(batches)
    assert set(np.bincount(shown)[workload.split.train]) == {3}
    assert set(shown) == set(workload.split.train)


def test_a_run_leaves_a_checkpoint_of_diffusers(
    run: RunDirectory, workload: DiffusionWorkload
) -> None:
    unet = UNet2DModel.from_pretrained(run.checkpoint, subfolder="unet", low_cpu_mem_usage=False)
    scheduler = DDIMScheduler.from_pretrained(run.checkpoint, subfolder="scheduler")
    assert unet.config.num_class_embeds == 11
    assert unet.config.in_channels == 1
    assert scheduler.config.prediction_type == "v_prediction"
    for weight in unet.parameters():
        assert torch.equal(weight, weight.half().float())
    losses = [float(line.split(",")[3]) for line in run.metrics.read_text().splitlines()[1:]]
    assert losses[-1] < losses[0]
    for name in ("curves.png", "samples-epoch-01.png", "samples-epoch-02.png", "samples.png"):
        with Image.open(run.path / name) as picture:
            picture.load()


def test_a_run_is_judged(run: RunDirectory) -> None:
    report = DiffusionReport.load(run.report)
    assert report.samples == 200
    assert [quality.steps for quality in report.by_steps] == [2, 5]
    assert report.quality == report.by_steps[1]
    assert report.quality.frechet is not None
    assert report.quality.frechet.drawn > report.quality.frechet.real > 0.0
    assert report.classifier_accuracy > 0.97
    assert "of held-out pictures" in "\n".join(report.summary())


def test_a_run_that_was_stopped_ends_with_the_same_weights(
    run: RunDirectory, tmp_path: Path, slipway: Slipway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    command = (*TINY, "--run-dir", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionWorkload, "show", stop)
        assert slipway(*command).exit_code == 1
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["epoch-00001"]
    result = slipway(*command, "--resume")
    assert result.exit_code == 0, result.output
    for name in (WEIGHTS, "metrics.csv", "report.json", "samples-epoch-02.png"):
        assert (tmp_path / name).read_bytes() == (run.path / name).read_bytes(), name


def test_the_export_is_proven(run: RunDirectory) -> None:
    export = run.export("float32")
    parity = ParityReport.load(export / "parity.json")
    assert parity.passed
    assert {check.name for check in parity.checks} >= {
        *("difference from torch, batch of 64", "difference between batched and alone"),
        "of 255, by which pixels of 50 pictures are served unlike torch's",
        *(f"difference from diffusers in any of 5 steps of {solver}" for solver in SCHEDULERS),
    }
    assert parity.files.keys() == {
        *("unet.onnx", "diffusion.json", "model.py", "example.txt", "example.json"),
        *("samples.png", "quality-against-steps.png"),
    }
    settings = DiffusionSettings.load(export)
    assert settings.classes[7] == ("7", "seven")
    assert settings.unconditional_class == 10
    assert settings.noise.beta_schedule == "squaredcos_cap_v2"
    assert settings.noise.timestep_spacing == "trailing"
    assert settings.defaults.num_inference_steps == 5
    assert settings.defaults.guidance_scale == 1.5
    weights = (run.path / WEIGHTS).stat().st_size
    assert (export / "unet.onnx").stat().st_size < 0.75 * weights
    assert b".py" not in (export / "unet.onnx").read_bytes()


def test_a_graph_that_is_not_the_model_fails(
    run: RunDirectory, workload: DiffusionWorkload, tmp_path: Path
) -> None:
    graph = onnx.load(run.export("float32") / "unet.onnx")
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("out.bias"))
    nudged = numpy_helper.to_array(bias) + np.float32(0.01)
    bias.CopyFrom(numpy_helper.from_array(nudged, bias.name))
    (tmp_path / "unet.onnx").write_bytes(graph.SerializeToString())
    DiffusionSettings.load(run.export("float32")).save(tmp_path)
    parity = verify(tmp_path, *network.load(run.checkpoint), workload)
    assert "difference from torch, batch of 1" in [
        check.name for check in parity.checks if not check.passed
    ]


def test_from_run_to_published_version(run: RunDirectory, tmp_path: Path, slipway: Slipway) -> None:
    result = slipway("publish", run.path, "--model-repository", tmp_path)
    assert result.exit_code == 0, result.output
    model = tmp_path / "digits-diffusion"
    verify_checksums(model / "1")
    assert {path.name for path in (model / "1").iterdir()} == {
        *("unet.onnx", "diffusion.json", "model.py", "example.txt", "example.json", "samples.png"),
        *("quality-against-steps.png", "curves.png", "README.md", "manifest.json", "parity.json"),
    }
    config = read_config(model)
    assert (config.backend, config.decoupled) == ("python", True)
    assert config.parameters == {"task": "text_to_image", "stepper": "diffusion"}
    assert [f"{spec.name} {list(spec.shape)}" for spec in config.outputs] == [
        "image [-1, 16, 16, 1]"
    ]
    manifest = json.loads((model / "1" / "manifest.json").read_text())
    assert manifest["metrics"].keys() >= {"agreement", "agreement_as_served", "copies"}
    card = (model / "1" / "README.md").read_text()
    assert "held-out" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("acceptance.agreement=1.0", "is below acceptance.agreement 1.0"),
        ("acceptance.frechet_ratio=0.1", "acceptance.frechet_ratio is 0.1"),
    ],
)
def test_what_draws_badly_is_not_published(run: RunDirectory, setting: str, problem: str) -> None:
    parity = ParityReport(precision="float32", checks=(), measurements={}, files={})
    publication = DiffusionPublication(run, override(RECIPE, [setting]), "float32", parity)
    with pytest.raises(PublishRefused, match=problem):
        publication.require_quality()


def test_what_copies_is_not_published(run: RunDirectory) -> None:
    report = DiffusionReport.load(run.report)
    copies = report.nearest.model_copy(update={"copies": 0.5})
    with pytest.raises(PublishRefused, match=r"0\.5000 of the pictures are nearer to one that was"):
        report.model_copy(update={"nearest": copies}).require(
            RECIPE.acceptance.model_copy(update={"copies": 0.01}), run.path
        )


def test_int8_is_refused(run: RunDirectory, slipway: Slipway) -> None:
    result = slipway("quantize", run.path)
    assert result.exit_code == 1
    assert "is not quantised" in result.stderr


# The user's own pictures


def paint(root: Path, labels: tuple[str, ...], pictures: int) -> Path:
    for number, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        for index in range(pictures):
            colour = np.full((40, 30, 3), (250, 60 * number, 10 * index), np.uint8)
            Image.fromarray(colour).save(root / label / f"{index}.png")
    return root


def test_a_folder_of_coloured_pictures_goes_the_same_way(tmp_path: Path, slipway: Slipway) -> None:
    folder = paint(tmp_path / "trees", ("Ash", "birch"), 7)
    run = RunDirectory(tmp_path / "run")
    unguided = ("diffusion.unlabelled=0", "sampling.guidance_scale=1")
    settings = ("epochs=1", "judging.samples=10", *unguided)
    words = (word for setting in settings for word in ("--set", setting))
    train = (*TINY, "--data", folder, "--run-dir", run.path, *words)
    for command in (train, ("export", run.path)):
        result = slipway(*command)
        assert result.exit_code == 0, result.output
    assert DiffusionReport.load(run.report).quality.frechet is None
    served = DiffusionSettings.load(run.export("float32"))
    assert served.classes == (("Ash",), ("birch",))
    assert served.unconditional_class is None
    assert (served.sample.channels, served.sample.height, served.sample.width) == (3, 32, 32)
    repository = tmp_path / "repository"
    result = slipway("publish", run.path, "--model-repository", repository)
    assert result.exit_code == 0, result.output
    [output] = read_config(repository / "pictures-diffusion").outputs
    assert list(output.shape) == [-1, 32, 32, 3]


def test_classes_that_prompts_cannot_tell_apart_are_refused(
    tmp_path: Path, slipway: Slipway
) -> None:
    folder = paint(tmp_path / "trees", ("Ash", "ash"), 5)
    result = slipway(*TINY, "--data", folder, "--run-dir", tmp_path / "run")
    assert result.exit_code == 1
    assert "'Ash' and 'ash' have the same name but for capitals" in result.stderr


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("data.height=15", "data.height is 15; the 2 stages of model.widths need a multiple of 2"),
        ("model.widths=[12]", "model.widths: expected multiples of 8, got 12"),
        ("diffusion.unlabelled=0", "guidance needs diffusion.unlabelled above 0"),
        ("sampling.guidance_scale=0.5", "greater than or equal to 1, got 0.5"),
        ("data.source=folder", "say which with --data DIR, one folder per class"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    setting: str, problem: str, tmp_path: Path, slipway: Slipway
) -> None:
    result = slipway(*TINY, "--set", setting, "--run-dir", tmp_path / "run")
    assert result.exit_code == 1
    assert problem in result.stderr


def test_the_recipe_is_printed(tmp_path: Path, slipway: Slipway) -> None:
    result = slipway(
        *("train", "digits-diffusion", "--set", "data.source=folder", "--run-dir", tmp_path / "run")
    )
    lines = dict(line.split(maxsplit=1) for line in result.stdout.strip().splitlines())
    assert lines["task"] == "image_generation"
    assert lines["model.widths"] == "[32, 64, 64]"
    assert lines["acceptance.agreement"] == "0.97"
