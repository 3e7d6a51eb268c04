"""How good a finished model is, on voices that it never heard before."""

from __future__ import annotations

from training.checkpoint import EpochRecord
from training.recognizers.log_mel import LogMel
from training.runs import RunDirectory
from training.split import Split
from training.tasks.dictation import network as whisper
from training.tasks.dictation.evaluate import transcribe
from training.tasks.dictation.recipe import DictationRecipe
from training.tasks.speech_recognition.corpus import RATE_HZ, Corpus
from training.tasks.speech_recognition.evaluate import places, score
from training.tasks.speech_recognition.report import MISTAKES, Mistake, SpeechReport
from training.workload import count_examples


def report(
    run: RunDirectory, corpus: Corpus, split: Split, recipe: DictationRecipe, chosen: EpochRecord
) -> SpeechReport:
    """Listen to all of the held-out part, in every place."""
    model, vocabulary = whisper.load(run.checkpoint)
    features = LogMel(whisper.extractor(recipe.model))
    samples = recipe.model.seconds * RATE_HZ
    scores, mistakes = [], []
    for name, place in places(recipe.acoustics).items():
        texts = transcribe(model, features, samples, corpus, split.held_out, place, vocabulary)
        scores.append(score(corpus, texts, name))
        mistakes += [
            Mistake(voice=corpus.voices[i], place=name, said=corpus.texts[i], heard=text)
            for i, text in sorted(texts.items())
            if text != corpus.texts[i]
        ][: MISTAKES // len(places(recipe.acoustics))]
    return SpeechReport(
        examples=count_examples(split),
        epoch=chosen.epoch,
        validation_accuracy=chosen.validation["accuracy"],
        parameters=sum(weight.numel() for weight in model.parameters()),
        scores=tuple(scores),
        mistakes=tuple(mistakes),
    )
