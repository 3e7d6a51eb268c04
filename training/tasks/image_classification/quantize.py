"""Eight-bit integers instead of floating point, where the accuracy hardly notices."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import tqdm

from serving.tasks.image_classification import INPUT
from training.errors import RunError
from training.graphs.trace import quiet
from training.parity import ParityReport
from training.runs import FLOAT32, GRAPH_FILE, INT8, PARITY_FILE, RunDirectory
from training.split import Split
from training.tasks.image_classification.evaluate import batches
from training.tasks.image_classification.example import ANSWER_FILE, EXAMPLE_FILE
from training.tasks.image_classification.export import staged_export
from training.tasks.image_classification.images import Images, LabelledImages
from training.tasks.image_classification.network import load_model
from training.tasks.image_classification.recipe import ImageRecipe
from training.tasks.image_classification.verify import verify_int8

CALIBRATION_PICTURES = 512
CALIBRATION_BATCH = 32


def quantize(
    run: RunDirectory, recipe: ImageRecipe, images: LabelledImages, split: Split
) -> ParityReport:
    """Write an int8 graph beside the float32 one, with a parity report of its own.

    Raises `RunError` without a float32 export, and `ParityError` with the check that failed.
    """
    float32 = run.export(FLOAT32)
    if not (float32 / PARITY_FILE).exists():
        raise RunError(f"{run.path} has no float32 export: run slipway export {run.path} first")
    model = load_model(run.checkpoint)
    with staged_export(run, INT8) as directory:
        _quantize_graph(float32 / GRAPH_FILE, directory / GRAPH_FILE, images, split)
        for name in (EXAMPLE_FILE, ANSWER_FILE):
            shutil.copyfile(float32 / name, directory / name)
        parity = verify_int8(directory, float32, model.config, images, split, recipe.acceptance)
        parity.save(directory / PARITY_FILE)
    parity.require()
    return parity


def _quantize_graph(source: Path, target: Path, images: LabelledImages, split: Split) -> None:
    # The preprocessor advises to run the preprocessor.
    with tempfile.TemporaryDirectory() as scratch, quiet(None):
        prepared = Path(scratch, GRAPH_FILE)
        quant_pre_process(source, prepared)
        quantize_static(
            prepared,
            target,
            _TrainingPictures(images, split),
            quant_format=QuantFormat.QDQ,
            # What CPUs multiply fastest: unsigned activations with signed weights.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Each filter has a scale of its own; they differ too much to share one.
            per_channel=True,
            # Seven bits for weights: on CPUs without VNNI, eight overflow in the addition.
            reduce_range=True,
        )


class _TrainingPictures(CalibrationDataReader):  # type: ignore[misc]  # has no type information
    """Shows the calibrator pictures of the training part, spread over all classes."""

    def __init__(self, images: LabelledImages, split: Split):
        spread = np.linspace(0, len(split.train) - 1, CALIBRATION_PICTURES).astype(np.int64)
        chosen = split.train[np.unique(spread)]
        total = -(-len(chosen) // CALIBRATION_BATCH)
        self._batches: Iterator[Images] = iter(
            tqdm(batches(images, chosen, CALIBRATION_BATCH), "calibrating", total, unit="batch")
        )

    def get_next(self) -> dict[str, Images] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
