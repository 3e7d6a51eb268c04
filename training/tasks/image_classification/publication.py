"""An image classifier in a model repository: its config.pbtxt, its card, its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving.pbtxt import CONFIG_FILE, read_config
from serving.tasks.image_classification import INPUT, LABELS_FILE, OUTPUT
from serving.types import DYNAMIC, TensorSpec
from training import durable
from training.checkpoint import CONFIG_FILE as CHECKPOINT_CONFIG_FILE
from training.errors import PublishRefused
from training.parity import ParityReport
from training.runs import GRAPH_FILE, RunDirectory
from training.tasks.image_classification.card import model_card
from training.tasks.image_classification.network import ImageClassifierConfig
from training.tasks.image_classification.recipe import ImageRecipe
from training.tasks.image_classification.report import ImageReport
from training.tasks.image_classification.verify import HELD_OUT_ACCURACY, MAX_BATCH_SIZE


class ImagePublication:
    packages = ("pillow", "scikit-learn")

    def __init__(
        self, run: RunDirectory, recipe: ImageRecipe, precision: str, parity: ParityReport
    ):
        self.recipe = recipe
        self.precision = precision
        self.parity = parity
        self.report = ImageReport.load(run.report)
        self._run = run

    @property
    def metrics(self) -> dict[str, float | None]:
        baseline = self.report.baseline
        return {
            # Of the published graph, in the engine that serves it.
            "held_out_accuracy": self.parity.measurements[HELD_OUT_ACCURACY],
            "validation_accuracy": self.report.validation_accuracy,
            "baseline_held_out_accuracy": baseline.held_out_accuracy if baseline else None,
        }

    def require_quality(self) -> None:
        accuracy, wanted = self.report.held_out.accuracy, self.recipe.acceptance.accuracy
        if accuracy < wanted:
            raise PublishRefused(
                f"{self._run.path}: held-out accuracy {accuracy:.4f} is below"
                f" acceptance.accuracy {wanted}; train a better model"
            )

    def promise(self, model: Path) -> None:
        """By inputs, outputs and labels."""
        network = ImageClassifierConfig.load(self._run.checkpoint / CHECKPOINT_CONFIG_FILE)
        _promise(model, network, self._run.export(self.precision))

    def card(self, name: str, commands: Sequence[str]) -> str:
        return model_card(name, self.precision, self.recipe, self.report, self.parity, commands)


def _promise(model: Path, network: ImageClassifierConfig, export: Path) -> None:
    labels = (export / LABELS_FILE).read_text(encoding="utf-8")
    config_path = model / CONFIG_FILE
    if not config_path.exists():
        # Labels first: a config must not name a file that is not there yet.
        durable.write_new(model / LABELS_FILE, labels)
        durable.write_new(config_path, _config_text(model.name, network))
    # Also after writing: another first publisher may have been faster, with another model.
    config = read_config(model)
    _check_tensors(config_path, "input", config.inputs, _input(network))
    _check_tensors(config_path, "output", config.outputs, _output(network))
    if config.backend != "onnxruntime":
        raise PublishRefused(
            f"{config_path}: backend is {config.backend!r}, and this version needs 'onnxruntime'"
        )
    if config.model_filename != GRAPH_FILE:
        raise PublishRefused(
            f"{config_path}: default_model_filename is {config.model_filename!r},"
            f" and this version has {GRAPH_FILE!r}"
        )
    if config.max_batch_size > MAX_BATCH_SIZE:
        raise PublishRefused(
            f"{config_path}: max_batch_size is {config.max_batch_size},"
            f" and the export is proven up to {MAX_BATCH_SIZE}"
        )
    for output, promised in config.labels.items():
        if promised != tuple(labels.splitlines()):
            raise PublishRefused(
                f"{config_path}: the labels of {output!r} are others than this version's:"
                " publish it as another model with --name"
            )


def _check_tensors(
    path: Path, kind: str, promised: tuple[TensorSpec, ...], offered: TensorSpec
) -> None:
    if promised != (offered,):
        raise PublishRefused(
            f"{path} promises the {kind} {_describe(*promised)} and this version has"
            f" {_describe(offered)}: publish it as another model with --name"
        )


def _describe(*tensors: TensorSpec) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in tensors)


def _input(network: ImageClassifierConfig) -> TensorSpec:
    return TensorSpec(INPUT, "UINT8", (DYNAMIC, network.channels, network.height, network.width))


def _output(network: ImageClassifierConfig) -> TensorSpec:
    return TensorSpec(OUTPUT, "FP32", (DYNAMIC, network.classes))


def _config_text(name: str, network: ImageClassifierConfig) -> str:
    return f"""\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH_SIZE}
input {{
  name: "{INPUT}"
  data_type: TYPE_UINT8
  dims: [ {network.channels}, {network.height}, {network.width} ]
}}
output {{
  name: "{OUTPUT}"
  data_type: TYPE_FP32
  dims: [ {network.classes} ]
  label_filename: "{LABELS_FILE}"
}}
dynamic_batching {{
  max_queue_delay_microseconds: 2000
}}
parameters {{
  key: "task"
  value {{ string_value: "image_classification" }}
}}
"""
