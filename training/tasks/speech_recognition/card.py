"""The model card of a recogniser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from training.card import last_sections
from training.parity import ParityReport
from training.runs import CURVES_FILE
from training.tasks.speech_recognition.network import CHUNK_FRAMES, SAMPLES_PER_FRAME
from training.tasks.speech_recognition.recipe import SpeechRecipe
from training.tasks.speech_recognition.report import JUDGED_IN, SpeechReport

_SOURCES = {
    "espeak": (
        "Numbers, dates, times and short commands, said by espeak-ng (GPL-3.0; its library comes in"
        " the package espeakng-loader and is no part of this model) in eight English accents and 36"
        " voice variants, each at its own speed and pitch; and as many more as the recipe says, to"
        " learn from only, by speakers who were invented for one utterance each: variants whose"
        " pitch, formants, tone and stress were drawn. Numbers in words are by the package"
        " num2words. In every epoch each utterance is heard anew: a little faster or slower,"
        " brighter or duller, with silence around it, at another level, in white to brown noise,"
        " and often in a room that reverberates. Voices that judge are heard as they are."
    ),
    "manifest": "The user's own recordings.",
}
_LIMITS = {
    "espeak": (
        "For English numbers, dates, times and the commands of the training data, as a synthesiser"
        " says them. It has never heard a person: expect far more errors of people, and of any"
        " word that is not in its sentences, for it spells what it hears in the words it knows. The"
        " held-out figures are for variants of voices that were not heard in training in any"
        " accent; their sentences are of the same kinds, and short ones also occur in training."
        " Noise is steady and artificial. Not where an error costs without a person's check."
    ),
    "manifest": "For recordings like those it was trained on; it writes something for any sound.",
}
_GOALS = {"espeak": (0.03, 0.08), "manifest": None}
"""Word error rates in the places of `JUDGED_IN`."""
_NETWORKS = {
    "recurrent": "GRUs in both directions",
    "transformer": "a transformer encoder of the wav2vec 2.0 architecture",
    "live": "GRUs that hear only what came before",
}
_FILES = {
    "model.onnx": "from a waveform to log-probabilities of characters",
    "chunk.onnx": "the same, a chunk at a time, with the states that the host keeps",
    "recognizer.json": "the vocabulary, the frames, how long recordings are windowed",
    "example.wav": "a held-out voice in noise, to try",
    "example.json": "what it says",
    "parity.json": "what was compared with the trained model, and the files' sha256",
}
_VOICES_SHOWN = 60


def model_card(
    name: str,
    recipe: SpeechRecipe,
    report: SpeechReport,
    parity: ParityReport,
    commands: Sequence[str],
    answer: str,
    sizes: Mapping[str, int],
) -> str:
    """Markdown; `answer` is the text of the example."""
    model = recipe.model
    return f"""\
# {name}

Writes down what is said in a recording. {_input(recipe)} The log-mel spectrogram \
({model.mels} bands every 10 ms) is inside the graph; two causal convolutions make a frame of \
30 ms of it, and {_NETWORKS[model.architecture]} ({model.layers} layers) tell for each the \
probability of every character, trained with CTC. {report.parameters / 1e6:.2f} million \
parameters, stored in 16 bits, computed with in 32.

```console
$ curl --data-binary @example.wav localhost:8000/models/{name}
{json.dumps({"text": answer}, ensure_ascii=False)[:-1]}, …}}
```

## Intended use and limits

{_LIMITS[recipe.data.source]}{_words(recipe)}

## Data

{_SOURCES[recipe.data.source]}

{report.examples.train} utterances were learned from, {report.examples.validation} chose the \
epoch, and {report.examples.held_out} were held out for the figures below. The parts are fixed by \
the sha256 of who speaks, so that no voice is in two of them.

## Accuracy

{_scores(report)}

