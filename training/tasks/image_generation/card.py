"""The model card of a model that draws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from serving.diffusion.settings import DiffusionSettings
from training.card import last_sections
from training.parity import ParityReport
from training.runs import CURVES_FILE
from training.tasks.image_generation.evaluate import COMPONENTS, CUTS, LEARNED_FROM
from training.tasks.image_generation.recipe import DiffusionRecipe
from training.tasks.image_generation.report import (
    QUALITY_FILE,
    SAMPLES_FILE,
    SHOWN_OF_EACH,
    DiffusionReport,
    Quality,
)
from training.tasks.image_generation.verify import SERVED_AGREEMENT

_SOURCES = {
    "digits": (
        "The 1,797 handwritten digits inside scikit-learn (`sklearn.datasets.load_digits`): 8×8,"
        " greyscale, written by 43 people on forms and scanned. They are the test part of"
        " E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits* (1998), UCI"
        " Machine Learning Repository, CC BY 4.0. They were enlarged to {width}×{height}"
        " ({resample}), so what is drawn has no more detail than 8×8 pixels have."
    ),
    "folder": (
        "The user's own pictures, one folder per class, each brought to {width}×{height}"
        " ({resample})."
    ),
}
_LIMITS = {
    "digits": (
        "To draw single digits, for demonstrations and for tests of what draws in steps. It knows"
        " ten classes and no words around them: a prompt is a digit or its name, or has one of"
        " them as a word. Whose handwriting it draws cannot be chosen. Its digits look like those"
        " of 43 people, and are not fit to train something that shall read other people's."
    ),
    "folder": (
        "To draw pictures like those it was trained on. It knows their classes, and no words around"
        " them. Where there were few pictures, it may draw those again; see below."
    ),
}
_REMARKS = {
    "digits": (
        "The guidance, the number of steps and the size of the network were chosen by such figures,"
        " of other networks, on the same held-out pictures: the distance is a little kinder than it"
        " would be on others. "
    ),
    "folder": "",
}
_FILES = {
    "unet.onnx": "tells what is noise in pictures, one step of drawing",
    "diffusion.json": "the noise of training, the classes' names, the defaults of a request",
    "model.py": "for Triton's Python backend",
    "example.json": "what its picture shows, and with which seed",
    "example.txt": "a prompt to try",
    SAMPLES_FILE: "what it draws",
    QUALITY_FILE: "what more steps are worth",
    "parity.json": "what was compared with the trained model, and the files' sha256",
}
_PREDICTS = {"epsilon": "the noise", "v_prediction": "v (Salimans and Ho, 2022)"}


def model_card(
    name: str,
    recipe: DiffusionRecipe,
    settings: DiffusionSettings,
    report: DiffusionReport,
    parity: ParityReport,
    commands: Sequence[str],
    example: str,
    sizes: Mapping[str, int],
) -> str:
    """Markdown; `example` is a prompt."""
    data, sample, quality = recipe.data, settings.sample, report.quality
    body = json.dumps({"inputs": example}, ensure_ascii=False)
    return f"""\
# {name}

Draws a picture of a class, {sample.width}×{sample.height} \
{"in grey" if sample.channels == 1 else "in colour"}: {_listed(settings)}. A diffusion model: a \
U-Net (`diffusers.UNet2DModel`, stages of {", ".join(map(str, recipe.model.widths))} feature maps, \
{report.parameters / 1e6:.2f} million parameters, stored in 16 bits, computed with in 32) was \
trained to tell {_PREDICTS[recipe.diffusion.prediction_type]} of pictures under noise of \
{settings.noise.num_train_timesteps} strengths (cosine schedule), and takes it from pure noise, \
step by step. {_guidance(recipe)}Without other wishes a request is drawn in {quality.steps} steps \
of DDIM with `guidance_scale` {report.guidance_scale:g}.

```console
$ curl --json '{body}' --output drawn.png localhost:8000/models/{name}
```

![The first {SHOWN_OF_EACH} of each class]({SAMPLES_FILE})

The first {SHOWN_OF_EACH} of each class that were drawn for the figures below, enlarged; none was \
chosen.

## Intended use and limits

{_LIMITS[data.source]}

## Data

{_SOURCES[data.source].format(width=data.width, height=data.height, resample=data.resample)}

