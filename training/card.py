"""The model card: what a version is, how good it is, and how to make it again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.evaluate import Evaluation
from training.recipe import Recipe
from training.report import Report
from training.verify import HELD_OUT_ACCURACY, ParityReport

CURVES_FILE = "curves.png"

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


@dataclass(frozen=True)
class Publication:
    """What the card of one version speaks of."""

    name: str
    precision: str
    recipe: Recipe
    report: Report
    parity: ParityReport
    commands: tuple[str, ...]
    """Shell commands that make this version again."""


def model_card(publication: Publication) -> str:
    """Markdown."""
    recipe, report = publication.recipe, publication.report
    labels = [score.label for score in report.held_out.per_class]
    data = recipe.data
    colours = {"L": "greyscale", "RGB": "colour"}[data.mode]
    return f"""\
# {publication.name}

Tells {len(labels)} classes of pictures apart: {", ".join(labels)}. A convolutional network with \
stages of {", ".join(map(str, recipe.model.widths))} feature maps, exported to ONNX in \
{publication.precision}. Input `image`: UINT8 [batch, {data.preprocessing.channels}, \
{data.height}, {data.width}], {colours}, 0 to 255; output `logits`: FP32 [batch, {len(labels)}]. \
Normalisation is inside the graph.

## Intended use and limits

{_LIMITS[data.source]}

## Data

{_SOURCES[data.source]}

{report.pictures.train} pictures were learned from, {report.pictures.validation} chose the epoch, \
and {report.pictures.held_out} were held out for the figures below. The parts are fixed by the \
sha256 of each picture; copies of a picture are always in the same part.

## Accuracy

| | held-out accuracy |
|---|---|
{_accuracy_rows(publication)}

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

## Parity

The served graph against the model it was made from; `parity.json` holds the files' sha256.

| check | measured | limit |
|---|---|---|
{_check_rows(publication.parity)}

## How it was made

```sh
{chr(10).join(publication.commands)}
```

The recipe in full, the seed, the hashes of data and split, and the package versions are in \
`manifest.json`.
"""


def _accuracy_rows(publication: Publication) -> str:
    report, parity = publication.report, publication.parity
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


def _class_rows(report: Report) -> str:
    return "\n".join(
        f"| {score.label} | {score.pictures} | {score.accuracy:.4f} |"
        for score in report.held_out.per_class
    )


def _check_rows(parity: ParityReport) -> str:
    rows = [
        f"| {check.name} | {_number(check.measured)} | {_number(check.limit)} |"
        for check in parity.checks
    ]
    rows += [f"| {name} | {_number(value)} | |" for name, value in parity.measurements.items()]
    return "\n".join(rows)


def _number(value: float | str) -> str:
    return f"`{value}`" if isinstance(value, str) else f"{value:.3g}"
