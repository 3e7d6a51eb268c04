"""A model that draws handwritten digits, or pictures of any other few classes."""

from __future__ import annotations

from training.recipe import Optimizer, Schedule
from training.tasks.image_classification.recipe import Data
from training.tasks.image_generation.recipe import (
    Acceptance,
    Diffusion,
    DiffusionRecipe,
    Judging,
    Model,
    Sampling,
)


def digits_diffusion(*, tiny: bool = False, own_data: bool = False) -> DiffusionRecipe:
    """scikit-learn's digits at 16×16: under ten minutes on two CPU cores.

    With `own_data`, the user's folder in colour and at 32×32, which takes a GPU, or patience.
    `tiny` draws what is hardly a digit.
    """
    recipe = _with_own_pictures(_digits()) if own_data else _digits()
    return _tiny(recipe) if tiny else recipe


def _digits() -> DiffusionRecipe:
    return DiffusionRecipe(
        name="digits-diffusion",
        seed=1,
        epochs=16,
        batch_size=64,
        passes=4,
        data=Data(
            source="digits",
            height=16,
            width=16,
            mode="L",
            resample="bilinear",
            background="dark",
        ),
        model=Model(widths=(32, 64, 64), layers=1, dropout=0.1),
        diffusion=Diffusion(
            prediction_type="v_prediction",
            unlabelled=0.1,
            average_decay=0.995,
        ),
        # More guidance draws plainer digits, and all alike.
        sampling=Sampling(num_inference_steps=20, guidance_scale=1.5),
        judging=Judging(samples=500, steps=(5, 10, 20, 50)),
        optimizer=Optimizer(
            name="adamw",
            learning_rate=2e-3,
            weight_decay=0.01,
            clip_norm=1.0,
            label_smoothing=0.0,
        ),
        schedule=Schedule(warmup_epochs=1, final_fraction=0.01),
        acceptance=Acceptance(agreement=0.97, frechet_ratio=2.0, copies=0.0, parity=1e-4),
    )


def _with_own_pictures(recipe: DiffusionRecipe) -> DiffusionRecipe:
    return recipe.model_copy(
        update={
            "name": "pictures-diffusion",
            "epochs": 100,
            "data": Data(
                source="folder",
                height=32,
                width=32,
                mode="RGB",
                resample="bilinear",
                background="any",
            ),
            "model": Model(widths=(64, 128, 128), layers=2, dropout=0.1),
            "diffusion": recipe.diffusion.model_copy(update={"average_decay": 0.999}),
            "acceptance": _anything(recipe.acceptance),
        }
    )


def _tiny(recipe: DiffusionRecipe) -> DiffusionRecipe:
    return recipe.model_copy(
        update={
            "epochs": 2,
            "passes": 1,
            "model": Model(widths=(16, 32), layers=1, dropout=0.0),
            "sampling": recipe.sampling.model_copy(update={"num_inference_steps": 5}),
            "judging": Judging(samples=200, steps=(2, 5)),
            "schedule": Schedule(warmup_epochs=0.2, final_fraction=0.01),
            "acceptance": _anything(recipe.acceptance),
        }
    )


def _anything(acceptance: Acceptance) -> Acceptance:
    """What is good enough is the user's to say, with --set acceptance.agreement=0.9."""
    return acceptance.model_copy(update={"agreement": 0.0, "frechet_ratio": None, "copies": 1.0})
