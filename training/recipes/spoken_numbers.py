"""A recogniser of spoken numbers, dates, times and commands, or of the user's recordings."""

from __future__ import annotations

from training.recipe import Optimizer, Schedule
from training.tasks.speech_recognition.recipe import (
    Acceptance,
    Acoustics,
    Data,
    Masks,
    Model,
    SpeechRecipe,
)

ACOUSTICS = Acoustics(
    silence_seconds=(0.0, 0.4),
    playback=(0.88, 1.14),
    tilt_db=(-9.0, 9.0),
    level_db=(-36.0, -12.0),
    noise_db=(5.0, 35.0),
    rooms=0.3,
    reverberation_seconds=(0.1, 0.5),
    direct_db=(3.0, 15.0),
)
MASKS = Masks(times=1, time_seconds=0.1, bands=1, band_fraction=0.15)


def spoken_numbers(*, tiny: bool = False, own_data: bool = False) -> SpeechRecipe:
    """What espeak-ng says in 288 voices, and in invented ones: ten minutes on two CPU cores.

    With `own_data`, the same network and schedule for the recordings that the user's manifest
    lists. `tiny` keeps everything but the patience: its model only shows that all works.
    """
    recipe = _spoken_numbers()
    if own_data:
        recipe = recipe.model_copy(
            update={
                # Of people it is not known what they may say.
                "data": recipe.data.model_copy(
                    update={"source": "manifest", "closed_vocabulary": False}
                ),
                # What is good enough is the user's to say.
                "acceptance": _anything(recipe.acceptance),
            }
        )
    return _tiny(recipe) if tiny else recipe


def _spoken_numbers() -> SpeechRecipe:
    return SpeechRecipe(
        name="spoken-numbers",
        seed=1,
        epochs=5,
        batch_size=32,
        data=Data(
            source="espeak",
            utterances=9000,
            invented=12000,
            longest_seconds=30.0,
            closed_vocabulary=True,
        ),
        model=Model(
            architecture="recurrent", mels=40, width=128, hidden=128, layers=2, dropout=0.0
        ),
        acoustics=ACOUSTICS,
        masks=MASKS,
        optimizer=Optimizer(
            name="adamw",
            learning_rate=3e-3,
            weight_decay=0.01,
            beta2=0.98,
            clip_norm=1.0,
            label_smoothing=0.0,
        ),
        schedule=Schedule(warmup_epochs=0.3, final_fraction=0.01),
        acceptance=Acceptance(word_errors_20_db=0.03, word_errors_10_db=0.08, parity=1e-4),
    )


def _anything(acceptance: Acceptance) -> Acceptance:
    # Insertions can make the rate higher than 1, and an untrained model inserts a lot.
    return acceptance.model_copy(update={"word_errors_20_db": 10.0, "word_errors_10_db": 10.0})


def _tiny(recipe: SpeechRecipe) -> SpeechRecipe:
    return recipe.model_copy(
        update={
            "epochs": 2,
            "data": recipe.data.model_copy(update={"utterances": 250, "invented": 50}),
            "model": recipe.model.model_copy(
                update={"mels": 16, "width": 32, "hidden": 32, "layers": 1}
            ),
            "acceptance": _anything(recipe.acceptance),
        }
    )
