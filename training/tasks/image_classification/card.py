"""The model card: what a version is, how good it is, and how to make it again."""

from __future__ import annotations

import math
from collections.abc import Sequence

from training.card import last_sections
from training.parity import ParityReport
from training.runs import CURVES_FILE
from training.tasks.image_classification.evaluate import Evaluation
from training.tasks.image_classification.recipe import ImageRecipe
from training.tasks.image_classification.report import ImageReport
from training.tasks.image_classification.verify import HELD_OUT_ACCURACY

_SOURCES = {
    "digits": (
        "The 1,797 handwritten digits inside scikit-learn (`sklearn.datasets.load_digits`): 8×8,"
        " greyscale, written by 43 people on forms and scanned. They are the test part of"
        " E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits* (1998), UCI"
        " Machine Learning Repository, CC BY 4.0."
    ),
    "folder": "The user's own pictures, one folder per class.",
}
_LIMITS = {
    "digits": (
        "For one upright digit that fills most of a picture, light on dark or dark on light."
        " The training digits were centred, cropped and drawn by few people, and the held-out"
        " figures are for pictures like them: expect less of photographs, of several digits in"
        " one picture, and of other handwritings. A picture of anything else also gets a digit,"
        " sometimes with a high score. Not for decisions that matter without a person's check."
    ),
    "folder": (
        "For pictures like those it was trained on. A picture of anything else also gets one of"
        " the labels, sometimes with a high score."
    ),
}
_REMARKS = {
    "digits": (
        "The rule by which the kept epoch is chosen was changed once after the held-out figure"
        " had been seen, because of cross-validation without the held-out part; the project's"
        " docs/log.md has the figures before and after, and those of other seeds."
    ),
    "folder": "",
}


def model_card(
    name: str,
    precision: str,
    recipe: ImageRecipe,
    report: ImageReport,
    parity: ParityReport,
    commands: Sequence[str],
) -> str:
    """Markdown."""
    labels = [score.label for score in report.held_out.per_class]
    data = recipe.data
    colours = {"L": "greyscale", "RGB": "colour"}[data.mode]
    return f"""\
# {name}

Tells {len(labels)} classes of pictures apart: {", ".join(labels)}. A convolutional network with \
stages of {", ".join(map(str, recipe.model.widths))} feature maps, exported to ONNX in \
{precision}. Input `image`: UINT8 [batch, {data.preprocessing.channels}, \
{data.height}, {data.width}], {colours}, 0 to 255; output `logits`: FP32 [batch, {len(labels)}]. \
Normalisation is inside the graph.

## Intended use and limits

{_LIMITS[data.source]}

## Data

{_SOURCES[data.source]}

{report.examples.train} pictures were learned from, {report.examples.validation} chose the epoch, \
and {report.examples.held_out} were held out for the figures below. The parts are fixed by the \
sha256 of each picture; copies of a picture are always in the same part.

## Accuracy

| | held-out accuracy |
|---|---|
{_accuracy_rows(report, parity)}

With {report.held_out.pictures} pictures the true accuracy of the network may well lie \
{_interval(report.held_out)} (Wilson, 95 %). On validation it was \
{report.validation_accuracy:.4f}, in the epoch that was kept, {report.epoch} of {recipe.epochs}. \
{_REMARKS[data.source]}

| class | held-out pictures | accuracy |
|---|---|---|
{_class_rows(report)}

The table is of the network before its export. \
Training and validation pictures are not in it.

![Loss and accuracy over the epochs]({CURVES_FILE})

{last_sections(parity, commands)}"""


def _accuracy_rows(report: ImageReport, parity: ParityReport) -> str:
    rows = [
        f"| this version, as served | **{parity.measurements[HELD_OUT_ACCURACY]:.4f}** |",
        f"| the network, in torch | {report.held_out.accuracy:.4f} |",
    ]
    if report.baseline is not None:
        baseline = report.baseline
        rows.append(
            f"| scikit-learn's {baseline.setting}, best of its grid on validation, then fitted"
            f" to training and validation | {baseline.held_out_accuracy:.4f} |"
        )
    return "\n".join(rows)


def _interval(held_out: Evaluation) -> str:
    """Where an accuracy lies that would show this result; E. B. Wilson, JASA 22 (1927)."""
    z, n, p = 1.96, held_out.pictures, held_out.accuracy
    middle = p + z**2 / (2 * n)
    reach = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    low, high = ((middle + sign * reach) / (1 + z**2 / n) for sign in (-1, 1))
    return f"between {low:.4f} and {high:.4f}"


def _class_rows(report: ImageReport) -> str:
    return "\n".join(
        f"| {score.label} | {score.pictures} | {score.accuracy:.4f} |"
        for score in report.held_out.per_class
    )
