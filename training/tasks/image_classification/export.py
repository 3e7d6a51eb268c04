"""From a checkpoint to the graph that is served."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from onnx import ModelProto

from serving.tasks.image_classification import INPUT, LABELS_FILE, OUTPUT, PREPROCESSING_FILE
from training import durable
from training.graphs.trace import trace
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
    batch = torch.export.Dim("batch")
    return trace(model, {INPUT: example}, [INPUT], [OUTPUT], {INPUT: {0: batch}})
