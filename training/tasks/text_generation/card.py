"""The model card: what a version is, how good it is, and how to make it again."""

from __future__ import annotations

import math
from collections.abc import Sequence

from training.card import last_sections
from training.parity import ParityReport
from training.runs import CURVES_FILE
from training.tasks.text_generation.network import new_tokens
from training.tasks.text_generation.recipe import TextRecipe
from training.tasks.text_generation.report import TextReport

_SOURCES = {
    "standard_library": (
        "The sources of the pure-Python modules in the standard library of {release}, code and"
        " docstrings, without tests, tables and the largest files. They are under the PSF licence,"
        " © Python Software Foundation, <https://docs.python.org/3/license.html>; some files carry"
        " notices of their own. Another release of Python makes another text, and so another model."
    ),
    "folder": "The user's own .txt files.",
}
_LIMITS = {
    "standard_library": (
        "Goes on with Python code in the style of the standard library: a model to try servers,"
        " exports and streams with. It is far too small to write programs. What it writes often"
        " looks right and means nothing, it repeats itself when it picks the best token each time,"
        " and it may repeat what it has read, notices of copyright included. It knows no other kind"
        " of text."
    ),
    "folder": (
        "Goes on with texts like those it was trained on. It is far too small to know facts, and it"
        " may repeat what it has read, so share it only with those who may read its texts."
    ),
}


def model_card(
    name: str,
    recipe: TextRecipe,
    report: TextReport,
    parity: ParityReport,
    commands: Sequence[str],
) -> str:
    """Markdown."""
    model, held_out, baseline = recipe.model, report.held_out, report.baseline
    return f"""\
# {name}

Goes on with a text. GPT-2's architecture with {model.layers} layers of width {model.width} and \
{model.heads} heads, {report.parameters:,} parameters, {report.vocabulary:,} byte-level tokens, \
and a context of {model.context} tokens for the prompt and what follows together. Input \
`text_input`: BYTES [batch, 1]; output `text_output`: BYTES [batch, 1], what follows, of \
{new_tokens(model)} tokens at most unless a request says otherwise. Weights are stored in 16 bits \
and computed with in 32.

## Intended use and limits

{_LIMITS[recipe.data.source]}

## Data

{_SOURCES[recipe.data.source].format(release=report.release)}

{report.examples.train} files ({report.training_bytes:,} bytes) were learned from, \
{report.examples.validation} chose the epoch, and {report.examples.held_out} \
({held_out.bytes:,} bytes) were held out for the figures below. The parts are fixed by the sha256 \
of each file; copies count once. The vocabulary was made from the training part alone.

## Quality

| | held-out bits per byte |
|---|---|
| this model | **{held_out.bits_per_byte:.3f}** |
| lzma, after it has seen the training text | {baseline.after_training_text:.3f} |
| lzma | {baseline.alone:.3f} |

Bits per byte is what an ideal coder would need that knows the model: it compares models of \
different vocabularies with one another and with compressors. Every token is foretold once, from \
those before it in its window of {model.context}. lzma reads all held-out files as one text and \
looks back as far as it likes.

| | loss, nats per token | perplexity | token accuracy |
|---|---|---|---|
| held-out, {held_out.tokens:,} tokens | {held_out.loss:.4f} | {held_out.perplexity:.2f} \
| {held_out.accuracy:.4f} |
| validation, epoch {report.epoch} of {recipe.epochs} | {report.validation_loss:.4f} \
| {math.exp(report.validation_loss):.2f} | {report.validation_accuracy:.4f} |

![Loss and accuracy over the epochs]({CURVES_FILE})

The figures are of the network before its export, with the weights that were exported.

## Samples

The best token each time, after the beginnings of held-out files.

{_samples(report)}

{last_sections(parity, commands)}"""


def _samples(report: TextReport) -> str:
    """Indented, so that no text can end its own block."""
    return "\n\n".join(
        f"After\n\n{_indented(sample.prompt)}\n\nit writes\n\n{_indented(sample.continuation)}"
        for sample in report.samples
    )


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    "