{report.examples.train} pictures were learned from, {report.examples.validation} show in the \
curves how it went, and {report.examples.held_out} were held out for the figures below. The parts \
are fixed by the sha256 of each picture; copies of a picture are always in the same part.

## Quality

{report.samples} pictures, equally many of each class, drawn by the trained network with \
`diffusers`' DDIM and `guidance_scale` {report.guidance_scale:g}, at the end of `slipway train`:

| steps | classifier agrees | Fréchet distance | times that of held-out halves |
|---|---|---|---|
{_rows(report)}

![Agreement and Fréchet distance over the number of steps]({QUALITY_FILE})

- **Classifier agrees**: the share of pictures that an independent classifier takes for what was \
asked for. It is a support vector machine on {COMPONENTS} principal components of the pixels \
(scikit-learn), which learned from the real pictures of the training part (at most \
{LEARNED_FROM}), and is right about {report.classifier_accuracy:.4f} of the held-out ones. Drawn \
as it is served, by `slipway export`, it agrees with \
{parity.measurements[SERVED_AGREEMENT]:.4f} of as many pictures.
- **Fréchet distance** (Heusel et al., 2017): between the Gaussians that have the means and \
covariances of those {COMPONENTS} components, of half of the held-out pictures and of as many \
drawn ones, in the same proportions of classes; the mean of {CUTS} random halves. \
{_halves(quality)} It is in the components of this classifier, and cannot be compared with other \
models' FID.
{_copies(report)}

{_goals(recipe, report)}{_REMARKS[data.source]}\
On validation the mean square error of what the network tells of the noise was \
{report.validation_loss:.4f} in the epoch that was kept, the last of {recipe.epochs}.

![Loss over the epochs]({CURVES_FILE})

{last_sections(parity, commands, sizes, _FILES)}"""


def _listed(settings: DiffusionSettings) -> str:
    return ", ".join(" or ".join(names) for names in settings.classes)


def _guidance(recipe: DiffusionRecipe) -> str:
    unlabelled = recipe.diffusion.unlabelled
    if not unlabelled:
        return "It cannot be guided. "
    return (
        f"{unlabelled:.0%} of the pictures were shown without their class, so that drawing can be"
        " guided towards one (classifier-free guidance, Ho and Salimans, 2022). "
    )


def _rows(report: DiffusionReport) -> str:
    return "\n".join(
        f"| {each.steps} | {_strong(f'{each.agreement:.4f}', each, report)} |"
        + (
            f" {each.frechet.drawn:.3f} | {_strong(f'{each.frechet.ratio:.2f}', each, report)} |"
            if each.frechet
            else " | |"
        )
        for each in report.by_steps
    )


def _strong(text: str, quality: Quality, report: DiffusionReport) -> str:
    return f"**{text}**" if quality.steps == report.quality.steps else text


def _halves(quality: Quality) -> str:
    if quality.frechet is None:
        return "There are too few held-out pictures for it."
    return (
        f"Between one half and the other it is {quality.frechet.real:.3f}: that of equally many"
        " real pictures, and not zero, for there are few."
    )


def _copies(report: DiffusionReport) -> str:
    nearest = report.nearest
    return f"""\
- **Copies**: of the {report.samples} pictures at {report.quality.steps} steps, the nearest to any \
picture of the training part is {nearest.drawn_smallest:.4f} away from it, and of the \
{report.examples.held_out} held-out ones, which nobody copied, {nearest.held_out_smallest:.4f} \
(root mean square of the pixels' differences, where 1 is from black to white); the medians are \
{nearest.drawn_median:.4f} and {nearest.held_out_median:.4f}. {nearest.copies:.2%} of the drawn \
ones are nearer than any held-out one."""


def _goals(recipe: DiffusionRecipe, report: DiffusionReport) -> str:
    """What the recipe asks of a model that may be published; this one has shown it."""
    accepted = recipe.acceptance
    if accepted.frechet_ratio is None:
        return ""
    return (
        f"The recipe accepts agreement from {accepted.agreement:g}, a distance of up to"
        f" {accepted.frechet_ratio:g} times that of the halves, and"
        f" {accepted.copies:.0%} of copies, at {report.quality.steps} steps. "
    )
