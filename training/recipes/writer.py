"""A small language model that continues Python code, or the user's own kind of text."""

from __future__ import annotations

from training.recipe import Optimizer, Schedule
from training.tasks.text_generation.recipe import Acceptance, Data, Model, TextRecipe

AS_IT_IS = Acceptance(bits_per_byte=8.0)


def writer(*, tiny: bool = False, own_data: bool = False) -> TextRecipe:
    """The sources of Python's standard library: four minutes on two CPU cores.

    With `own_data`, the same network and schedule for the user's folder of .txt files. `tiny`
    keeps everything but the patience: its model only shows that all works.
    """
    recipe = _writer()
    if own_data:
        recipe = recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"source": "folder"}),
                # What is good enough is the user's to say.
                "acceptance": AS_IT_IS,
            }
        )
    return _tiny(recipe) if tiny else recipe


def _writer() -> TextRecipe:
    return TextRecipe(
        name="writer",
        seed=1,
        epochs=6,
        # Small steps: so little text has room for no more than a few thousand.
        batch_size=4,
        data=Data(source="standard_library", bytes=2**26, vocabulary=2000, steps=600),
        model=Model(context=128, width=128, heads=4, layers=4, dropout=0.0),
        optimizer=Optimizer(
            name="adamw",
            learning_rate=3e-3,
            weight_decay=0.1,
            beta2=0.98,
            clip_norm=1.0,
            label_smoothing=0.0,
        ),
        schedule=Schedule(warmup_epochs=0.3, final_fraction=0.05),
        acceptance=Acceptance(bits_per_byte=2.0),
    )


def _tiny(recipe: TextRecipe) -> TextRecipe:
    return recipe.model_copy(
        update={
            "epochs": 3,
            "batch_size": 8,
            "data": recipe.data.model_copy(
                update={"bytes": 500_000, "vocabulary": 400, "steps": 100}
            ),
            "model": Model(context=64, width=64, heads=4, layers=2, dropout=0.0),
            "acceptance": AS_IT_IS,
        }
    )
