"""`slipway import` of `diffusers` pipelines: their graphs, their settings, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file

from serving.diffusion.settings import Decoder, DiffusionSettings, NoiseSchedule, Sample, Text
from serving.pbtxt import read_config
from serving.repository import verify_checksums
from serving.text import load_tokenizer
from tests.training import pipelines
from tests.training.pipelines import library
from tests.training.test_importing import sentence, slipway_import
from training.errors import CheckpointError
from training.parity import ParityReport
from training.pipelines.index import Index
from training.pipelines.noise import read_noise
from training.pipelines.pipeline import Pipeline
from training.pipelines.proof import prove

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Made:
    directory: Path
    version: Path
    output: str

    def run(self, graph: str, **inputs: npt.NDArray[Any]) -> Array:
        session = ort.InferenceSession(
            self.version / f"{graph}.onnx", providers=["CPUExecutionProvider"]
        )
        [output] = session.run(None, inputs)
        array: Array = output
        return array


def imported(directory: Path) -> Made:
    repository = directory.parent / "repository"
    result = slipway_import(directory, "--model-repository", repository, "--task", "text_to_image")
    assert result.exit_code == 0, result.exc_info
    version = repository / directory.name / "1"
    verify_checksums(version)
    assert ParityReport.load(version / "parity.json").passed
    for path in version.iterdir():
        assert str(directory.parent).encode() not in path.read_bytes(), path.name
    return Made(directory, version, result.output)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("pipelines") / "pixels"
    pipelines.ddpm(directory, variance_type="fixed_large", beta_schedule="squaredcos_cap_v2")
    return imported(directory)


@pytest.fixture(scope="module")
def by_class(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("pipelines") / "by-class"
    pipelines.ddim_by_class(directory, prediction_type="v_prediction")
    return imported(directory)


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("pipelines") / "painter"
    pipelines.stable_diffusion(directory)
    return imported(directory)


@pytest.fixture(scope="module")
def unspoilt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    pipelines.ddpm(root / "pixels")
    pipelines.stable_diffusion(root / "painter")
    return {name: root / name for name in ("pixels", "painter")}


@pytest.fixture
def own(unspoilt: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A pipeline that a test may spoil."""
    return lambda name: Path(shutil.copytree(unspoilt[name], tmp_path / name))


def near(measured: Array, expected: torch.Tensor) -> bool:
    numbers: Array = expected.numpy()
    return bool(np.abs(measured - numbers).max() <= 1e-4 * np.abs(numbers).max())


def noise(*shape: int) -> Array:
    return np.random.default_rng(5).standard_normal(shape, np.float32)


def test_pixels_become_a_version(pixels: Made) -> None:
    config = read_config(pixels.version.parent)
    assert config.backend == "python"
    assert config.decoupled
    assert config.parameters == {"task": "text_to_image", "stepper": "diffusion"}
    assert config.max_batch_size == 16
    assert [(spec.name, spec.datatype, spec.shape) for spec in config.inputs] == [
        ("prompt", "BYTES", (-1, 1))
    ]
    assert [(spec.name, spec.datatype, spec.shape) for spec in config.outputs] == [
        ("image", "UINT8", (-1, 8, 8, 3))
    ]
    assert {path.name for path in pixels.version.iterdir()} == {
        *("unet.onnx", "diffusion.json", "model.py"),
        *("manifest.json", "parity.json", "README.md"),
    }
    settings = DiffusionSettings.load(pixels.version)
    assert settings.noise == NoiseSchedule(
        beta_schedule="squaredcos_cap_v2", variance_type="fixed_large"
    )
    assert settings.sample == Sample(channels=3, height=8, width=8)
    assert settings.defaults.scheduler == "ddpm"
    assert settings.defaults.num_inference_steps == 1000
    assert settings.defaults.guidance_scale == 1.0
    assert not settings.can_guide
    card = (pixels.version / "README.md").read_text()
    assert "DDPMPipeline, for the task `text_to_image`" in card
    assert "It draws without being told what. An image has 8×8 pixels." in card
    manifest = json.loads((pixels.version / "manifest.json").read_text())
    assert [*manifest["weights"]] == ["unet/diffusion_pytorch_model.safetensors"]
    assert "diffusers" in manifest["packages"]