Held-out utterances, {_decoded(recipe)} by the trained network; rates by jiwer, measured at the \
end of `slipway train`. With noise the speech is so many decibels above it, over the whole \
utterance. On validation, by the likeliest characters, with noise at 10 dB, \
{report.validation_accuracy:.4f} of the words were right in \
the epoch that was kept, {report.epoch} of {recipe.epochs}.{_goals(recipe, report)}

{_voices(report)}
{_mistakes(report)}
![Loss and share of right words over the epochs]({CURVES_FILE})

{last_sections(parity, commands, sizes, _FILES)}"""


def _input(recipe: SpeechRecipe) -> str:
    if recipe.model.architecture == "live":
        samples = CHUNK_FRAMES * SAMPLES_PER_FRAME
        return (
            f"It hears live: chunks of {samples} samples at 16 kHz, 120 ms, with states between"
            " them that the host keeps. It listens before it answers: a frame comes out"
            f" {recipe.model.delay} frames of 30 ms after its samples went in."
        )
    return (
        "Input `waveform`: FP32 [batch, samples], 16 kHz, -1 to 1, with NaN after the end of the"
        " shorter ones; outputs `logits`: FP32 [batch, frames, characters], log-probabilities, and"
        " `frames`: INT64 [batch, 1], how many of them count."
    )


def _words(recipe: SpeechRecipe) -> str:
    if not recipe.data.closed_vocabulary:
        return ""
    return (
        " It writes no word that the training part does not have (`words` in recognizer.json), but"
        " for a request's own `hot_words`; with `num_beams` above 1 it spells what it hears."
    )


def _decoded(recipe: SpeechRecipe) -> str:
    if not recipe.data.closed_vocabulary:
        return "greedy decoding"
    return (
        "the most probable path through the words of the training part (Viterbi; every word as"
        " probable as any other); in the last column the most probable characters alone,"
    )


def _scores(report: SpeechReport) -> str:
    spelt = report.scores[0].spelt_word_errors is not None
    lines = [
        "| where it is heard | word error rate | character error rate |"
        + (" word error rate, spelt freely |" if spelt else ""),
        "|---|---|---|" + ("---|" if spelt else ""),
    ]
    for score in report.scores:
        line = f"| {score.place} | **{score.word_errors:.4f}** | {score.character_errors:.4f} |"
        if score.spelt_word_errors is not None:
            line += f" {score.spelt_word_errors:.4f} |"
        lines.append(line)
    return "\n".join(lines)


def _goals(recipe: SpeechRecipe, report: SpeechReport) -> str:
    goals = _GOALS[recipe.data.source]
    if goals is None:
        return ""
    verdicts = [
        f"{goal} with {place}, which this model {'reaches' if rate <= goal else '**misses**'}"
        for place, goal in zip(JUDGED_IN, goals, strict=True)
        for rate in [report.word_errors(place)]
    ]
    return f" The goal is a word error rate of {' and of '.join(verdicts)}."


def _voices(report: SpeechReport) -> str:
    places = [score.place for score in report.scores]
    rows = zip(*(score.per_voice for score in report.scores), strict=True)
    lines = [
        f"| {voices[0].voice} | {voices[0].words} | "
        + " | ".join(f"{voice.word_errors:.3f} ({voice.character_errors:.3f})" for voice in voices)
        + " |"
        for voices in rows
    ]
    more = len(lines) - _VOICES_SHOWN
    return "\n".join(
        [
            "Each voice, its words, and the rates of word errors and, in brackets, of character"
            " errors:",
            "",
            f"| voice | words | {' | '.join(places)} |",
            "|---|---|" + "---|" * len(places),
            *lines[:_VOICES_SHOWN],
            *([f"\nand {more} more voices, in the run's report."] if more > 0 else []),
            "",
        ]
    )


def _mistakes(report: SpeechReport) -> str:
    if not report.mistakes:
        return ""
    rows = "\n".join(
        f"| {mistake.voice} | {mistake.place} | {mistake.said} | {mistake.heard} |"
        for mistake in report.mistakes[:8]
    )
    return f"""\
What goes wrong, the first of it in the order of the data:

| voice | where | said | heard |
|---|---|---|---|
{rows}
"""
