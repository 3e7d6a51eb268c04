"""`slipway train writer`: a language model, from the standard library's sources to its answers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from serving.pbtxt import read_config
from serving.repository import verify_checksums, versions
from tests.support import RunningServer, call, serving
from tests.training.conftest import Slipway
from training.errors import DataError
from training.parity import ParityReport
from training.recipes.writer import writer
from training.runs import RunDirectory
from training.tasks.text_generation import vocabulary
from training.tasks.text_generation.corpus import read_corpus
from training.tasks.text_generation.evaluate import evaluate
from training.tasks.text_generation.report import TextReport
from training.tasks.text_generation.standard_library import read_standard_library
from training.tasks.text_generation.workload import TextWorkload

PROMPT = "def "
NEW_TOKENS = 8
TEXTS = ("def größe(self):\n    return 7\n", "\t# 語 🙂\r\n", "", " a  b ")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, slipway: Slipway) -> RunDirectory:
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "writer")
    for command in (("train", "writer", "--tiny", "--run-dir", run.path), ("export", run.path)):
        result = slipway(*command)
        assert result.exit_code == 0, result.exc_info
    return run


@pytest.fixture(scope="module")
def repository(
    run: RunDirectory, tmp_path_factory: pytest.TempPathFactory, slipway: Slipway
) -> Path:
    directory = tmp_path_factory.mktemp("repository")
    result = slipway("publish", run.path, "--model-repository", directory)
    assert result.exit_code == 0, result.exc_info
    return directory


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    with serving(repository) as running:
        yield running


@pytest.fixture(scope="module")
def workload() -> TextWorkload:
    recipe = writer(tiny=True)
    return TextWorkload(recipe, read_corpus(recipe.data, None))


def refusal(result: Result) -> str:
    assert result.exit_code == 1, result.exc_info
    [line] = result.stderr.splitlines()
    return line


def by_transformers(run: RunDirectory, prompt: str, **settings: Any) -> str:
    """As anybody would use the checkpoint."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run.checkpoint)
    model = GPT2LMHeadModel.from_pretrained(run.checkpoint)
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(
        inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=False, **settings
    )
    text = tokenizer.decode(tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert isinstance(text, str)
    return text


# From training to an answer


def test_the_answer_is_that_of_transformers(run: RunDirectory, server: RunningServer) -> None:
    expected = by_transformers(run, PROMPT, max_new_tokens=NEW_TOKENS)
    assert expected
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": NEW_TOKENS}}
    status, answer = call(
        *(server.http_port, "POST", "/models/writer", json.dumps(body).encode()),
        {"Content-Type": "application/json"},
    )
    assert (status, json.loads(answer)) == (200, [{"generated_text": expected}])


def test_a_stream_adds_up_to_the_same_text(run: RunDirectory, server: RunningServer) -> None:
    body = {"text_input": PROMPT, "max_new_tokens": NEW_TOKENS}
    status, answer = call(
        *(server.http_port, "POST", "/v2/models/writer/generate_stream"), json.dumps(body).encode()
    )
    assert status == 200
    events = [
        json.loads(event.removeprefix("data: "))["text_output"]
        for event in answer.decode().split("\n\n")
        if event
    ]
    assert len(events) > 1
    assert "".join(events) == by_transformers(run, PROMPT, max_new_tokens=NEW_TOKENS)


def test_the_example_is_answered_as_it_says(repository: Path, server: RunningServer) -> None:
    version = repository / "writer" / "1"
    status, answer = call(
        server.http_port, "POST", "/models/writer", (version / "example.txt").read_bytes()
    )
    expected = json.loads((version / "example.json").read_text())["answer"]
    assert (status, json.loads(answer)) == (200, [{"generated_text": expected}])


def test_the_version_is_whole(run: RunDirectory, repository: Path) -> None:
    config = read_config(repository / "writer")
    assert config.parameters == {"task": "text_generation", "stepper": "generation"}
    assert config.decoupled
    [version] = versions(repository / "writer", config)
    verify_checksums(version.directory)
    assert {path.name for path in version.directory.iterdir()} == {
        *("decoder.onnx", "generation.json", "tokenizer.json", "tokenizer_config.json"),
        *("model.py", "manifest.json", "parity.json", "README.md", "curves.png"),
        *("example.txt", "example.json"),
    }
    for path in version.directory.iterdir():
        assert str(run.path.parent).encode() not in path.read_bytes(), path.name
    parity = ParityReport.load(version.directory / "parity.json")
    measured = {check.name: check.measured for check in parity.checks}
    assert measured["difference between batched and alone"] == 0
    assert measured["greedy texts that differ from generate()"] == 0
    card = (version.directory / "README.md").read_text()
    assert "PSF licence" in card
    assert f"standard library of {TextReport.load(run.report).release}, " in card
    manifest = json.loads((version.directory / "manifest.json").read_text())
    assert 0 < manifest["metrics"]["held_out_bits_per_byte"] < 5


def test_a_second_version_keeps_the_promise(
    run: RunDirectory, repository: Path, slipway: Slipway
) -> None:
    result = slipway("publish", run.path, "--model-repository", repository, "--name", "other")
    assert result.exit_code == 0, result.exc_info
    config = repository / "other" / "config.pbtxt"
    config.write_text(config.read_text().replace("text_generation", "translation"))
    result = slipway("publish", run.path, "--model-repository", repository, "--name", "other")
    assert "promises the task 'translation'" in refusal(result)


def test_a_model_below_its_recipe_is_not_published(
    run: RunDirectory, tmp_path: Path, slipway: Slipway
) -> None:
    recipe = json.loads(run.recipe.read_text())
    recipe["acceptance"]["bits_per_byte"] = 0.5
    own = RunDirectory(tmp_path / "run")
    own.path.mkdir()
    for path in run.path.iterdir():
        (own.path / path.name).symlink_to(path)
    own.recipe.unlink()
    own.recipe.write_text(json.dumps(recipe))
    result = slipway("publish", own.path, "--model-repository", tmp_path / "repository")
    assert "is above acceptance.bits_per_byte 0.5" in refusal(result)


def test_there_is_nothing_to_quantize(run: RunDirectory, slipway: Slipway) -> None:
    result = slipway("quantize", run.path)
    assert "16 bits" in refusal(result)


# Text


def test_the_standard_library_is_read_in_one_order() -> None:
    texts = list(read_standard_library())
    assert texts == list(read_standard_library())
    assert len(texts) > 200
    assert any("class JSONEncoder" in text for text in texts)
    # How this Python was built, and where, is nobody's business.
    assert not any("build_time_vars" in text[:200] for text in texts)


def test_parts_are_whole_files_and_fixed_by_content(workload: TextWorkload) -> None:
    split = workload.split
    parts = [set(part.tolist()) for part in (split.train, split.validation, split.held_out)]
    assert set.union(*parts) == set(range(len(workload.corpus.texts)))
    assert sum(map(len, parts)) == len(workload.corpus.texts)
    assert sum(len(text.encode()) for text in workload.corpus.texts) <= workload.recipe.data.bytes
    again = TextWorkload(workload.recipe, read_corpus(workload.recipe.data, None))
    assert (again.data_hash, again.split.hash) == (workload.data_hash, split.hash)


def folder(directory: Path, texts: int = 12, size: int = 4000) -> Path:
    """Texts that differ, one of them twice."""
    (directory / "inner").mkdir(parents=True)
    for number in range(texts):
        text = f"Letter {number}. " + "Thank you for your letter. " * (size // 27)
        (directory / "inner" / f"{number}.txt").write_text(text, encoding="utf-8-sig")
    (directory / "copy.txt").write_text((directory / "inner" / "0.txt").read_text())
    (directory / "picture.png").write_bytes(b"\xff")
    (directory / "empty.txt").write_text(" \n")
    return directory


def test_own_texts(tmp_path: Path, slipway: Slipway) -> None:
    texts = folder(tmp_path / "letters")
    result = slipway(
        *("train", "writer", "--tiny", "--data", texts, "--run-dir", tmp_path / "run"),
        *("--set", "epochs=2", "--set", "data.steps=6", "--set", "data.vocabulary=270"),
    )
    assert result.exit_code == 0, result.exc_info
    report = TextReport.load(tmp_path / "run" / "report.json")
    assert report.release is None
    assert sum(report.examples.model_dump().values()) == 12


def test_what_is_no_text_to_learn_from(tmp_path: Path) -> None:
    def refused(directory: Path | None, **settings: Any) -> str:
        recipe = writer(tiny=True, own_data=directory is not None)
        data = recipe.data.model_copy(update=settings)
        with pytest.raises(DataError) as caught:
            TextWorkload(recipe, read_corpus(data, directory))
        return str(caught.value)

    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "has 4 different texts" in refused(folder(tmp_path / "few", texts=4))
    assert "bytes of text to learn from" in refused(folder(tmp_path / "short", size=100))
    assert "within data.bytes" in refused(folder(tmp_path / "large"), bytes=10_000)
    assert "say which with --data DIR" in refused(None, source="folder")
    assert "drop --data" in refused(tmp_path, source="standard_library")
    (folder(tmp_path / "latin") / "a.txt").write_bytes("größe".encode("latin-1"))
    assert "latin/a.txt: expected UTF-8" in refused(tmp_path / "latin")


# Tokens


def test_the_vocabulary_is_the_same_again_and_loses_nothing(workload: TextWorkload) -> None:
    train = [workload.corpus.texts[index] for index in workload.split.train]
    again = vocabulary.train(train, workload.recipe.data.vocabulary)
    assert again.to_str() == workload.tokenizer.to_str()
    assert again.get_vocab_size() == workload.recipe.data.vocabulary
    for text in TEXTS:
        assert again.decode(again.encode(text).ids) == text
    longest = max(len(token) for token in again.get_vocab() if token != vocabulary.END)
    assert longest <= vocabulary.LONGEST_TOKEN


def test_every_library_reads_the_same_tokens(run: RunDirectory) -> None:
    ours = vocabulary.load(run.checkpoint)
    for tokenizer in (
        PreTrainedTokenizerFast.from_pretrained(run.checkpoint),
        AutoTokenizer.from_pretrained(run.checkpoint),
    ):
        for text in TEXTS:
            ids = tokenizer(text).input_ids
            assert ids == ours.encode(text).ids
            assert tokenizer.decode(ids) == text
        assert tokenizer.eos_token_id == vocabulary.END_ID


def test_a_beginning_is_no_longer_than_asked_and_whole() -> None:
    tokenizer = vocabulary.train(["語" * 50], 257)
    assert vocabulary.beginning(tokenizer, "語" * 50, 4) in ("語", "語語")
    assert vocabulary.beginning(tokenizer, "ab", 4) == "ab"


# Learning


def test_batches_are_other_windows_in_each_epoch(workload: TextWorkload) -> None:
    context = workload.recipe.model.context
    epochs = [workload.batches(np.random.default_rng(seed)) for seed in (1, 2, 1)]
    for batches in epochs:
        assert len(batches) == workload.steps
        places = np.sort(np.concatenate(batches))
        assert len(places) == workload.steps * workload.recipe.batch_size
        assert (np.diff(places) >= context).all()
        assert places[-1] + context < len(workload._stream)
    assert np.array_equal(epochs[0], epochs[2])
    assert not np.array_equal(epochs[0], epochs[1])


def test_every_token_is_foretold_once(workload: TextWorkload) -> None:
    model = workload.build()
    model.train(False)
    texts = [np.arange(length) % 7 for length in (2, 64, 65, 66, 200)]
    totals = evaluate(model, texts, 64, torch.device("cpu"))
    loss = right = 0.0
    with torch.no_grad():
        for text in texts:
            for start in range(0, len(text) - 1, 64):
                window = torch.from_numpy(text[start : start + 65])
                guesses = model(window[None, :-1]).logits[0].log_softmax(dim=1)
                loss -= float(guesses.gather(1, window[1:, None]).sum())
                right += float((guesses.argmax(dim=1) == window[1:]).sum())
    tokens = sum(len(text) - 1 for text in texts)
    assert totals["loss"].tolist() == pytest.approx([loss, tokens], rel=1e-5)
    assert totals["accuracy"].tolist() == [right, tokens]


def test_the_tiny_model_learned(run: RunDirectory) -> None:
    report = TextReport.load(run.report)
    tokenizer = Tokenizer.from_file(str(run.checkpoint / "tokenizer.json"))
    held_out = report.held_out
    assert held_out.loss < math.log(tokenizer.get_vocab_size()) - 1
    assert held_out.bits_per_byte == pytest.approx(
        held_out.loss * held_out.tokens / math.log(2) / held_out.bytes
    )
    assert 0 < report.baseline.after_training_text <= report.baseline.alone


def test_weights_are_what_16_bits_hold(run: RunDirectory) -> None:
    model = GPT2LMHeadModel.from_pretrained(run.checkpoint)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, weight.half().float()), name
