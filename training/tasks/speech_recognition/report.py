"""How good a finished recogniser is, on voices that it never heard before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from training.checkpoint import EpochRecord
from training.errors import PublishRefused
from training.record import Record
from training.split import Split
from training.tasks.speech_recognition.corpus import Corpus
from training.tasks.speech_recognition.evaluate import (
    Read,
    Score,
    places,
    read_off,
    reader,
    score,
    transcribe,
)
from training.tasks.speech_recognition.network import Recognizer
from training.tasks.speech_recognition.recipe import Acoustics, WordErrors
from training.workload import Report, count_examples

JUDGED_IN = ("noise at 20 dB", "noise at 10 dB")
"""The places that `WordErrors` is about, in its order."""
MISTAKES = 30
"""Of them, so many are kept to be looked at."""


class Mistake(Record):
    voice: str
    place: str
    said: str
    heard: str


class SpeechReport(Report):
    validation_accuracy: float
    """One minus the rate of word errors, with noise at 10 dB."""
    parameters: int
    scores: tuple[Score, ...]
    """One for each place, of the same held-out utterances."""
    mistakes: tuple[Mistake, ...]

    def word_errors(self, place: str) -> float:
        [found] = [score for score in self.scores if score.place == place]
        return found.word_errors

    @property
    def figures(self) -> dict[str, float | None]:
        """For the manifest of what is published, by name."""
        figures: dict[str, float | None] = {"validation_accuracy": self.validation_accuracy}
        for found in self.scores:
            place = found.place.replace(",", "").replace(" ", "_")
            figures[f"word_error_rate_{place}"] = found.word_errors
            figures[f"character_error_rate_{place}"] = found.character_errors
            if found.spelt_word_errors is not None:
                figures[f"spelt_word_error_rate_{place}"] = found.spelt_word_errors
        return figures

    def require(self, acceptance: WordErrors, run: Path) -> None:
        """Raises `PublishRefused` where more words are wrong than is accepted."""
        limits = (acceptance.word_errors_20_db, acceptance.word_errors_10_db)
        for place, limit in zip(JUDGED_IN, limits, strict=True):
            rate = self.word_errors(place)
            # Written so that a figure which is not a number is refused.
            if not rate <= limit:
                raise PublishRefused(
                    f"{run}: the word error rate on the held-out part, {place}, is {rate:.4f} and"
                    f" the recipe accepts {limit}; train a better model"
                )

    def summary(self) -> list[str]:
        return [
            f"epoch {self.epoch}: validation word accuracy {self.validation_accuracy:.4f}",
            *(
                f"held-out, {score.place}: word error rate {score.word_errors:.4f},"
                f" character error rate {score.character_errors:.4f},"
                f" {score.utterances} utterances in {len(score.per_voice)} voices"
                for score in self.scores
            ),
        ]


Transcribe = Callable[[Acoustics], dict[int, str]]
"""What is heard in each held-out recording, by its index, in a place."""


def judge(
    transcribe: Transcribe,
    corpus: Corpus,
    split: Split,
    acoustics: Acoustics,
    model: nn.Module,
    chosen: EpochRecord,
    spelt: Transcribe | None = None,
) -> SpeechReport:
    """Listen to all of the held-out part, in every place.

    `spelt` tells what is heard by the likeliest characters, if `transcribe` goes by more.
    """
    scores, mistakes = [], []
    for name, place in places(acoustics).items():
        texts = transcribe(place)
        scores.append(score(corpus, texts, name, spelt(place) if spelt else None))
        mistakes += [
            Mistake(voice=corpus.voices[i], place=name, said=corpus.texts[i], heard=text)
            for i, text in sorted(texts.items())
            if text != corpus.texts[i]
        ][: MISTAKES // len(places(acoustics))]
    return SpeechReport(
        examples=count_examples(split),
        epoch=chosen.epoch,
        validation_accuracy=chosen.validation["accuracy"],
        parameters=sum(weight.numel() for weight in model.parameters()),
        scores=tuple(scores),
        mistakes=tuple(mistakes),
    )


def report(
    model: Recognizer, corpus: Corpus, split: Split, acoustics: Acoustics, chosen: EpochRecord
) -> SpeechReport:
    """How good a model with CTC is."""
    device = next(model.parameters()).device

    def by(read: Read) -> Transcribe:
        return lambda place: transcribe(model, corpus, split.held_out, place, read, device)

    config = model.config
    spelt = by(partial(read_off, vocabulary=config.vocabulary)) if config.words else None
    return judge(by(reader(config)), corpus, split, acoustics, model, chosen, spelt)
