"""A translator from English into German, French and Spanish, or between the user's languages."""

from __future__ import annotations

from training.recipe import Optimizer, Schedule
from training.tasks.translation.recipe import Acceptance, Data, Model, TranslationRecipe


def translator(*, tiny: bool = False, own_data: bool = False) -> TranslationRecipe:
    """Phrases made from CLDR's tables: about 17 minutes on two CPU cores (`--devices 2`).

    With `own_data`, the same network and schedule for the user's parallel corpus. `tiny` keeps
    everything but the patience: its model only shows that all works.
    """
    recipe = _translator()
    if own_data:
        recipe = recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"source": "file"}),
                # What is good enough is the user's to say.
                "acceptance": recipe.acceptance.model_copy(update={"exact_match": 0.0}),
            }
        )
    return _tiny(recipe) if tiny else recipe


def _translator() -> TranslationRecipe:
    return TranslationRecipe(
        name="translator",
        seed=1,
        epochs=7,
        batch_size=640,
        data=Data(source="phrases", sentences=20_000, vocabulary=3000, longest=256),
        model=Model(
            width=160,
            heads=5,
            encoder_layers=2,
            decoder_layers=2,
            feed_forward=640,
            dropout=0.0,
        ),
        optimizer=Optimizer(
            name="adamw",
            learning_rate=1.5e-3,
            weight_decay=0.01,
            beta2=0.98,
            clip_norm=1.0,
            label_smoothing=0.05,
        ),
        schedule=Schedule(warmup_epochs=0.15, final_fraction=0.01),
        acceptance=Acceptance(exact_match=0.97),
    )


def _tiny(recipe: TranslationRecipe) -> TranslationRecipe:
    return recipe.model_copy(
        update={
            "epochs": 3,
            "batch_size": 2048,
            "data": recipe.data.model_copy(update={"sentences": 600, "vocabulary": 600}),
            "model": Model(
                width=64,
                heads=4,
                encoder_layers=1,
                decoder_layers=2,
                feed_forward=128,
                dropout=0.0,
            ),
            "acceptance": recipe.acceptance.model_copy(update={"exact_match": 0.0}),
        }
    )
