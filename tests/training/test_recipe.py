from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from training.errors import RecipeError, RunError
from training.recipe import first_difference, override
from training.recipes import RECIPES, find_recipe
from training.recipes.digits import digits
from training.tasks import load_recipe


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("own_data", [False, True])
def test_every_recipe_is_complete_and_comes_back_from_its_file(
    name: str, tiny: bool, own_data: bool, tmp_path: Path
) -> None:
    recipe = find_recipe(name)(tiny=tiny, own_data=own_data)
    # Built in parts by model_copy, which does not check: so check the whole.
    assert type(recipe).model_validate(recipe.model_dump()) == recipe
    recipe.save(tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == recipe
    assert first_difference(recipe, load_recipe(tmp_path / "recipe.json")) is None


def test_the_text_shows_every_setting() -> None:
    recipe = digits()
    lines = dict(line.split(maxsplit=1) for line in recipe.text().splitlines())
    assert lines.keys() == recipe.flat().keys()
    assert lines["optimizer.learning_rate"] == "0.003"


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_any_positive_number_becomes_the_learning_rate(value: float) -> None:
    changed = override(digits(), [f"optimizer.learning_rate={value!r}"])
    assert changed.optimizer.learning_rate == value
    difference = first_difference(digits(), changed)
    assert difference is None or difference[0] == "optimizer.learning_rate"


@given(st.one_of(st.floats(max_value=0), st.just(math.inf), st.just(math.nan)))
def test_no_other_number_does(value: float) -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.learning_rate: expected .*got"):
        override(digits(), [f"optimizer.learning_rate={value!r}"])


@given(st.text().filter(lambda key: "=" not in key and key.strip() not in digits().flat()))
def test_any_unknown_key_is_named(key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override(digits(), [f"{key}=1"])
    assert key.strip() in str(caught.value)


def test_the_last_of_several_values_counts_and_the_original_stays() -> None:
    original = digits()
    changed = override(original, ["epochs=5", "model.widths=[8, 16]", "epochs = 7"])
    assert (changed.epochs, changed.model.widths) == (7, (8, 16))
    assert original == digits()
    with pytest.raises(ValidationError):
        changed.epochs = 8


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("epochs", "--set epochs: expected key=value"),
        ("optimizer.lerning_rate=1", "no such setting; did you mean optimizer.learning_rate?"),
        ("learning_rate=1", "no such setting; did you mean optimizer.learning_rate?"),
        ("optimizer=sgd", "is a group of settings; expected one of optimizer.name"),
        ("epochs=many", "--set epochs: expected a valid integer"),
        ("epochs=2.5", "--set epochs: expected a valid integer"),
        ("data.mode=CMYK", "--set data.mode: expected 'L' or 'RGB', got CMYK"),
        ("model.widths=[]", "--set model.widths:"),
        ("model.widths=[8,8,8,8,8]", "a picture of 8 pixels has room for 4"),
        ("optimizer.momentum=0.9", "optimizer.momentum belongs to sgd"),
        ("schedule.warmup_epochs=60", "it must be less than epochs, which is 60"),
        ("name=../up", "--set name:"),
    ],
)
def test_a_mistake_gets_one_clear_sentence(setting: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override(digits(), [setting])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sgd_takes_momentum() -> None:
    settings = ["optimizer.name=sgd", "optimizer.momentum=0.9"]
    assert override(digits(), settings).optimizer.momentum == 0.9


def test_an_unknown_recipe_is_named_with_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="'digit'; did you mean digits"):
        find_recipe("digit")


def test_a_recipe_file_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(RunError, match=r"recipe\.json: task: expected one of"):
        load_recipe(tmp_path / "recipe.json")
