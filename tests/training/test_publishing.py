"""Export, quantise, publish: what is proven passes, and what is not is refused by name."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from serving.engines.onnx import open_graph
from serving.pbtxt import read_config
from serving.repository import verify_checksums, versions
from serving.tasks import load_task
from tests.training.conftest import Slipway
from training.parity import ParityReport
from training.runs import RunDirectory
from training.tasks.image_classification.evaluate import compute_logits
from training.tasks.image_classification.images import open_images, split_images
from training.tasks.image_classification.network import load_model
from training.tasks.image_classification.recipe import ImageRecipe
from training.tasks.image_classification.verify import verify_float32

# Exporting


def test_the_export_is_proven(tiny_run: RunDirectory) -> None:
    parity = ParityReport.load(tiny_run.export("float32") / "parity.json")
    assert parity.passed
    assert {check.name for check in parity.checks} == {
        "input, -1 is any batch size",
        "output, -1 is any batch size",
        "difference from torch, batch of 1",
        "difference from torch, batch of 2",
        "difference from torch, batch of 64",
        "difference between batched and alone",
        "difference from torch in held-out accuracy",
    }
    assert parity.files.keys() == {
        *("model.onnx", "labels.txt", "preprocessing.json", "example.png", "example.json"),
    }


def test_the_same_model_exports_to_the_same_bytes(
    own_run: RunDirectory, tiny_run: RunDirectory, slipway: Slipway
) -> None:
    result = slipway("export", own_run.path)
    assert result.exit_code == 0, result.output
    graphs = [run.export("float32") / "model.onnx" for run in (own_run, tiny_run)]
    assert graphs[0].read_bytes() == graphs[1].read_bytes()
    # The exporter notes where in the source each node comes from; that is nobody's business.
    assert b".py" not in graphs[0].read_bytes()


def nudge_a_weight(graph: ModelProto) -> None:
    weight = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 4)
    nudged = numpy_helper.to_array(weight) + np.float32(1e-3)
    weight.CopyFrom(numpy_helper.from_array(nudged, weight.name))


def fix_the_batch(graph: ModelProto) -> None:
    for tensor in (*graph.graph.input, *graph.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 64


def rename_the_output(graph: ModelProto) -> None:
    graph.graph.node[-1].output[0] = graph.graph.output[0].name = "scores"


def mix_the_batch(graph: ModelProto) -> None:
    """Take the mean over the batch from every logit, which no row alone could know."""
    last = graph.graph.node[-1]
    last.output[0] = "alone"
    axes = numpy_helper.from_array(np.array([0]), "batch_axis")
    graph.graph.initializer.append(axes)
    graph.graph.node.append(
        onnx.helper.make_node("ReduceMean", ["alone", "batch_axis"], ["of all"])
    )
    graph.graph.node.append(onnx.helper.make_node("Sub", ["alone", "of all"], ["logits"]))


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (nudge_a_weight, "difference from torch, batch of 1"),
        (mix_the_batch, "difference between batched and alone"),
        (fix_the_batch, "input, -1 is any batch size"),
        (rename_the_output, "output, -1 is any batch size"),
    ],
)
def test_a_graph_that_is_not_the_model_fails(
    own_run: RunDirectory, spoil: Callable[[ModelProto], None], check: str
) -> None:
    failed = _failed_checks(own_run, spoil)
    assert check in failed


def _failed_checks(run: RunDirectory, spoil: Callable[[ModelProto], None]) -> list[str]:
    path = run.export("float32") / "model.onnx"
    graph = onnx.load(path)
    spoil(graph)
    path.write_bytes(graph.SerializeToString())
    recipe = ImageRecipe.load(run.recipe)
    images = open_images(recipe.data, None)
    model = load_model(run.checkpoint)
    parity = verify_float32(path.parent, model, images, split_images(images), recipe.acceptance)
    return [check.name for check in parity.checks if not check.passed]


def test_an_export_that_fails_names_the_check_and_leaves_the_report(
    tmp_path: Path, tiny_run: RunDirectory, slipway: Slipway
) -> None:
    run = RunDirectory(shutil.copytree(tiny_run.path, tmp_path / "strict"))
    recipe = json.loads(run.recipe.read_text())
    recipe["acceptance"]["parity"] = 1e-12
    run.recipe.write_text(json.dumps(recipe))
    result = slipway("export", run.path)
    assert result.exit_code == 1
    assert "fails the check 'difference from torch, batch of" in result.stderr
    assert not ParityReport.load(run.export("float32") / "parity.json").passed
    result = slipway("publish", run.path, "--model-repository", tmp_path / "repository")
    assert result.exit_code == 1
    assert "fails the check" in result.stderr
    assert not (tmp_path / "repository").exists()


# Quantising


def test_int8_is_smaller_and_says_what_it_costs(tiny_run: RunDirectory) -> None:
    parity = ParityReport.load(tiny_run.export("int8") / "parity.json")
    assert parity.passed
    assert any(check.name == "accuracy loss" for check in parity.checks)
    assert parity.measurements["size, ratio to float32"] < 0.5
    assert parity.measurements["speed, ratio to float32, batch of 64"] > 0
    operators = {
        node.op_type for node in onnx.load(tiny_run.export("int8") / "model.onnx").graph.node
    }
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators


def test_without_an_export_there_is_nothing_to_quantise(
    own_run: RunDirectory, slipway: Slipway
) -> None:
    shutil.rmtree(own_run.path / "export")
    result = slipway("quantize", own_run.path)
    assert result.exit_code == 1
    assert "has no float32 export: run slipway export" in result.stderr


def test_int8_that_costs_too_much_is_not_published(
    own_run: RunDirectory, tmp_path: Path, slipway: Slipway
) -> None:
    path = own_run.export("int8") / "parity.json"
    parity = json.loads(path.read_text())
    loss = next(check for check in parity["checks"] if check["name"] == "accuracy loss")
    loss |= {"measured": 0.06, "passed": False}
    path.write_text(json.dumps(parity))
    result = slipway(
        *("publish", own_run.path, "--model-repository", tmp_path, "--precision", "int8")
    )
    assert result.exit_code == 1
    assert "fails the check 'accuracy loss': measured 0.06, the limit is 0.05" in result.stderr


# Publishing


def test_a_published_version_is_whole_and_answers_as_torch_does(
    tiny_run: RunDirectory, tmp_path: Path, slipway: Slipway
) -> None:
    result = slipway("publish", tiny_run.path, "--model-repository", tmp_path)
    assert result.exit_code == 0, result.output
    [found] = versions(tmp_path / "digits", read_config(tmp_path / "digits"))
    assert (found.config.name, found.version) == ("digits", 1)
    verify_checksums(found.directory)
    assert {path.name for path in found.directory.iterdir()} == {
        *("model.onnx", "labels.txt", "preprocessing.json", "parity.json"),
        *("manifest.json", "README.md", "curves.png", "example.png", "example.json"),
    }
    assert {path.name for path in found.directory.parent.iterdir()} == {
        *("config.pbtxt", "labels.txt", "1"),
    }
    recipe, origin = tiny_run.load()
    manifest = json.loads((found.directory / "manifest.json").read_text())
    assert manifest["recipe"] == recipe.model_dump(mode="json")
    assert manifest["data_hash"] == origin.data_hash
    for path in found.directory.rglob("*"):
        assert str(tiny_run.path.parent).encode() not in path.read_bytes(), path.name

    images = open_images(ImageRecipe.load(tiny_run.recipe).data, None)
    held_out = split_images(images).held_out
    some = held_out[:8]
    task = load_task("image_classification", found.directory)
    picture = (found.directory / "example.png").read_bytes()
    [example] = task.preprocess(picture, task.Parameters()).tensors["image"]
    assert any(np.array_equal(example, picture) for picture in images.read(held_out))
    assert [spec.name for spec in (*task.inputs, *task.outputs)] == ["image", "logits"]

    async def answers() -> np.ndarray:
        engine = open_graph(found.directory / "model.onnx")
        outputs = await engine.infer({"image": images.read(some)})
        await engine.close()
        return np.asarray(outputs["logits"])

    expected = compute_logits(load_model(tiny_run.checkpoint), images, some).numpy()
    np.testing.assert_allclose(asyncio.run(answers()), expected, atol=1e-5)


def test_the_card_has_the_figures_and_the_commands(
    tiny_run: RunDirectory, tmp_path: Path, slipway: Slipway
) -> None:
    slipway("publish", tiny_run.path, "--model-repository", tmp_path / "repository")
    card = (tmp_path / "repository" / "digits" / "1" / "README.md").read_text()
    report = json.loads(tiny_run.report.read_text())
    assert f"**{report['held_out']['accuracy']:.4f}**" in card
    assert f"{report['baseline']['held_out_accuracy']:.4f}" in card
    for command in (
        "slipway train digits --run-dir digits --tiny --set acceptance.int8_loss=0.05",
        "slipway export digits",
        "slipway publish digits --model-repository repository --name digits --precision float32",
    ):
        assert command in card
    assert "![" in card


def test_the_next_version_gets_the_next_number(
    tiny_run: RunDirectory, tmp_path: Path, slipway: Slipway
) -> None:
    command = ("publish", tiny_run.path, "--model-repository", tmp_path, "--name", "other")
    for precision in ("float32", "int8", "float32"):
        result = slipway(*command, "--precision", precision)
        assert result.exit_code == 0, result.output
    shutil.rmtree(tmp_path / "other" / "2")
    assert slipway(*command).exit_code == 0
    versions = {path.name for path in (tmp_path / "other").iterdir() if path.is_dir()}
    assert versions == {"1", "3", "4"}


def test_two_publishers_at_once_both_succeed(tiny_run: RunDirectory, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    publish = (
        "import sys; from pathlib import Path; from training.publish import publish;"
        "from training.runs import RunDirectory; sys.stdin.readline();"
        "publish(RunDirectory(Path(sys.argv[1])), Path(sys.argv[2]), None, 'float32')"
    )
    command = [sys.executable, "-c", publish, str(tiny_run.path), str(repository)]
    publishers = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for _ in range(2)]
    for publisher in publishers:  # both wait here, with everything imported
        assert publisher.stdin is not None
        publisher.stdin.write("go\n")
        publisher.stdin.flush()
    for publisher in publishers:
        publisher.communicate(timeout=60)
        assert publisher.returncode == 0
    assert sorted(path.name for path in (repository / "digits").iterdir()) == [
        *("1", "2", "config.pbtxt", "labels.txt"),
    ]
    for version in ("1", "2"):
        verify_checksums(repository / "digits" / version)


def drop_the_export(run: RunDirectory) -> None:
    shutil.rmtree(run.path / "export")


def drop_the_report(run: RunDirectory) -> None:
    (run.export("float32") / "parity.json").unlink()


def change_the_graph(run: RunDirectory) -> None:
    with (run.export("float32") / "model.onnx").open("ab") as file:
        file.write(b"\0")


def change_the_labels(run: RunDirectory) -> None:
    (run.export("float32") / "labels.txt").write_text("a\nb\n")


def add_a_file(run: RunDirectory) -> None:
    (run.export("float32") / "model.onnx.data").write_text("more weights")


def ask_for_more(run: RunDirectory) -> None:
    recipe = json.loads(run.recipe.read_text())
    recipe["acceptance"]["accuracy"] = 1.0
    run.recipe.write_text(json.dumps(recipe))


def unfinish(run: RunDirectory) -> None:
    run.report.unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (drop_the_export, "has no float32 export with a parity report: run slipway export"),
        (drop_the_report, "has no float32 export with a parity report: run slipway export"),
        (change_the_graph, "model.onnx is not what the parity report speaks of"),
        (change_the_labels, "labels.txt is not what the parity report speaks of"),
        (add_a_file, "model.onnx.data is not what the parity report speaks of"),
        (ask_for_more, "is below acceptance.accuracy 1.0"),
        (unfinish, "has not finished training"),
    ],
)
def test_what_is_not_proven_is_refused(
    own_run: RunDirectory,
    tmp_path: Path,
    slipway: Slipway,
    spoil: Callable[[RunDirectory], None],
    sentence: str,
) -> None:
    spoil(own_run)
    result = slipway("publish", own_run.path, "--model-repository", tmp_path / "repository")
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("file", "before", "after", "sentence"),
    [
        ("config.pbtxt", "[ 1, 8, 8 ]", "[ 3, 8, 8 ]", "promises the input image UINT8 [-1, 3"),
        ("config.pbtxt", "[ 10 ]", "[ 11 ]", "promises the output logits FP32 [-1, 11]"),
        ("config.pbtxt", "TYPE_UINT8", "TYPE_FP32", "promises the input image FP32"),
        ("config.pbtxt", "size: 64", "size: 128", "the export is proven up to 64"),
        ("config.pbtxt", '"onnxruntime"', '"python"', "backend is 'python'"),
        ("config.pbtxt", "backend:", "backends:", "config.pbtxt"),
        ("labels.txt", "0\n1\n", "1\n0\n", "are others than this version's"),
    ],
)
def test_a_version_that_breaks_the_models_promise_is_refused(
    tiny_run: RunDirectory,
    tmp_path: Path,
    slipway: Slipway,
    file: str,
    before: str,
    after: str,
    sentence: str,
) -> None:
    command = ("publish", tiny_run.path, "--model-repository", tmp_path)
    assert slipway(*command).exit_code == 0
    path = tmp_path / "digits" / file
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    result = slipway(*command)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert "\n" not in result.stderr.rstrip("\n")
    directories = [path.name for path in (tmp_path / "digits").iterdir() if path.is_dir()]
    assert directories == ["1"]


def test_a_name_that_is_no_name_is_refused(
    tiny_run: RunDirectory, tmp_path: Path, slipway: Slipway
) -> None:
    repository = tmp_path / "repository"
    result = slipway(
        *("publish", tiny_run.path, "--model-repository", repository, "--name", "../up")
    )
    assert result.exit_code == 1
    assert "'../up' is no name for a model" in result.stderr
    assert not repository.exists()
