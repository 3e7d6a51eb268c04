from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.recipes.digits import digits
from training.split import MIN_DISTINCT_PER_CLASS, Split, split_by_content
from training.tasks.image_classification.images import hash_images, open_images, split_images

Pictures = list[tuple[str, int]]
"""(digest, class) of each."""


@st.composite
def pictures(draw: st.DrawFn) -> Pictures:
    """Some classes, each with enough different pictures and some copies, in any order."""
    found: Pictures = []
    for target in range(draw(st.integers(1, 4))):
        distinct = draw(st.integers(MIN_DISTINCT_PER_CLASS, 60))
        for number in range(distinct):
            copies = draw(st.sampled_from([1, 1, 1, 2, 5]))
            found += [(f"{target}-{number * 7919 % 997:03}-{number}", target)] * copies
    return draw(st.permutations(found))


def split(data: Pictures) -> Split:
    return split_by_content([digest for digest, _ in data], [target for _, target in data])


def parts(data: Pictures) -> list[Pictures]:
    """What is in each part, in the part's order."""
    found = split(data)
    return [[data[i] for i in part] for part in (found.train, found.validation, found.held_out)]


@given(pictures())
def test_every_picture_is_in_exactly_one_part(data: Pictures) -> None:
    found = split(data)
    indices = [*found.train, *found.validation, *found.held_out]
    assert sorted(indices) == list(range(len(data)))


@given(pictures())
def test_copies_are_in_the_same_part(data: Pictures) -> None:
    train, validation, held_out = (set(part) for part in parts(data))
    assert not train & validation
    assert not train & held_out
    assert not validation & held_out


@given(pictures(), st.randoms(use_true_random=False))
def test_the_order_of_the_files_changes_nothing(data: Pictures, chance: random.Random) -> None:
    shuffled = chance.sample(data, len(data))
    assert parts(shuffled) == parts(data)
    assert split(shuffled).hash == split(data).hash


@given(pictures())
def test_each_class_is_cut_into_about_70_10_and_20_per_cent(data: Pictures) -> None:
    totals = Counter(target for _, target in set(data))
    for part, fraction in zip(parts(data), (0.7, 0.1, 0.2), strict=True):
        counts = Counter(target for _, target in set(part))
        for target, total in totals.items():
            assert counts[target] >= 1
            assert abs(counts[target] - fraction * total) <= 1


@given(pictures())
def test_another_picture_makes_another_hash(data: Pictures) -> None:
    assert split([*data, ("another", 0)]).hash != split(data).hash


@pytest.mark.parametrize("size", [8, 16])
def test_the_digits_and_their_split_are_the_ones_that_our_figures_are_for(size: int) -> None:
    settings = digits().data.model_copy(update={"height": size, "width": size})
    images = open_images(settings, None)
    found = split_images(images)
    assert [len(found.train), len(found.validation), len(found.held_out)] == [1259, 179, 359]
    assert hash_images(images).startswith("ce7eac1c36c3790e")
    assert found.hash.startswith("afc70d1cd5a48b1b")
