"""A recogniser that writes in a model repository: its config.pbtxt, its card, its figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from training.card import last_sections
from training.parity import ParityReport
from training.promise import promise
from training.recognizers.whisper import config_text
from training.runs import CURVES_FILE, RunDirectory
from training.tasks.dictation import network
from training.tasks.dictation.recipe import DictationRecipe
from training.tasks.speech_recognition.export import ANSWER_FILE
from training.tasks.speech_recognition.report import SpeechReport


class DictationPublication:
    packages = ("espeakng-loader", "jiwer", "num2words", "soundfile", "soxr", "transformers")

    def __init__(
        self, run: RunDirectory, recipe: DictationRecipe, precision: str, parity: ParityReport
    ):
        self.recipe = recipe
        self.precision = precision
        self.parity = parity
        self.report = SpeechReport.load(run.report)
        self._run = run

    @property
    def metrics(self) -> dict[str, float | None]:
        return self.report.figures

    def require_quality(self) -> None:
        self.report.require(self.recipe.acceptance, self._run.path)

    def promise(self, model: Path) -> None:
        checkpoint, _ = network.load(self._run.checkpoint)
        promise(model, config_text(model.name, checkpoint))

    def card(self, name: str, commands: Sequence[str]) -> str:
        """Markdown."""
        export = self._run.export(self.precision)
        answer = json.loads((export / ANSWER_FILE).read_text(encoding="utf-8"))["answer"]
        model, report = self.recipe.model, self.report
        rows = "\n".join(
            f"| {score.place} | **{score.word_errors:.4f}** | {score.character_errors:.4f} |"
            for score in report.scores
        )
        return f"""\
# {name}

Writes down what is said in a recording, with the times of its segments. Whisper's architecture \
with {model.encoder_layers} and {model.decoder_layers} layers of width {model.width}, \
{report.parameters / 1e6:.2f} million parameters; it hears {model.seconds} seconds at once, and \
longer recordings window by window. Input `waveform`: FP32 [batch, samples], 16 kHz, -1 to 1, with \
NaN after the end of the shorter ones; output `text_output`: BYTES [batch, 1].

```console
$ curl --data-binary @example.wav localhost:8000/models/{name}
{json.dumps({"text": answer}, ensure_ascii=False)[:-1]}, …}}
```

## Data

{report.examples.train} utterances were learned from, {report.examples.validation} chose the \
epoch, and {report.examples.held_out} were held out for the figures below; no voice is in two of \
these parts. It learned from windows of up to {self.recipe.windows.utterances} of them with pauses.

## Accuracy

| where it is heard | word error rate | character error rate |
|---|---|---|
{rows}

Held-out utterances, the likeliest token each time, by the trained network; rates by jiwer, \
measured at the end of `slipway train`. On validation, with noise at 10 dB, \
{report.validation_accuracy:.4f} of the words were right in the epoch that was kept, \
{report.epoch} of {self.recipe.epochs}.

![Loss and share of right words over the epochs]({CURVES_FILE})

{last_sections(self.parity, commands)}"""
