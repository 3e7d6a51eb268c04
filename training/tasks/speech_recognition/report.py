"""How good a finished recogniser is, on voices that it never heard before."""

from __future__ import annotations

from training.checkpoint import EpochRecord
from training.record import Record
from training.split import Split
from training.tasks.speech_recognition.corpus import Corpus
from training.tasks.speech_recognition.evaluate import Score, places, score, transcribe
from training.tasks.speech_recognition.network import Recognizer
from training.tasks.speech_recognition.recipe import Acoustics
from training.workload import Report, count_examples

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


def report(
    model: Recognizer, corpus: Corpus, split: Split, acoustics: Acoustics, chosen: EpochRecord
) -> SpeechReport:
    """Listen to all of the held-out part, in every place."""
    device = next(model.parameters()).device
    vocabulary = model.config.vocabulary
    scores, mistakes = [], []
    for name, place in places(acoustics).items():
        texts = transcribe(model, corpus, split.held_out, place, vocabulary, device)
        scores.append(score(corpus, texts, name))
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