def test_pixels_are_as_torch_computes_them(pixels: Made) -> None:
    unet = library.UNet2DModel.from_pretrained(pixels.directory / "unet")
    sample, timesteps = noise(3, 3, 8, 8), np.array([0, 500.5, 999], np.float32)
    with torch.no_grad():
        expected = unet(torch.from_numpy(sample), torch.from_numpy(timesteps)).sample
    assert near(pixels.run("unet", sample=sample, timestep=timesteps), expected)


def test_classes_without_names_are_called_by_their_numbers(by_class: Made) -> None:
    settings = DiffusionSettings.load(by_class.version)
    assert settings.classes == (("0",), ("1",), ("2",))
    assert settings.unconditional_class is None
    assert settings.sample.channels == 1
    assert settings.noise.prediction_type == "v_prediction"
    assert settings.defaults.scheduler == "ddim"
    assert settings.defaults.num_inference_steps == 50
    assert "one of 3 classes" in by_class.output
    unet = library.UNet2DModel.from_pretrained(by_class.directory / "unet")
    sample, timesteps = noise(3, 1, 8, 8), np.array([3, 40, 999], np.float32)
    labels = np.array([2, 0, 1])
    with torch.no_grad():
        expected = unet(*map(torch.from_numpy, (sample, timesteps, labels))).sample
    measured = by_class.run("unet", sample=sample, timestep=timesteps, class_labels=labels)
    assert near(measured, expected)
    others = by_class.run("unet", sample=sample, timestep=timesteps, class_labels=labels[::-1])
    assert not near(others, expected)


