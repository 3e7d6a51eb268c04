"""`slipway import`: a checkpoint becomes a version, or one sentence says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from serving.errors import OperatorError
from serving.pbtxt import read_config
from serving.repository import verify_checksums, versions
from tests.training import checkpoints
from training.errors import ParityError
from training.graphs import parity
from training.graphs.reference import ReferenceHost
from training.importing_cli import import_model
from training.parity import ParityReport


def slipway_import(*arguments: object) -> Result:
    return CliRunner().invoke(import_model, [str(argument) for argument in arguments])


def sentence(result: Result) -> str:
    assert isinstance(result.exception, OperatorError), result.exc_info
    text = str(result.exception)
    assert "\n" not in text
    return text


def edit_generation(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "opus-mt"
    checkpoints.marian(directory, encoder_layers=1, decoder_layers=1)
    # As those of the Helsinki group have it.
    edit_generation(
        directory, bad_words_ids=[[checkpoints.PAD]], renormalize_logits=True, num_beams=4
    )
    return directory


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "writer"
    checkpoints.gpt2(directory, n_layer=1)
    return directory


@pytest.fixture
def own(translator: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    return Path(shutil.copytree(translator, tmp_path / "own"))


def test_a_translator_becomes_a_version(translator: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    result = slipway_import(translator, "--model-repository", repository, "--task", "translation")
    assert result.exit_code == 0, result.exc_info
    assert f"made {repository / 'opus-mt' / '1'}" in result.output
    config = read_config(repository / "opus-mt")
    assert config.backend == "python"
    assert config.parameters == {"task": "translation", "stepper": "generation"}
    assert config.decoupled
    [found] = versions(repository / "opus-mt", config)
    verify_checksums(found.directory)
    assert {path.name for path in found.directory.iterdir()} == {
        *("encoder.onnx", "decoder.onnx", "generation.json", "source.spm", "target.spm"),
        *(
            "vocab.json",
            "tokenizer_config.json",
            "manifest.json",
            "parity.json",
            "README.md",
            "model.py",
        ),
    }
    assert [path.name for path in repository.iterdir()] == ["opus-mt"]
    report = ParityReport.load(found.directory / "parity.json")
    assert report.passed
    measured = {check.name: check.measured for check in report.checks}
    assert measured["difference between batched and alone"] == 0
    assert measured["greedy texts that differ from generate()"] == 0
    manifest = json.loads((found.directory / "manifest.json").read_text())
    assert manifest["architecture"] == "MarianMTModel"
    for path in found.directory.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize(
    "make",
    [
        lambda directory: checkpoints.gpt2(directory, seed=1, n_layer=1),
        lambda directory: checkpoints.llama(directory, seed=2, num_hidden_layers=1),
        lambda directory: checkpoints.llama(directory, seed=3, num_key_value_heads=4),
    ],
)
def test_a_language_model_becomes_a_version(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "writer")
    result = slipway_import(
        *(tmp_path / "writer", "--model-repository", tmp_path / "repository", "--name", "mine")
    )
    assert result.exit_code == 0, result.exc_info
    version = tmp_path / "repository" / "mine" / "1"
    verify_checksums(version)
    report = ParityReport.load(version / "parity.json")
    measured = {check.name: check.measured for check in report.checks}
    assert measured["difference between batched and alone"] == 0
    assert measured["greedy texts that differ from generate()"] == 0
    assert read_config(version.parent).parameters["task"] == "text_generation"


def test_the_next_version_keeps_what_callers_were_promised(
    translator: Path, writer: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        result = slipway_import(writer, "--model-repository", tmp_path, "--name", "one")
        assert result.exit_code == 0, result.exc_info
    result = slipway_import(translator, "--model-repository", tmp_path, "--name", "one")
    assert "promises the task 'text_generation' and this version has 'translation'" in sentence(
        result
    )
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"config.pbtxt", "1", "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def edit(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def no_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()


def broken_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")


def config_with_a_wrong_value(checkpoint: Path) -> None:
    edit(checkpoint, d_model=33)


def another_architecture(checkpoint: Path) -> None:
    edit(checkpoint, architectures=["T5ForConditionalGeneration"])


def pickled(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")


def no_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()


def cut_weights(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_safetensors(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_text("weights")


def one_layer_too_few(checkpoint: Path) -> None:
    edit(checkpoint, decoder_layers=2)


def one_layer_too_many(checkpoint: Path) -> None:
    edit(checkpoint, encoder_layers=0)


def wrong_shape(checkpoint: Path) -> None:
    edit(checkpoint, decoder_ffn_dim=65)


def no_vocabulary(checkpoint: Path) -> None:
    (checkpoint / "vocab.json").unlink()


def no_sentencepiece(checkpoint: Path) -> None:
    (checkpoint / "source.spm").write_text("pieces")


def large_vocabulary(checkpoint: Path) -> None:
    path = checkpoint / "vocab.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"word": 91}))


def two_vocabularies(checkpoint: Path) -> None:
    (checkpoint / "target_vocab.json").write_text("{}")


def quantized(checkpoint: Path) -> None:
    edit(checkpoint, quantization_config={"quant_method": "gptq"})


def adapter(checkpoint: Path) -> None:
    (checkpoint / "adapter_config.json").write_text("{}")


def odd_generation(checkpoint: Path) -> None:
    edit_generation(checkpoint, typical_p=0.3)


def many_beams(checkpoint: Path) -> None:
    edit_generation(checkpoint, num_beams=400)


def broken_generation(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_config, "has no config.json: expected a Hugging Face checkpoint"),
        (broken_config, "config.json cannot be read"),
        (config_with_a_wrong_value, "transformers cannot load it"),
        (another_architecture, "MarianMTModel, GPT2LMHeadModel, LlamaForCausalLM"),
        (pickled, "pytorch_model.bin is a pickle, which can run code when it is read"),
        (no_weights, "has no model.safetensors"),
        (cut_weights, "the weights cannot be read"),
        (no_safetensors, "the weights cannot be read"),
        (one_layer_too_few, "the weights lack model.decoder.layers.1"),
        (one_layer_too_many, "the weights have what the model has no place for: model.encoder"),
        (wrong_shape, "the weights have another shape than config.json says: model.decoder"),
        (no_vocabulary, "has no vocab.json, and its tokenizer needs it"),
        (no_sentencepiece, "source.spm: unusable sentencepiece model"),
        (large_vocabulary, "vocab.json has token 91, and the model has 91 tokens"),
        (two_vocabularies, "the target language has a vocabulary of its own"),
        (quantized, "quantization_config is set"),
        (adapter, "holds an adapter"),
        (odd_generation, "typical_p=0.3"),
        (many_beams, "the checkpoint's generation settings: defaults.num_beams: Input should be"),
        (broken_generation, "generation_config.json cannot be read"),
    ],
)
def test_a_mistake_gets_one_sentence(
    own: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(own)
    result = slipway_import(own, "--model-repository", tmp_path / "repository")
    assert said in sentence(result)
    assert not (tmp_path / "repository" / "own").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": "linear"}, "transformers cannot load it"),
        ({"architectures": "GPT2"}, "the architecture is GPT2"),
        ({"sliding_window": 16}, "sliding_window is set"),
        ({"is_causal": False}, "is_causal is false"),
        ({"add_cross_attention": True}, "add_cross_attention is set"),
    ],
)
def test_what_no_graph_can_do_is_refused_by_name(
    writer: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    own = Path(shutil.copytree(writer, tmp_path / "own"))
    edit(own, **changes)
    assert said in sentence(slipway_import(own, "--model-repository", tmp_path / "repository"))


def test_a_directory_a_task_and_a_name_that_do_not_fit(writer: Path, tmp_path: Path) -> None:
    assert "is not a directory" in sentence(slipway_import(tmp_path / "nowhere"))
    result = slipway_import(writer, "--task", "translation")
    assert "GPT2LMHeadModel is for the task text_generation, not translation" in sentence(result)
    result = slipway_import(writer, "--name", "../up")
    assert "'../up' is no name for a model" in sentence(result)


def test_graphs_that_are_not_the_model_are_not_published(
    translator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = parity.verify_generation

    def of_another_model(directory: Path, model: torch.nn.Module, *prompts: object) -> ParityReport:
        with torch.no_grad():
            model.get_parameter("model.decoder.layers.0.fc1.weight").mul_(1.001)
        return original(directory, model, *prompts)  # type: ignore[arg-type]

    monkeypatch.setattr("training.graphs.proof.verify_generation", of_another_model)
    result = slipway_import(translator, "--model-repository", tmp_path / "repository")
    assert isinstance(result.exception, ParityError)
    assert "fails the check 'difference from torch, batch of 1'" in str(result.exception)
    assert list((tmp_path / "repository").iterdir()) == []


def test_rows_that_know_of_each_other_are_found(
    translator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ReferenceHost.run

    def leak(host: ReferenceHost, *arguments: object) -> object:
        logits = run(host, *arguments)  # type: ignore[arg-type]
        return logits + 1e-3 * (len(logits) - 1)

    monkeypatch.setattr(ReferenceHost, "run", leak)
    result = slipway_import(translator, "--model-repository", tmp_path)
    assert "fails the check 'difference from torch, batch of 2'" in str(result.exception)
