"""Whisper's architecture, small, on the recordings of `spoken-numbers`, or on the user's."""

from __future__ import annotations

from training.recipe import Optimizer, Schedule
from training.recipes.spoken_numbers import ACOUSTICS, MASKS
from training.tasks.dictation.recipe import DictationRecipe, Hints, Model, Windows
from training.tasks.speech_recognition.recipe import Data, WordErrors

_ANYTHING = WordErrors(word_errors_20_db=100.0, word_errors_10_db=100.0)
"""An untrained model writes without end."""


def spoken_numbers_whisper(*, tiny: bool = False, own_data: bool = False) -> DictationRecipe:
    """Utterances that espeak-ng says, several in a window, with their times.

    With `own_data`, the same network and schedule for the recordings that the user's manifest
    lists. `tiny` keeps everything but the patience: its model only shows that all works.
    """
    recipe = _spoken_numbers_whisper()
    if own_data:
        recipe = recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"source": "manifest"}),
                # What is good enough is the user's to say.
                "acceptance": _ANYTHING,
            }
        )
    return _tiny(recipe) if tiny else recipe


def _spoken_numbers_whisper() -> DictationRecipe:
    return DictationRecipe(
        name="spoken-numbers-whisper",
        seed=1,
        epochs=5,
        batch_size=16,
        data=Data(source="espeak", utterances=9000, invented=12_000, longest_seconds=8.0),
        model=Model(
            seconds=8,
            mels=40,
            width=128,
            heads=4,
            hidden=512,
            encoder_layers=2,
            decoder_layers=2,
            tokens=128,
            vocabulary=400,
            dropout=0.0,
        ),
        windows=Windows(utterances=4, pause_seconds=(0.0, 0.6), timed=0.5),
        hints=Hints(sounds=1.0, attention=1.0, attention_seconds=0.3),
        acoustics=ACOUSTICS,
        masks=MASKS,
        optimizer=Optimizer(
            name="adamw",
            learning_rate=1.5e-3,
            weight_decay=0.01,
            beta2=0.98,
            clip_norm=1.0,
            label_smoothing=0.0,
        ),
        schedule=Schedule(warmup_epochs=0.2, final_fraction=0.01),
        acceptance=WordErrors(word_errors_20_db=0.1, word_errors_10_db=0.15),
    )


def _tiny(recipe: DictationRecipe) -> DictationRecipe:
    return recipe.model_copy(
        update={
            "epochs": 2,
            "data": recipe.data.model_copy(update={"utterances": 250, "invented": 0}),
            "model": recipe.model.model_copy(
                update={
                    "mels": 16,
                    "width": 32,
                    "heads": 2,
                    "hidden": 64,
                    "encoder_layers": 1,
                    "decoder_layers": 1,
                    "tokens": 64,
                }
            ),
            "acceptance": _ANYTHING,
        }
    )
