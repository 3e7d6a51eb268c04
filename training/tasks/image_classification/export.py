"""From a checkpoint to the graph that is served."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from onnx import ModelProto
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from serving.tasks.image_classification import INPUT, LABELS_FILE, OUTPUT, PREPROCESSING_FILE
from training import durable
from training.parity import ParityReport
from training.runs import FLOAT32, GRAPH_FILE, PARITY_FILE, RunDirectory
from training.split import Split
from training.tasks.image_classification.example import write_example
from training.tasks.image_classification.images import LabelledImages
from training.tasks.image_classification.network import ImageClassifier, load_model
from training.tasks.image_classification.recipe import ImageRecipe
from training.tasks.image_classification.verify import verify_float32


def export(
    run: RunDirectory, recipe: ImageRecipe, images: LabelledImages, split: Split
) -> ParityReport:
    """Write the graph with what it needs to be served, and the proof that it equals the model.

    Raises `ParityError` with the first check that failed; the report is written all the same.
    """
    model = load_model(run.checkpoint)
    with staged_export(run, FLOAT32) as directory:
        (directory / GRAPH_FILE).write_bytes(to_onnx(model).SerializeToString())
        write_example(directory, model, images, split)
        parity = verify_float32(directory, model, images, split, recipe.acceptance)
        parity.save(directory / PARITY_FILE)
    parity.require()
    return parity


@contextmanager
def staged_export(run: RunDirectory, precision: str) -> Iterator[Path]:
    """A directory with labels and preprocessing in it, which replaces the run's earlier export."""
    destination = run.export(precision)
    with durable.staged_directory(destination.parent) as staged:
        for name in (LABELS_FILE, PREPROCESSING_FILE):
            shutil.copyfile(run.path / name, staged / name)
        yield staged
        shutil.rmtree(destination, ignore_errors=True)
        durable.move_into_place(staged, destination)


def to_onnx(model: ImageClassifier) -> ModelProto:
    """Trace the network; the name of its argument is the name of the graph's input."""
    config = model.config
    # Two rows, because one would be taken for a constant.
    example = torch.zeros(2, config.channels, config.height, config.width, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    assert program is not None, "torch.onnx.export(dynamo=True) returns a program. This is a bug."
    # Notes on where each node comes from hold the paths of source files.
    ClearMetadataAndDocStringPass()(program.model)
    graph = program.model_proto
    onnx.checker.check_model(graph, full_check=True)
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself; what goes wrong is raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch 2.13 uses names of its own that it has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
