"""The model card of a translator."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from training.card import last_sections
from training.parity import ParityReport
from training.runs import CURVES_FILE
from training.tasks.translation.recipe import TranslationRecipe
from training.tasks.translation.report import TranslationReport

_FILES = {
    "encoder.onnx": "reads the source text, once",
    "decoder.onnx": "adds one token to the translation, with keys and values kept by the host",
    "generation.json": "how texts begin and end, how long they may be, the defaults of decoding",
    "source.spm": "pieces of words, as sentencepiece reads them",
    "target.spm": "the same pieces; Marian's layout asks for both",
    "vocab.json": "the pieces' numbers",
    "model.py": "for Triton's Python backend",
    "tokenizer_config.json": "for `transformers.MarianTokenizer`",
    "example.txt": "a held-out sentence, to try",
    "example.json": "its translation",
    "parity.json": "what was compared with the trained model, and the files' sha256",
}

_NAMES = {"de": "German", "fr": "French", "es": "Spanish"}

_SOURCES = {
    "phrases": (
        "Phrases made from the tables of the Unicode Common Locale Data Repository (CLDR) that the"
        " Python package Babel carries: dates, times, relative times, numbers, percentages, units,"
        " currencies, territories, languages, cities and lists, each in the four languages. They"
        " stand alone or fill the blanks of sentences that were written for this model in all"
        " four. Numbers in words are by the package num2words. CLDR is © Unicode, Inc., under the"
        " Unicode License V3; `manifest.json` names the packages' versions. No-break spaces were"
        " made plain spaces."
    ),
    "file": "The user's own parallel sentences.",
}
_LIMITS = {
    "phrases": (
        "For dates, times, numbers, amounts, measures and the names of places and languages, and"
        " for the sentences of the training data around them. It is not a general translator: it"
        " knows about 80 patterns of sentences, and what is outside them comes out as something"
        " else, fluent or not. It knows no characters that its vocabulary lacks. The held-out"
        " figures are for new sentences of the known patterns: every one has other numbers, names"
        " or dates than were learned from, not other grammar. English dates are read as American:"
        " 3/5/2024 is in March. Not where an error costs without a person's check."
    ),
    "file": "For sentences like those it was trained on; others come out fluent and wrong.",
}


def model_card(
    name: str,
    recipe: TranslationRecipe,
    report: TranslationReport,
    parity: ParityReport,
    commands: Sequence[str],
    example: tuple[str, str],
    sizes: Mapping[str, int],
) -> str:
    """Markdown; `example` is a source text and the JSON of its answer."""
    model = recipe.model
    languages = [score.language for score in report.held_out]
    source, answer = example
    body = json.dumps({"inputs": source}, ensure_ascii=False)
    return f"""\
# {name}

Translates short sentences from English into \
{_listed([_NAMES.get(code, code) for code in languages])}. A transformer of the Marian \
architecture, encoder and decoder of {model.encoder_layers} and {model.decoder_layers} layers, \
{model.width} wide, {report.parameters / 1e6:.2f} million parameters, exported to two ONNX graphs \
that store weights in 16 bits and compute in 32. The source text begins with the target language: \
{", ".join(f"`>>{code}<<`" for code in languages)}.

```console
$ curl --json '{body}' localhost:8000/models/{name}
[{{"translation_text": {json.dumps(json.loads(answer)["answer"], ensure_ascii=False)}}}]
```

## Intended use and limits

{_LIMITS[recipe.data.source]}

## Data

{_SOURCES[recipe.data.source]}

{report.examples.train} pairs of a sentence and a translation were learned from, \
{report.examples.validation} chose the epoch, and {report.examples.held_out} were held out for the \
figures below. The parts are fixed by the sha256 of the source sentence, so that all translations \
of a sentence are in the same part. The vocabulary is made of the training part alone.

## Accuracy

| into | held-out sentences | right to the letter | BLEU |
|---|---|---|---|
{_score_rows(report)}

Greedy decoding of every held-out sentence by the trained network, with \
`transformers`' `generate`; BLEU by sacrebleu with its defaults. They are measured at the end of \
`slipway train`. On validation, {report.validation_accuracy:.4f} of the pieces were right given \
the right ones before, in the epoch that was kept, {report.epoch} of {recipe.epochs}.

{_mistakes(report)}
![Loss, accuracy of pieces, and exact match over the epochs]({CURVES_FILE})

{last_sections(parity, commands, sizes, _FILES)}"""


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _score_rows(report: TranslationReport) -> str:
    return "\n".join(
        f"| {_NAMES.get(score.language, score.language)} | {score.sentences}"
        f" | **{score.exact_match:.4f}** | {score.bleu:.2f} |"
        for score in report.held_out
    )


def _mistakes(report: TranslationReport) -> str:
    if not report.mistakes:
        return ""
    rows = "\n".join(
        f"| {mistake.source} | {mistake.expected} | {mistake.translated} |"
        for mistake in report.mistakes[:5]
    )
    return f"""\
What goes wrong, the first of it in the order of the split:

| source | expected | translated |
|---|---|---|
{rows}
"""
