"""Handwritten digits, and any other pictures that a small network can tell apart."""

from __future__ import annotations

from training.recipe import Optimizer, Schedule
from training.tasks.image_classification.recipe import (
    Acceptance,
    Augmentation,
    Data,
    ImageRecipe,
    Model,
)


def digits(*, tiny: bool = False, own_data: bool = False) -> ImageRecipe:
    """The 1,797 digits of 43 writers that scikit-learn carries: about a minute on two CPU cores.

    With `own_data`, the same network and schedule for the user's folder, in colour and at
    32×32. `tiny` keeps everything but the patience: its model is only good enough for tests.
    """
    recipe = _with_own_pictures(_digits()) if own_data else _digits()
    return _tiny(recipe) if tiny else recipe


def _digits() -> ImageRecipe:
    return ImageRecipe(
        name="digits",
        seed=1,
        epochs=60,
        batch_size=64,
        data=Data(
            source="digits",
            height=8,
            width=8,
            mode="L",
            # Each pixel of this data set counts the ink in a 4×4 block; box does that to a picture.
            resample="box",
            background="dark",
        ),
        model=Model(widths=(32, 64, 96), dropout=0.2),
        augmentation=Augmentation(
            shift=0.1,
            rotation_degrees=12.0,
            # These digits fill their frame, and the ones that people send do not.
            smallest=0.6,
            largest=1.1,
            contrast=0.4,
            noise=0.03,
            outside="black",
        ),
        optimizer=Optimizer(
            name="adamw",
            learning_rate=3e-3,
            weight_decay=0.05,
            clip_norm=1.0,
            label_smoothing=0.05,
        ),
        schedule=Schedule(warmup_epochs=3, final_fraction=0.01),
        acceptance=Acceptance(accuracy=0.99, parity=1e-5, int8_loss=0.005),
    )


def _with_own_pictures(recipe: ImageRecipe) -> ImageRecipe:
    return recipe.model_copy(
        update={
            "name": "pictures",
            "data": Data(
                source="folder",
                height=32,
                width=32,
                mode="RGB",
                resample="bilinear",
                background="any",
            ),
            "augmentation": recipe.augmentation.model_copy(
                update={"smallest": 0.8, "largest": 1.25, "contrast": 0.2, "outside": "edge"}
            ),
            # What is good enough is the user's to say, with --set acceptance.accuracy=0.95.
            "acceptance": recipe.acceptance.model_copy(update={"accuracy": 0.0}),
        }
    )


def _tiny(recipe: ImageRecipe) -> ImageRecipe:
    return recipe.model_copy(
        update={
            "epochs": 15,
            "model": Model(widths=(16, 32), dropout=0.0),
            "schedule": Schedule(warmup_epochs=1, final_fraction=0.01),
            "acceptance": recipe.acceptance.model_copy(update={"accuracy": 0.0}),
        }
    )
