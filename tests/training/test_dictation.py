"""A recogniser that writes, from windows of utterances to a published version, on a tiny recipe."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.repository import verify_checksums
from tests.support import call, serving
from tests.training.conftest import Slipway
from training.graphs.proof import without_warnings
from training.parity import ParityReport
from training.recipes.spoken_numbers_whisper import spoken_numbers_whisper
from training.runs import RunDirectory
from training.split import sha256_hex
from training.tasks.dictation import vocabulary as vocabularies
from training.tasks.dictation.evaluate import to_windows
from training.tasks.dictation.recipe import Windows
from training.tasks.dictation.windows import compose
from training.tasks.dictation.workload import DictationWorkload
from training.tasks.speech_recognition.corpus import RATE_HZ, Corpus, Sounds


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def corpus() -> Corpus:
    """Recordings of one second and more, each of one number throughout."""
    lengths = np.array([RATE_HZ, RATE_HZ * 3 // 2, RATE_HZ * 2])
    return Corpus(
        texts=("one", "two", "three"),
        voices=("a", "b", "c"),
        groups=("a", "b", "c"),
        digests=("a", "b", "c"),
        samples=np.repeat(np.array([1, 2, 3], np.int16), lengths),
        lengths=lengths,
        sounds=Sounds(
            names=("", "a", "b"),
            kinds=np.array([1, 2, 2, 1, 2]),
            starts=np.array([0, RATE_HZ // 2, 0, 0, RATE_HZ]),
            counts=np.array([2, 1, 2]),
        ),
    )


def test_a_window_says_when_each_utterance_is_said() -> None:
    numbers = {"one": 1, "two": 2, "three": 3}
    lengths = {"one": 1.0, "two": 1.5, "three": 2.0}
    settings = Windows(utterances=3, pause_seconds=(0.1, 0.5), timed=0.5)
    firsts = np.array([0, 1, 2] * 20)
    generator = torch.Generator().manual_seed(0)
    windows = compose(corpus(), firsts, np.arange(3), settings, (0.8, 1.2), 5, generator)
    generator = torch.Generator().manual_seed(0)
    again = compose(corpus(), firsts, np.arange(3), settings, (0.8, 1.2), 5, generator)
    counts, speeds = set(), []
    for window, other, first in zip(windows, again, firsts, strict=True):
        np.testing.assert_array_equal(window.samples, other.samples)
        assert len(window.samples) <= 5 * RATE_HZ
        assert window.said[0][0] == corpus().texts[first]
        counts.add(len(window.said))
        before = 0
        for text, start_s, end_s in window.said:
            start, end = round(start_s * RATE_HZ), round(end_s * RATE_HZ)
            assert (window.samples[start:end] == numbers[text]).all()
            speeds.append(lengths[text] / (end_s - start_s))
            assert (window.samples[before:start] == 0).all()
            assert start - before >= 0.1 * RATE_HZ - 1
            before = end
        assert window.sounds is not None
        middles = (np.arange(len(window.sounds)) + 0.5) / 50
        expected = np.zeros(len(middles), np.int64)
        for text, start_s, end_s in window.said:
            inside = (middles >= start_s) & (middles < end_s)
            share = (middles - start_s) / (end_s - start_s)
            halves = {"one": (1, 2), "two": (2, 2), "three": (1, 2)}[text]
            expected[inside] = np.where(share < 0.5, *halves)[inside]
        # Where a sound ends in the middle of a frame, rounding decides.
        assert np.mean(window.sounds != expected) < 0.01
    assert counts == {1, 2, 3}
    assert 0.8 <= min(speeds) < 0.9
    assert 1.1 < max(speeds) <= 1.21


def test_sounds_are_of_the_recordings_that_are_left() -> None:
    kept = np.array([True, False, True])
    left = corpus().only(kept)
    assert left.sounds is not None
    assert left.sounds.at(0, np.array([0, RATE_HZ // 2 - 1, RATE_HZ // 2])).tolist() == [1, 1, 2]
    assert left.sounds.at(1, np.array([0, RATE_HZ - 1, RATE_HZ])).tolist() == [1, 1, 2]


def test_an_utterance_as_long_as_a_window_fits() -> None:
    settings = Windows(utterances=2, pause_seconds=(0.5, 0.5), timed=0.5)
    generator = torch.Generator().manual_seed(0)
    [window] = compose(corpus(), np.array([2]), np.arange(3), settings, (0.5, 1.0), 2, generator)
    assert (window.samples == 3).all()
    [(text, start_s, end_s)] = window.said
    assert text == "three"
    assert 0 <= start_s < 0.001
    assert end_s == 2.0


def test_what_is_written_is_read(tmp_path: Path) -> None:
    vocabulary = vocabularies.train(["one two", "two three"], 270, 4)
    said = [("one two", 0.1, 1.0), ("six", 1.5, 3.98)]
    plain = vocabulary.write(said, timed=False).tokens
    timed, seconds = vocabulary.write(said, timed=True)
    assert plain[:2] == (vocabulary.start, vocabulary.no_times)
    # "one", " two" and "six" are spelt in letters or pieces; each is said in its utterance.
    assert len(seconds) == len(timed)
    assert list(seconds) == sorted(seconds)
    for token, second in zip(timed, seconds, strict=True):
        assert 0.1 <= second <= 1.0 or 1.5 <= second <= 3.98
        if token >= vocabulary.first_time:
            assert second == pytest.approx((token - vocabulary.first_time) / 50)
    assert plain[-1] == timed[-1] == vocabulary.end
    times = [token - vocabulary.first_time for token in timed if token >= vocabulary.first_time]
    assert times == [5, 50, 75, 199]
    assert vocabulary.read(plain) == vocabulary.read(timed) == "one two six"
    vocabularies.save(tmp_path, vocabulary)
    loaded = vocabularies.load(tmp_path)
    assert loaded.write(said, timed=True).tokens == timed
    assert loaded.size == vocabulary.first_time + 4 * 50 + 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, slipway: Slipway) -> RunDirectory:
    """Trained and exported."""
    run = RunDirectory(tmp_path_factory.mktemp("shared") / "writes")
    train = ("train", "spoken-numbers-whisper", "--tiny", "--set", "data.utterances=100")
    for command in ((*train, "--run-dir", run.path), ("export", run.path)):
        result = slipway(*command)
        assert result.exit_code == 0, result.output
    return run


def test_a_run_is_exported_proven_published_and_served(
    run: RunDirectory, slipway: Slipway, tmp_path: Path
) -> None:
    report = ParityReport.load(run.export("float32") / "parity.json")
    assert report.passed
    result = slipway("publish", run.path, "--model-repository", tmp_path)
    assert result.exit_code == 0, result.output
    version = tmp_path / "spoken-numbers-whisper" / "1"
    verify_checksums(version)
    example = (version / "example.wav").read_bytes()
    said = json.loads((version / "example.json").read_text())["answer"]
    parameters = {"return_timestamps": False}
    with serving(tmp_path) as server:
        path = "/models/spoken-numbers-whisper"
        status, body = call(server.http_port, "POST", path, example)
        assert status == 200
        assert json.loads(body).keys() == {"text", "chunks"}
        document = {"inputs": base64.b64encode(example).decode(), "parameters": parameters}
        headers = {"Content-Type": "application/json"}
        status, body = call(server.http_port, "POST", path, json.dumps(document).encode(), headers)
        assert status == 200
        # 16 bits of the example's samples may turn a tie of a model that has learned nothing.
        assert isinstance(json.loads(body)["text"], str)
    assert said is not None


def tones() -> Corpus:
    """Recordings of a second, in which a number is a pitch."""
    names = ("one", "two", "three")
    chosen = [index % 3 for index in range(60)]
    time_s = np.arange(RATE_HZ) / RATE_HZ
    waves = [np.sin(2 * np.pi * pitch_hz * time_s) for pitch_hz in (300, 800, 2000)]
    return Corpus(
        texts=tuple(names[number] for number in chosen),
        voices=tuple(map(str, range(60))),
        groups=tuple(sha256_hex(str(index).encode()) for index in range(60)),
        digests=tuple(map(str, range(60))),
        samples=np.concatenate([10_000 * waves[number] for number in chosen]).astype(np.int16),
        lengths=np.full(60, RATE_HZ),
        sounds=Sounds(
            names=("", *names),
            kinds=1 + np.array(chosen),
            starts=np.zeros(60, np.int64),
            counts=np.ones(60, np.int64),
        ),
    )


def test_an_only_head_is_guided() -> None:
    recipe = spoken_numbers_whisper(tiny=True)
    model = recipe.model.model_copy(update={"heads": 1, "seconds": 3})
    workload = DictationWorkload(recipe.model_copy(update={"model": model}), tones())
    chance = torch.Generator().manual_seed(0)
    loss, _ = workload.loss(workload.build(), workload.split.train[:2], chance)
    assert bool(torch.isfinite(loss))


def test_what_is_said_is_learned_and_when() -> None:
    recipe = spoken_numbers_whisper(tiny=True)
    recipe = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(
                update={"seconds": 3, "dropout": 0.0, "width": 64, "hidden": 128}
            ),
            "windows": recipe.windows.model_copy(update={"utterances": 2}),
            "acoustics": recipe.acoustics.model_copy(
                update={"rooms": 0.0, "noise_db": (30, 40), "playback": (1.0, 1.0)}
            ),
        }
    )
    workload = DictationWorkload(recipe, tones())
    torch.manual_seed(0)
    model = workload.build()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    chance = np.random.default_rng(0)
    losses = []
    for _ in range(300):
        batch = chance.choice(workload.split.train, 8)
        loss, _ = workload.loss(model, batch, generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 5
    assert np.mean(losses[-10:]) < 2.5
    model.train(False)
    unheard = np.concatenate([workload.split.validation, workload.split.held_out])
    measured = workload.score(model, unheard, torch.device("cpu"))
    right, words = measured["accuracy"].tolist()
    assert right / words > 0.7
    [window] = compose(
        workload.corpus,
        workload.split.held_out[:1],
        workload.split.held_out,
        Windows(utterances=1, pause_seconds=(0.4, 0.4), timed=1.0),
        (1.0, 1.0),
        3,
        generator,
    )
    samples = torch.from_numpy(window.samples / np.float32(32768))
    heard = workload.features(to_windows([samples], workload.samples))
    generate: Any = model.whisper.generate
    with without_warnings():
        written = generate(heard, return_timestamps=True, max_new_tokens=4).tolist()[0]
    first = workload.vocabulary.first_time
    start, end, *_ = [(token - first) / 50 for token in written if token >= first]
    # The very times take longer to learn than there is time for here.
    assert 0.0 <= start < end <= 3.0
    assert (start + end) / 2 == pytest.approx(0.9, abs=0.4)
    sounds = model(heard, torch.tensor([[workload.vocabulary.start]])).sounds
    assert float((sounds[0].argmax(dim=-1).numpy() == window.sounds).mean()) > 0.9