def test_a_latent_pipeline_becomes_a_version(painter: Made) -> None:
    config = read_config(painter.version.parent)
    assert [spec.shape for spec in config.outputs] == [(-1, -1, -1, 3)]
    assert {path.name for path in painter.version.iterdir()} == {
        *("unet.onnx", "text_encoder.onnx", "vae_decoder.onnx"),
        *("diffusion.json", "tokenizer.json", "model.py"),
        *("manifest.json", "parity.json", "README.md"),
    }
    settings = DiffusionSettings.load(painter.version)
    assert settings.noise == NoiseSchedule(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    assert settings.sample == Sample(channels=4, height=8, width=8, multiple=2)
    assert settings.decoder == Decoder(scaling_factor=0.18215, pixels=2)
    pad = pipelines.tokenizer(painter.directory).pad_token_id
    assert settings.text == Text(tokens=pipelines.TOKENS, pad_token_id=pad)
    assert settings.defaults.scheduler == "ddim"
    assert settings.defaults.num_inference_steps == 50
    assert settings.defaults.guidance_scale == 7.5
    for said in (
        "what a prompt of up to 16 tokens says",
        "16×16 pixels, or any others that are multiples of 4",
        "PNDMScheduler, is not served: ddim is in its place",
    ):
        assert said in painter.output
        assert said in (painter.version / "README.md").read_text()


def test_prompts_are_read_as_transformers_reads_them(painter: Made) -> None:
    expected = pipelines.tokenizer(painter.directory)
    served = load_tokenizer(painter.version)
    for prompt in ("", "the cat", "THE  DOG,\n1969", "Ölpreis: 3 €", "<|endoftext|> 🚢"):
        tokens = served.encode(prompt)
        assert tokens == expected(prompt).input_ids
        assert (tokens[0], tokens[-1]) == (expected.bos_token_id, expected.eos_token_id)


def test_latents_become_the_pipelines_image(painter: Made) -> None:
    """Its whole loop, with the graphs in the place of its parts, and of another size."""
    pipeline = library.StableDiffusionPipeline.from_pretrained(painter.directory)
    pipeline.scheduler = library.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    latents = noise(1, 4, 16, 8)
    expected = pipeline(
        "the cat",
        negative_prompt="a dog",
        height=32,
        width=16,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=torch.from_numpy(latents),
        output_type="pt",
    ).images

    settings = DiffusionSettings.load(painter.version)
    assert settings.text is not None
    assert settings.decoder is not None
    tokenizer = load_tokenizer(painter.version)
    tokens = np.full((2, settings.text.tokens), settings.text.pad_token_id)
    for row, prompt in zip(tokens, ("a dog", "the cat"), strict=True):
        read = tokenizer.encode(prompt)
        row[: len(read)] = read
    hidden = painter.run("text_encoder", input_ids=tokens)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(3)
    for time in scheduler.timesteps:
        without, told = painter.run(
            "unet",
            sample=np.repeat(latents, 2, axis=0),
            timestep=np.full(2, time, np.float32),
            encoder_hidden_states=hidden,
        )
        guided = torch.from_numpy(without + 3.0 * (told - without))[None]
        latents = scheduler.step(guided, time, torch.from_numpy(latents)).prev_sample.numpy()
    scaled = latents / np.float32(settings.decoder.scaling_factor)
    image = painter.run("vae_decoder", latents=scaled + np.float32(settings.decoder.shift_factor))
    assert image.shape == (1, 3, 32, 16)
    assert near((image / 2 + 0.5).clip(0, 1), expected)


def test_another_model_than_the_graphs_is_found(painter: Made) -> None:
    pipeline = Pipeline.load(Index.load(painter.directory))
    assert pipeline.vae is not None
    with torch.no_grad():
        pipeline.vae.get_parameter("decoder.conv_in.weight").mul_(1.01)
    failed = [check.name for check in prove(painter.version, pipeline).checks if not check.passed]
    assert failed == [
        f"image decoder: difference from torch, batch of {size}" for size in (1, 2, 8)
    ]


SD_NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize(
    ("name", "scheduler", "solver", "expected"),
    [
        ("pixels", library.DDPMScheduler(clip_sample_range=2.0), "ddpm", {"clip_sample_range": 2}),
        ("pixels", library.DDIMScheduler(steps_offset=1), "ddim", {"steps_offset": 1}),
        (
            "pixels",
            library.DPMSolverMultistepScheduler(),
            "dpmsolver++",
            {"timestep_spacing": "linspace"},
        ),
        (
            "painter",
            library.DDIMScheduler(set_alpha_to_one=False, **SD_NOISE),
            "ddim",
            {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False, **SD_NOISE},
        ),
        (
            "painter",
            library.EulerDiscreteScheduler(prediction_type="v_prediction", **SD_NOISE),
            "euler",
            {
                "prediction_type": "v_prediction",
                "timestep_spacing": "linspace",
                "steps_offset": 1,
                "clip_sample": False,
                **SD_NOISE,
            },
        ),
        (
            "painter",
            library.DPMSolverMultistepScheduler(timestep_spacing="trailing"),
            "dpmsolver++",
            {"timestep_spacing": "trailing", "steps_offset": 1, "clip_sample": False},
        ),
    ],
)
def test_schedulers_say_how_noise_was_added(
    own: Callable[[str], Path],
    name: str,
    scheduler: Any,
    solver: str,
    expected: dict[str, Any],
) -> None:
    directory = own(name)
    schedule(directory, scheduler)
    assert read_noise(Index.load(directory)) == (NoiseSchedule(**expected), solver)


def test_a_ddim_pipeline_takes_what_it_needs_of_another_scheduler(
    own: Callable[[str], Path],
) -> None:
    directory = own("pixels")
    edit(directory / "model_index.json", _class_name="DDIMPipeline")
    schedule(directory, library.EulerDiscreteScheduler(num_train_timesteps=20))
    own_config = library.DDIMPipeline.from_pretrained(directory).scheduler.config
    assert own_config.clip_sample
    expected = NoiseSchedule(num_train_timesteps=20, timestep_spacing=own_config.timestep_spacing)
    assert read_noise(Index.load(directory)) == (expected, "ddim")


def test_no_more_steps_than_were_trained(own: Callable[[str], Path]) -> None:
    directory = own("pixels")
    schedule(directory, library.DDPMScheduler(num_train_timesteps=20))
    assert Pipeline.load(Index.load(directory)).settings.defaults.num_inference_steps == 20


def schedule(directory: Path, scheduler: Any) -> None:
    scheduler.save_pretrained(directory / "scheduler")
    edit(directory / "model_index.json", scheduler=["diffusers", type(scheduler).__name__])


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("scheduler", "changes", "said"),
    [
        ("DDPM", {"thresholding": True}, "thresholding=True"),
        ("DDPM", {"trained_betas": [0.1, 0.2]}, "trained_betas=[0.1, 0.2]"),
        ("DDPM", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
        ("DDPM", {"variance_type": "learned_range"}, "variance_type: Input should be"),
        ("DDPM", {"beta_schedule": "sigmoid"}, "beta_schedule: Input should be"),
        ("DDPM", {"beta_start": -1.0}, "beta_start: Input should be greater than 0"),
        ("DDPM", {"num_train_timesteps": 4000}, "num_train_timesteps: Input should be less"),
        ("DDPM", {"its_own": 3}, "its_own=3 is not known"),
        ("DDIM", {"prediction_type": "flow"}, "prediction_type: Input should be"),
        ("DPMSolverMultistep", {"use_karras_sigmas": True}, "use_karras_sigmas=True"),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type="),
        ("DPMSolverMultistep", {"solver_order": 3}, "solver_order=3"),
        ("DPMSolverMultistep", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type="),
        ("EulerDiscrete", {}, "scheduler is EulerDiscreteScheduler, and those"),
        ("UniPCMultistep", {}, "scheduler is UniPCMultistepScheduler, and those"),
    ],
)
def test_a_scheduler_without_an_equal_is_refused_by_name(
    own: Callable[[str], Path],
    tmp_path: Path,
    scheduler: str,
    changes: dict[str, object],
    said: str,
) -> None:
    directory = own("pixels")
    schedule(directory, getattr(library, f"{scheduler}Scheduler")())
    edit(directory / "scheduler" / "scheduler_config.json", **changes)
    text = sentence(slipway_import(directory, "--model-repository", tmp_path / "repository"))
    assert said in text
    assert "scheduler_config.json" in text or not changes
    assert not (tmp_path / "repository").exists()


def test_another_schedulers_setting_is_not_used_and_so_not_refused(
    own: Callable[[str], Path],
) -> None:
    directory = own("pixels")
    edit(directory / "scheduler" / "scheduler_config.json", solver_order=3, skip_prk_steps=True)
    assert read_noise(Index.load(directory)) == (NoiseSchedule(), "ddpm")


def no_index(directory: Path) -> None:
    (directory / "model_index.json").unlink()


def broken_index(directory: Path) -> None:
    (directory / "model_index.json").write_text("{")


def another_pipeline(directory: Path) -> None:
    edit(directory / "model_index.json", _class_name="StableDiffusionXLPipeline")


def own_code(directory: Path) -> None:
    edit(directory / "model_index.json", unet=["my_unet", "UNet2DConditionModel"])


def another_unet(directory: Path) -> None:
    edit(directory / "model_index.json", unet=["diffusers", "UNet2DModel"])


def no_vae(directory: Path) -> None:
    edit(directory / "model_index.json", vae=[None, None])


def no_directory(directory: Path) -> None:
    shutil.rmtree(directory / "vae")


def unknown_part(directory: Path) -> None:
    edit(directory / "model_index.json", controlnet=["diffusers", "ControlNetModel"])


def no_unet_config(directory: Path) -> None:
    (directory / "unet" / "config.json").unlink()


def pickled(directory: Path) -> None:
    path = directory / "vae" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def pickled_text_encoder(directory: Path) -> None:
    path = directory / "text_encoder" / "model.safetensors"
    path.rename(path.with_name("pytorch_model.bin"))


def no_weights(directory: Path) -> None:
    (directory / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def cut_weights(directory: Path) -> None:
    path = directory / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def a_weight_too_few(directory: Path) -> None:
    path = directory / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_out.bias"]
    save_file(weights, path)


def a_layer_too_few(directory: Path) -> None:
    edit(directory / "text_encoder" / "config.json", num_hidden_layers=1)


def wrong_shape(directory: Path) -> None:
    edit(directory / "vae" / "config.json", out_channels=1)


def inpainting(directory: Path) -> None:
    edit(directory / "unet" / "config.json", in_channels=9)


def with_times(directory: Path) -> None:
    edit(directory / "unet" / "config.json", time_cond_proj_dim=8)


def quantized(directory: Path) -> None:
    edit(directory / "unet" / "config.json", quantization_config={"quant_method": "torchao"})


def without_size(directory: Path) -> None:
    edit(directory / "unet" / "config.json", sample_size=None)


def shifted(directory: Path) -> None:
    edit(directory / "vae" / "config.json", shift_factor=0.1)


def without_scheduler(directory: Path) -> None:
    (directory / "scheduler" / "scheduler_config.json").unlink()


def without_merges(directory: Path) -> None:
    (directory / "tokenizer" / "merges.txt").unlink()


def broken_vocabulary(directory: Path) -> None:
    (directory / "tokenizer" / "vocab.json").write_text("[]")


def long_prompts(directory: Path) -> None:
    edit(directory / "tokenizer" / "tokenizer_config.json", model_max_length=17)


def masked(directory: Path) -> None:
    edit(directory / "text_encoder" / "config.json", use_attention_mask=True)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_index, "has no config.json: expected a Hugging Face checkpoint"),
        (broken_index, "model_index.json cannot be read"),
        (another_pipeline, "_class_name is 'StableDiffusionXLPipeline', and the pipelines that"),
        (own_code, "unet is ['my_unet', 'UNet2DConditionModel']; expected a class of diffusers"),
        (another_unet, "unet is UNet2DModel, and those that can be exported are UNet2DCondition"),
        (no_vae, "vae is missing, and those that can be exported are AutoencoderKL"),
        (no_directory, "has no vae, which model_index.json speaks of"),
        (unknown_part, "controlnet is set, and a StableDiffusionPipeline that is exported has"),
        (no_unet_config, "unet has no config.json"),
        (pickled, "diffusion_pytorch_model.bin is a pickle, which can run code when it is read"),
        (pickled_text_encoder, "text_encoder: pytorch_model.bin is a pickle"),
        (no_weights, "unet has no diffusion_pytorch_model.safetensors"),
        (cut_weights, "unet"),
        (a_weight_too_few, "unet: the weights lack conv_out.bias"),
        (a_layer_too_few, "text_encoder: the weights have what the model has no place for"),
        (wrong_shape, "vae: the weights have another shape than config.json says: decoder.conv_o"),
        (inpainting, "unet: the weights have another shape than config.json says: conv_in.weight"),
        (with_times, "unet: the weights lack time_embedding.cond_proj.weight"),
        (quantized, "unet/config.json: quantization_config is set"),
        (without_size, "unet/config.json: sample_size is not set"),
        (shifted, "vae/config.json: shift_factor is 0.1"),
        (without_scheduler, "scheduler has no scheduler_config.json"),
        (without_merges, "tokenizer has no merges.txt"),
        (broken_vocabulary, "tokenizer: transformers cannot load it"),
        (
            long_prompts,
            "tokenizer: model_max_length 17 is more than the text encoder's largest, 16",
        ),
        (masked, "text_encoder/config.json: use_attention_mask is set"),
    ],
)
def test_a_mistake_gets_one_sentence(
    own: Callable[[str], Path], tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    directory = own("painter")
    spoil(directory)
    assert said in sentence(
        slipway_import(directory, "--model-repository", tmp_path / "repository")
    )
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"out_channels": 6}, "unet/config.json: out_channels is 6, and has to be 3"),
        (
            {"in_channels": 2, "out_channels": 2},
            "an image has 1 or 3 channels, and this one would have 2",
        ),
        (
            {"time_embedding_type": "fourier"},
            "time_embedding_type is 'fourier', and has to be 'positional'",
        ),
        (
            {"class_embed_type": "timestep"},
            "class_embed_type is 'timestep', and has to be None",
        ),
    ],
)
def test_a_unet_that_no_graph_has_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    pipelines.ddpm(tmp_path / "pixels", unet=settings)
    assert said in sentence(slipway_import(tmp_path / "pixels"))


def test_what_is_left_out_is_told(own: Callable[[str], Path]) -> None:
    directory = own("painter")
    edit(
        directory / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    index = Index.load(directory)
    remarks = Pipeline.load(index).remarks()
    assert "The checkpoint's safety_checker is not part of this: no image is held back." in remarks
    assert index.left_out == ("safety_checker", "feature_extractor")


def test_a_size_that_cannot_be_halved_is_the_only_one(own: Callable[[str], Path]) -> None:
    directory = own("painter")
    edit(directory / "unet" / "config.json", sample_size=[9, 8])
    pipeline = Pipeline.load(Index.load(directory))
    assert pipeline.settings.sample == Sample(channels=4, height=9, width=8)
    assert "dims: [ 18, 16, 3 ]" in pipeline.config_text("painter")


def test_a_pipeline_is_for_one_task(unspoilt: dict[str, Path]) -> None:
    result = slipway_import(unspoilt["pixels"], "--task", "translation")
    assert "DDPMPipeline is for the task text_to_image, not translation" in sentence(result)


def test_an_index_of_another_kind_is_no_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": ["DDPMPipeline"]}))
    with pytest.raises(CheckpointError, match="_class_name is"):
        Index.load(tmp_path)
