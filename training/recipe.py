"""A recipe: everything that decides what a training run makes, in one frozen object.

A recipe function (see `training/recipes/`) returns a complete one; `--set key=value` replaces
single settings; the result is printed, and saved with the run.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from serving.tasks.image_classification import ImagePreprocessing
from training.errors import RecipeError
from training.record import Record

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]


class Settings(Record):
    """A group of settings."""

    # A number is a good name: --set name=7.
    model_config = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True)


class Data(Settings):
    """Where the pictures come from, and how each is prepared for the model."""

    source: Literal["digits", "folder"]
    """scikit-learn's handwritten digits, or the user's own folder with one folder per class."""
    height: Annotated[int, Field(ge=4, le=256)]
    width: Annotated[int, Field(ge=4, le=256)]
    mode: Literal["L", "RGB"]
    resample: Literal["box", "bilinear", "bicubic", "lanczos"]
    background: Literal["any", "dark"]

    @property
    def preprocessing(self) -> ImagePreprocessing:
        return ImagePreprocessing(**self.model_dump(exclude={"source"}))


class Model(Settings):
    """The network's size; the data decide the rest."""

    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Feature maps of each stage; between two stages the picture's sides are halved."""
    dropout: BelowOne


class Augmentation(Settings):
    """How far a random view may be from its picture."""

    shift: Fraction
    """Of the picture's side."""
    rotation_degrees: Annotated[float, Field(ge=0.0, le=180.0)]
    smallest: Annotated[float, Field(gt=0.0, le=1.0)]
    largest: Annotated[float, Field(ge=1.0)]
    """The view's scale lies between these; uniform in the logarithm."""
    contrast: Fraction
    """The brightness is multiplied by 1 ± this."""
    noise: Fraction
    """Standard deviation of the noise, where 1 is from black to white."""
    outside: Literal["black", "edge"]
    """What a view shows beyond the picture: black, or the picture's edge repeated."""


class Optimizer(Settings):
    name: Literal["adamw", "sgd"]
    learning_rate: PositiveFloat
    """At its highest, after the warm-up."""
    weight_decay: NonNegativeFloat
    """On convolution and linear weights; biases and normalisation go without."""
    momentum: BelowOne = 0.0
    """Of sgd."""
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


class Acceptance(Settings):
    """What a model must show before it may be exported and published."""

    accuracy: Fraction
    """On the held-out part."""
    parity: PositiveFloat
    """Largest difference between a served logit and torch's."""
    int8_loss: Fraction
    """Held-out accuracy that quantisation may cost."""


class Recipe(Settings):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Also the model's name in a repository, unless `publish --name` gives another."""
    task: Literal["image_classification"] = "image_classification"
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    epochs: PositiveInt
    batch_size: PositiveInt
    """Pictures in one step, over all devices together."""
    data: Data
    model: Model
    augmentation: Augmentation
    optimizer: Optimizer
    schedule: Schedule
    acceptance: Acceptance

    @model_validator(mode="after")
    def _every_stage_has_pixels(self) -> Recipe:
        stages = len(self.model.widths)
        side = min(self.data.height, self.data.width)
        if side >> (stages - 1) < 1:
            raise ValueError(
                f"model.widths has {stages} stages, each half the size of the one before, "
                f"and a picture of {side} pixels has room for {side.bit_length()}"
            )
        return self

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


def override(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
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
        return Recipe.model_validate(tree)
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
