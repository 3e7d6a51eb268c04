"""A recipe: everything that decides what a training run makes, in one frozen object.

Each task adds its settings in a subclass (`training/tasks/<task>/recipe.py`). A recipe function
(see `training/recipes/`) returns a complete recipe; `--set key=value` replaces single settings; the
result is printed, and saved with the run.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from training.errors import RecipeError
from training.record import Record

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]


class Settings(Record):
    """A group of settings."""

    # A number is a good name: --set name=7.
    model_config = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True)


class Optimizer(Settings):
    name: Literal["adamw", "sgd"]
    learning_rate: PositiveFloat
    """At its highest, after the warm-up."""
    weight_decay: NonNegativeFloat
    """On matrices and filters; biases and normalisation go without."""
    momentum: BelowOne = 0.0
    """Of sgd."""
    beta2: BelowOne = 0.999
    """Of adamw: how long it remembers the size of gradients."""
    clip_norm: PositiveFloat
    """A gradient longer than this is shortened to it."""
    label_smoothing: BelowOne

    @model_validator(mode="after")
    def _momentum_is_sgd(self) -> Optimizer:
        if self.name == "adamw" and self.momentum:
            raise ValueError("optimizer.momentum belongs to sgd; adamw takes none")
        return self


class Schedule(Settings):
    """The learning rate rises in a line, then falls along half a cosine."""

    warmup_epochs: NonNegativeFloat
    final_fraction: Fraction
    """Of the highest learning rate, at the last step."""


class Recipe(Settings):
    """What the loop needs; each task adds its own settings in a subclass."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Also the model's name in a repository, unless `publish --name` gives another."""
    task: str
    """Which kind of model; see `training/tasks/`."""
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    epochs: PositiveInt
    batch_size: PositiveInt
    """Examples in one step, over all devices together."""
    optimizer: Optimizer
    schedule: Schedule

    @model_validator(mode="after")
    def _warms_up_before_it_ends(self) -> Recipe:
        if self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs is {self.schedule.warmup_epochs:g};"
                f" it must be less than epochs, which is {self.epochs}"
            )
        return self

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted key, in the order of definition."""
        return dict(_flatten(self.model_dump(mode="json")))

    def text(self) -> str:
        """One line per setting, for the eye."""
        settings = self.flat()
        column = max(map(len, settings))
        return "\n".join(f"{key:<{column}}  {_show(value)}" for key, value in settings.items())


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def override(recipe: AnyRecipe, assignments: Sequence[str]) -> AnyRecipe:
    """The recipe with settings replaced, each given as "dotted.key=value".

    Raises `RecipeError` with one sentence that names the key, what was expected and what came.
    """
    tree = recipe.model_dump()
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(
                f"--set {assignment}: expected key=value, for example optimizer.learning_rate=0.01"
            )
        *groups, leaf = _known(key.strip(), recipe).split(".")
        branch = tree
        for group in groups:
            branch = branch[group]
        branch[leaf] = _parse(value.strip())
    try:
        return type(recipe).model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_sentence(error)) from None


def first_difference(one: Recipe, other: Recipe) -> tuple[str, str, str] | None:
    """The first setting in which two recipes differ: its key and both values; None if none does."""
    theirs = other.flat()
    for key, value in one.flat().items():
        if value != theirs[key]:
            return key, _show(value), _show(theirs[key])
    return None


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _known(key: str, recipe: Recipe) -> str:
    settings = list(recipe.flat())
    if key in settings:
        return key
    group = [setting for setting in settings if setting.startswith(f"{key}.")]
    if group:
        raise RecipeError(
            f"--set {key}: is a group of settings; expected one of {', '.join(group)}"
        )
    leaves = [setting for setting in settings if setting.rsplit(".", 1)[-1] == key]
    near = leaves or difflib.get_close_matches(key, settings, n=1, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(settings)}"
    )
    raise RecipeError(f"--set {key}: there is no such setting; {hint}")


def _parse(value: str) -> Any:
    """Numbers, booleans and lists are JSON; anything else is text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _sentence(error: ValidationError) -> str:
    """The first problem that pydantic found, in our words."""
    problem = error.errors()[0]
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    key = ".".join(str(part) for part in problem["loc"])
    expected = problem["msg"].removeprefix("Input should ").removeprefix("be ")
    return f"--set {key}: expected {expected}, got {_show(problem['input'])}"
