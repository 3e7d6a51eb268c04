"""A recogniser from its spectrogram to a published version, on a tiny recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import numpy_helper

from serving.pbtxt import read_config
from serving.repository import verify_checksums
from tests.support import RunningServer, call, serving
from tests.training.conftest import Slipway
from training.errors import PublishRefused
from training.parity import ParityReport
from training.recipe import override
from training.recipes.spoken_numbers import spoken_numbers
from training.runs import RunDirectory
from training.tasks.speech_recognition.corpus import open_corpus
from training.tasks.speech_recognition.evaluate import pad, read_off, reader
from training.tasks.speech_recognition.features import CONTEXT, HOP, WINDOW, LogMel
from training.tasks.speech_recognition.graphs import CHUNK_SAMPLES
from training.tasks.speech_recognition.host import Host
from training.tasks.speech_recognition.network import (
    SAMPLES_PER_FRAME,
    Recognizer,
    RecognizerConfig,
    SpecAugment,
    load_model,
)
from training.tasks.speech_recognition.publication import SpeechPublication
from training.tasks.speech_recognition.report import SpeechReport
from training.tasks.speech_recognition.verify import verify
from training.tasks.speech_recognition.workload import SpeechWorkload

TINY = ("train", "spoken-numbers", "--tiny", "--set", "data.utterances=100")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, slipway: Slipway) -> RunDirectory:
    """Trained and exported."""
    run = RunDirectory(tmp_path_factory.mktemp("shared") / "numbers")
    for command in ((*TINY, "--run-dir", run.path), ("export", run.path)):
        result = slipway(*command)
        assert result.exit_code == 0, result.output
    return run


@pytest.fixture(scope="module")
def workload() -> SpeechWorkload:
    recipe = override(spoken_numbers(tiny=True), ["data.utterances=100"])
    return SpeechWorkload(recipe, open_corpus(recipe.data, None, recipe.seed))


# The network

ARCHITECTURES = ("recurrent", "transformer", "live")


def network(architecture: str) -> Recognizer:
    torch.manual_seed(0)
    config = RecognizerConfig.model_validate(
        {
            "architecture": architecture,
            "vocabulary": ("", *"abc"),
            "mean": (-9.0,) * 16,
            "std": (3.0,) * 16,
            **{"width": 16, "hidden": 24, "layers": 2, "heads": 2, "delay": 2, "dropout": 0.1},
        }
    )
    return Recognizer(config).eval()


def clips(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.3 * torch.randn(length, generator=generator) for length in lengths]


@pytest.mark.parametrize("training", [True, False])
def test_the_spectrogram_is_that_of_a_fourier_transform(training: bool) -> None:
    [samples] = clips(CONTEXT + 7 * HOP)
    features = LogMel([-2.0] * 20, [3.0] * 20).train(training)
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * (np.arange(WINDOW) + 0.5) / WINDOW)
    frequencies = np.arange(WINDOW // 2 + 1) * 16_000 / WINDOW
    used = (frequencies > 60) & (frequencies < 7600)
    for column in range(7):
        piece = samples[column * HOP : column * HOP + WINDOW].double().numpy()
        power = np.abs(np.fft.rfft(piece * window * 2.0 / window.sum())) ** 2
        expected = (np.log(power[used] @ features.bands.double().numpy() + 1e-6) + 2.0) / 3.0
        found = features(samples[None])[0, :, column].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_higher_tone_is_in_a_higher_band() -> None:
    time = torch.arange(CONTEXT + HOP) / 16_000
    features = LogMel([0.0] * 40, [1.0] * 40)
    loudest = [
        int(features(torch.sin(2.0 * torch.pi * hz * time)[None])[0, :, 0].argmax())
        for hz in (150, 400, 1000, 2500, 6000)
    ]
    assert loudest == sorted(set(loudest))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_batched_equals_alone_in_torch(architecture: str) -> None:
    model = network(architecture)
    waveforms = clips(1, SAMPLES_PER_FRAME, 5000, 5001, 16_000)
    logits, frames = model(pad(waveforms))
    assert frames.tolist() == [[1], [1], [11], [11], [34]]
    for waveform, row, end in zip(waveforms, logits, frames.flatten(), strict=True):
        alone, [[alone_frames]] = model(waveform[None])
        assert alone.shape[1] == alone_frames == end
        torch.testing.assert_close(row[:end], alone[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.exp().sum(dim=2), torch.ones(logits.shape[:2]))


@torch.no_grad()
def test_a_live_recogniser_hears_in_chunks_what_it_hears_at_once() -> None:
    model = network("live")
    waveform = torch.stack(clips(3 * CHUNK_SAMPLES, 3 * CHUNK_SAMPLES))
    whole, _ = model(waveform)
    states = model.begin(2)
    silence = torch.zeros(2, CHUNK_SAMPLES)
    answers = []
    for chunk in (*waveform.chunk(3, dim=1), silence):
        logits, states = model.step(chunk, states)
        answers.append(logits)
    # As the server does: what comes before the first answer is dropped.
    delayed = torch.cat(answers, dim=1)[:, model.config.delay :]
    torch.testing.assert_close(delayed[:, : whole.shape[1]], whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_row_ends_at_its_first_nan() -> None:
    model = network("recurrent")
    [waveform] = clips(5000)
    waveform[2000] = float("nan")
    logits, frames = model(waveform[None])
    ended, _ = model(waveform[None, :2000])
    assert frames.item() == ended.shape[1] == 5
    torch.testing.assert_close(logits[:, :5], ended, atol=1e-5, rtol=0)


def test_stripes_are_hidden_in_training_only() -> None:
    masks = SpecAugment(spoken_numbers().masks)
    features = torch.ones(8, 40, 200)
    hidden = masks.train()(features) == 0
    assert 0 < hidden.float().mean() < 0.5
    assert hidden[0].all(dim=0).any() or hidden[0].all(dim=1).any()
    assert torch.equal(masks.eval()(features), features)


def test_repetitions_and_blanks_are_no_characters() -> None:
    path = [0, 1, 1, 0, 1, 2, 2, 3, 3, 1]
    logits = torch.nn.functional.one_hot(torch.tensor([path, path]), 4).float()
    texts = read_off(logits, torch.tensor([[10], [5]]), ("", "a", "b", " "))
    assert texts == ["aab a", "aa"]


# A run


def test_batches_are_of_like_length_and_show_every_utterance_once(
    workload: SpeechWorkload,
) -> None:
    batches = workload.batches(np.random.default_rng(1))
    assert len(batches) == workload.steps
    assert sorted(np.concatenate(batches)) == sorted(workload.split.train)
    lengths = workload.corpus.lengths
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.6 * lengths[workload.split.train].sum()


def test_a_run_leaves_a_report_for_each_place_and_voice(run: RunDirectory) -> None:
    report = SpeechReport.load(run.report)
    assert [score.place for score in report.scores] == [
        *("without noise", "noise at 20 dB", "noise at 10 dB", "noise at 20 dB, in a room"),
    ]
    for score in report.scores:
        assert score.utterances == report.examples.held_out
        assert score.spelt_word_errors is not None
        assert all("+" in voice.voice for voice in score.per_voice)
        words = sum(voice.words for voice in score.per_voice)
        wrong = sum(voice.words * voice.word_errors for voice in score.per_voice)
        assert score.word_errors == pytest.approx(wrong / words)
    losses = [float(line.split(",")[2]) for line in run.metrics.read_text().splitlines()[1:]]
    assert losses[-1] < losses[0]


def test_the_export_is_proven(run: RunDirectory) -> None:
    parity = ParityReport.load(run.export("float32") / "parity.json")
    assert parity.passed
    assert {check.name for check in parity.checks} >= {
        *("inputs", "outputs", "difference from torch in features"),
        "difference between batched and alone, 200 clips",
    }
    assert parity.files.keys() == {
        *("model.onnx", "recognizer.json", "example.wav", "example.json"),
    }
    graph = onnx.load(run.export("float32") / "model.onnx")
    assert b".py" not in graph.SerializeToString()


def test_a_graph_that_is_not_the_model_fails(
    run: RunDirectory, workload: SpeechWorkload, tmp_path: Path
) -> None:
    graph = onnx.load(run.export("float32") / "model.onnx")
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name == "classify.bias")
    nudged = numpy_helper.to_array(bias).copy()
    nudged[1] += 0.01
    bias.CopyFrom(numpy_helper.from_array(nudged, bias.name))
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    parity = verify(tmp_path, load_model(run.checkpoint), workload)
    assert "difference from torch, batch of 1" in [
        check.name for check in parity.checks if not check.passed
    ]


def heard(server: RunningServer, version: Path) -> str:
    """What the model says to its own example."""
    path = f"/models/{version.parent.name}"
    status, body = call(server.http_port, "POST", path, (version / "example.wav").read_bytes())
    assert status == 200, body
    text: str = json.loads(body)["text"]
    return text


def test_from_run_to_published_version(run: RunDirectory, tmp_path: Path, slipway: Slipway) -> None:
    result = slipway("publish", run.path, "--model-repository", tmp_path)
    assert result.exit_code == 0, result.output
    model = tmp_path / "spoken-numbers"
    verify_checksums(model / "1")
    assert {path.name for path in (model / "1").iterdir()} == {
        *("model.onnx", "recognizer.json", "example.wav", "example.json", "curves.png"),
        *("README.md", "manifest.json", "parity.json"),
    }
    config = read_config(model)
    assert config.parameters["task"] == "automatic-speech-recognition"
    assert config.parameters["pad_value"] == "nan"
    assert config.ragged == {"waveform"}
    settings = json.loads((model / "1" / "recognizer.json").read_text())
    assert settings["type"] == "ctc"
    assert settings["samples_per_frame"] == SAMPLES_PER_FRAME
    assert settings["vocabulary"][:2] == ["", " "]
    assert {"hundred", "twenty"} <= set(settings["words"])

    samples, rate_hz = soundfile.read(model / "1" / "example.wav", dtype="float32")
    assert rate_hz == settings["sampling_rate"]
    logits, frames = Host(model / "1" / "model.onnx")(torch.from_numpy(samples)[None])
    answer = json.loads((model / "1" / "example.json").read_text())["answer"]
    assert reader(load_model(run.checkpoint).config)(logits, frames) == [answer]
    with serving(tmp_path) as server:
        assert heard(server, model / "1") == answer
    card = (model / "1" / "README.md").read_text()
    assert "noise at 10 dB" in card
    assert str(tmp_path) not in card

    path = model / "config.pbtxt"
    path.write_text(path.read_text().replace("TYPE_INT64", "TYPE_INT32"))
    result = slipway("publish", run.path, "--model-repository", tmp_path)
    assert result.exit_code == 1
    assert "promises the output" in result.stderr


def test_too_many_word_errors_are_not_published(run: RunDirectory) -> None:
    recipe = override(spoken_numbers(tiny=True), ["acceptance.word_errors_10_db=0.01"])
    parity = ParityReport(precision="float32", checks=(), measurements={}, files={})
    publication = SpeechPublication(run, recipe, "float32", parity)
    with pytest.raises(PublishRefused, match=r"noise at 10 dB, is .* and the recipe accepts 0\.01"):
        publication.require_quality()


@pytest.mark.parametrize("architecture", ["live", "transformer"])
def test_the_other_architectures_go_the_same_way(
    architecture: str, tmp_path: Path, slipway: Slipway
) -> None:
    run = RunDirectory(tmp_path / "other")
    for command in (
        (*TINY, "--set", f"model.architecture={architecture}", "--set", "epochs=1"),
        ("export",),
        ("publish", "--model-repository", tmp_path / "repository"),
    ):
        place = ("--run-dir", run.path) if command[0] == "train" else (run.path,)
        result = slipway(*command, *place)
        assert result.exit_code == 0, result.output
    config = read_config(tmp_path / "repository" / "spoken-numbers")
    version = tmp_path / "repository" / "spoken-numbers" / "1"
    settings = json.loads((version / "recognizer.json").read_text())
    if architecture == "live":
        assert config.model_filename == "chunk.onnx"
        assert (settings["type"], settings["chunk_samples"]) == ("ctc-live", CHUNK_SAMPLES)
    else:
        assert (config.model_filename, settings["type"]) == ("model.onnx", "ctc")
    with serving(tmp_path / "repository") as server:
        assert (
            heard(server, version) == json.loads((version / "example.json").read_text())["answer"]
        )


def test_a_width_that_heads_cannot_share_is_refused(tmp_path: Path, slipway: Slipway) -> None:
    result = slipway(
        *("train", "spoken-numbers", "--set", "model.architecture=transformer"),
        *("--set", "model.width=100", "--run-dir", tmp_path / "run"),
    )
    assert result.exit_code == 1
    assert "a transformer's must be a multiple of four times model.heads" in result.stderr
