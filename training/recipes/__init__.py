"""Recipes by name; each is imported when it is chosen."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Protocol, cast

from training.errors import RecipeError
from training.recipe import Recipe

RECIPES = {
    "digits": "training.recipes.digits:digits",
    "digits-diffusion": "training.recipes.digits_diffusion:digits_diffusion",
    "spoken-numbers": "training.recipes.spoken_numbers:spoken_numbers",
    "spoken-numbers-whisper": ("training.recipes.spoken_numbers_whisper:spoken_numbers_whisper"),
    "translator": "training.recipes.translator:translator",
    "writer": "training.recipes.writer:writer",
}


class RecipeFunction(Protocol):
    def __call__(self, *, tiny: bool = False, own_data: bool = False) -> Recipe:
        """A complete recipe.

        `tiny` shows in seconds that everything works; `own_data` suits the settings to
        data of the user's.
        """
        ...


def find_recipe(name: str) -> RecipeFunction:
    """Raises `RecipeError` when there is no recipe of this name."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(RECIPES)}"
        raise RecipeError(f"there is no recipe {name!r}; {hint}")
    module_name, _, attribute = RECIPES[name].partition(":")
    return cast(RecipeFunction, getattr(import_module(module_name), attribute))
