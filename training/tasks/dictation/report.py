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
from training.tasks.speech_recognition.recipe import Acoustics
from training.tasks.speech_recognition.report import SpeechReport, judge


def report(
    run: RunDirectory, corpus: Corpus, split: Split, recipe: DictationRecipe, chosen: EpochRecord
) -> SpeechReport:
    """Listen to all of the held-out part, in every place."""
    model, vocabulary = whisper.load(run.checkpoint)
    features = LogMel(whisper.extractor(recipe.model))
    samples = recipe.model.seconds * RATE_HZ

    def heard(place: Acoustics) -> dict[int, str]:
        return transcribe(model, features, samples, corpus, split.held_out, place, vocabulary)

    return judge(heard, corpus, split, recipe.acoustics, model, chosen)
