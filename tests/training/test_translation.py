"""A translator from phrases to a published version, on a tiny recipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import MarianMTModel

from serving.pbtxt import read_config
from tests.training.conftest import Slipway
from training.errors import DataError
from training.parity import ParityReport
from training.recipe import override
from training.recipes.translator import translator
from training.runs import RunDirectory
from training.tasks.translation import network as marian
from training.tasks.translation.corpus import Pair, read_pairs, split_pairs
from training.tasks.translation.report import TranslationReport
from training.tasks.translation.vocabulary import train_vocabulary
from training.tasks.translation.workload import TranslationWorkload

TINY = ("train", "translator", "--tiny", "--set", "data.sentences=300")


@pytest.fixture(scope="module")
def workload() -> TranslationWorkload:
    recipe = override(translator(tiny=True), ["data.sentences=300"])
    return TranslationWorkload(recipe, read_pairs(recipe.data, None, recipe.seed))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, slipway: Slipway) -> RunDirectory:
    run = RunDirectory(tmp_path_factory.mktemp("shared") / "translator")
    result = slipway(*TINY, "--run-dir", run.path)
    assert result.exit_code == 0, result.output
    return run


# The corpus


def test_no_held_out_sentence_was_learned_from_in_any_language(
    workload: TranslationWorkload,
) -> None:
    parts = [
        {workload.pairs[index].source for index in part}
        for part in (workload.split.train, workload.split.validation, workload.split.held_out)
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 300


def write(path: Path, *rows: tuple[str, ...]) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


HEADER = ("source", "target", "language")


def test_a_file_is_read_whatever_the_order_of_its_columns(tmp_path: Path) -> None:
    settings = translator(own_data=True).data
    rows = [("de", f"word {n}", f'das "Wort" {n}') for n in range(6)]
    path = write(tmp_path / "a.tsv", ("language", "source", "target"), *rows, rows[0])
    pairs = read_pairs(settings, path, 1)
    assert pairs[2] == Pair("word 2", 'das "Wort" 2', "de")
    assert len(pairs) == 6  # the copy is left out
    assert len(split_pairs(pairs).held_out) == 1


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([("a", "b")], r"bad\.tsv: the first line must name the columns source, target, language"),
        ([], r"bad\.tsv: the first line must name"),
        ([HEADER, ("a", "b")], r"bad\.tsv, line 2: expected 3 texts with tabs between"),
        ([HEADER, ("a", " ", "de")], r"bad\.tsv, line 2: expected 3 texts"),
        ([HEADER, ("a", "b", ">>de<<")], r"line 2: '>>de<<' is no language"),
        ([HEADER, ("a", "b", "de")], r"bad\.tsv has 1 different source sentences"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    rows: list[tuple[str, ...]], sentence: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "bad.tsv", *rows)
    with pytest.raises(DataError, match=sentence):
        read_pairs(translator(own_data=True).data, path, 1)


def test_source_and_file_belong_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data FILE\.tsv"):
        read_pairs(translator(own_data=True).data, None, 1)
    with pytest.raises(DataError, match="drop --data"):
        read_pairs(translator().data, tmp_path, 1)
    with pytest.raises(DataError, match="No such file"):
        read_pairs(translator(own_data=True).data, tmp_path / "nowhere.tsv", 1)


# The vocabulary


def test_pieces_give_back_the_text(workload: TranslationWorkload) -> None:
    train = [workload.pairs[index] for index in workload.split.train]
    vocabulary = workload.vocabulary
    for pair in train:
        assert vocabulary.decode(vocabulary.encode_target(pair.target)) == pair.target


def test_the_same_sentences_make_the_same_vocabulary(
    workload: TranslationWorkload, tmp_path: Path
) -> None:
    texts = [pair.target for pair in workload.pairs]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        train_vocabulary(texts, ("de", "fr"), 500).save(tmp_path / name, 64)
    for file in ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


# Batches


def test_an_epoch_shows_every_pair_once_in_batches_within_the_budget(
    workload: TranslationWorkload,
) -> None:
    sources, targets = workload._lengths
    orders = []
    for seed in (1, 2):
        batches = workload.batches(np.random.default_rng(seed))
        assert len(batches) == workload.steps
        orders.append(np.concatenate(batches))
        assert sorted(orders[-1]) == sorted(workload.split.train)
        for batch in batches:
            tokens = len(batch) * (sources[batch].max() + targets[batch].max())
            assert tokens <= workload.recipe.batch_size
    assert orders[0].tolist() != orders[1].tolist()


# A run


def test_a_run_leaves_a_checkpoint_that_transformers_loads(
    run: RunDirectory, workload: TranslationWorkload
) -> None:
    assert {path.name for path in run.checkpoint.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("source.spm", "target.spm", "vocab.json", "tokenizer_config.json"),
    }
    model, tokenizer = marian.load(run.checkpoint)
    assert isinstance(model, MarianMTModel)
    for weight in safetensors.torch.load_file(run.checkpoint / "model.safetensors").values():
        assert torch.equal(weight, weight.half().float())
    pair = workload.pairs[0]
    ids = tokenizer(f">>{pair.language}<< {pair.source}").input_ids
    assert ids == workload.vocabulary.encode_source(pair.source, pair.language)
    assert len(tokenizer) == model.config.vocab_size == len(workload.vocabulary)
    report = TranslationReport.load(run.report)
    assert [score.language for score in report.held_out] == ["de", "fr", "es"]
    assert report.examples.held_out == 3 * report.held_out[0].sentences == 72
    assert run.metrics.read_text().splitlines()[0] == (
        "epoch,learning_rate,train_loss,train_accuracy,"
        "validation_loss,validation_accuracy,validation_exact_match"
    )
    assert run.curves.exists()


def test_killed_and_resumed_is_the_uninterrupted_run(
    run: RunDirectory, tmp_path: Path, slipway: Slipway
) -> None:
    killed = RunDirectory(tmp_path / "killed")
    program = "from serving.cli import main; main(prog_name='slipway')"
    command = [sys.executable, "-c", program, *TINY, "--run-dir", str(killed.path)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        while not (killed.states / "epoch-00001").exists():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    result = slipway(*TINY, "--run-dir", killed.path, "--resume")
    assert result.exit_code == 0, result.output
    for name in ("model.safetensors", "config.json", "source.spm", "vocab.json"):
        made = (killed.checkpoint / name).read_bytes()
        assert made == (run.checkpoint / name).read_bytes(), name
    assert killed.metrics.read_bytes() == run.metrics.read_bytes()


def test_from_run_to_published_version(run: RunDirectory, tmp_path: Path, slipway: Slipway) -> None:
    for command in (("export", run.path), ("publish", run.path, "--model-repository", tmp_path)):
        result = slipway(*command)
        assert result.exit_code == 0, result.output
    assert ParityReport.load(run.export("float32") / "parity.json").passed
    version = tmp_path / "translator" / "1"
    assert {path.name for path in version.iterdir()} >= {
        *("encoder.onnx", "decoder.onnx", "generation.json", "source.spm", "target.spm"),
        *("vocab.json", "tokenizer_config.json", "manifest.json", "parity.json", "README.md"),
        *("curves.png", "example.txt", "example.json"),
    }
    config = read_config(tmp_path / "translator")
    assert (config.backend, config.task) == ("python", "translation")
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["metrics"].keys() >= {"held_out_exact_match_de", "held_out_bleu_es"}
    assert manifest["recipe"]["model"]["width"] == 64
    assert (version / "example.txt").read_text().startswith((">>de<<", ">>fr<<", ">>es<<"))
    card = (version / "README.md").read_text()
    assert "Unicode License V3" in card
    assert str(tmp_path) not in card

    path = tmp_path / "translator" / "config.pbtxt"
    path.write_text(path.read_text().replace('"translation"', '"text_generation"'))
    result = slipway("publish", run.path, "--model-repository", tmp_path)
    assert result.exit_code == 1
    assert "promises the task 'text_generation' and this version has 'translation'" in result.stderr


def test_below_the_wanted_exact_match_nothing_is_published(
    run: RunDirectory, tmp_path: Path
) -> None:
    from training.errors import PublishRefused
    from training.tasks.translation.publication import TranslationPublication

    recipe = override(translator(tiny=True), ["acceptance.exact_match=1.0"])
    parity = ParityReport(precision="float32", checks=(), measurements={}, files={})
    publication = TranslationPublication(run, recipe, "float32", parity)
    with pytest.raises(PublishRefused, match=r"is below acceptance\.exact_match 1\.0"):
        publication.require_quality()


def test_the_users_own_corpus_trains_by_the_same_recipe(tmp_path: Path, slipway: Slipway) -> None:
    digits = "null eins zwei drei vier fünf sechs sieben acht neun".split()  # noqa: SIM905
    rows = [
        (f"{a} and {b}", f"{digits[a]} und {digits[b]}", "de") for a in range(10) for b in range(10)
    ]
    path = write(tmp_path / "corpus.tsv", HEADER, *rows)
    run = RunDirectory(tmp_path / "own")
    result = slipway(
        *("train", "translator", "--tiny", "--data", path, "--run-dir", run.path),
        *("--set", "data.vocabulary=80", "--set", "epochs=2"),
    )
    assert result.exit_code == 0, result.output
    report = TranslationReport.load(run.report)
    assert [score.language for score in report.held_out] == ["de"]
    assert report.examples.train == 90


def test_a_width_that_heads_cannot_share_is_refused(tmp_path: Path, slipway: Slipway) -> None:
    result = slipway(
        *("train", "translator", "--set", "model.heads=7", "--run-dir", tmp_path / "run")
    )
    assert result.exit_code == 1
    assert "it must be even and a multiple of model.heads, which is 7" in result.stderr
