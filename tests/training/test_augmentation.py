from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.tasks.image_classification.augmentation import augment
from training.tasks.image_classification.recipe import Augmentation

STILL = Augmentation(
    shift=0,
    rotation_degrees=0,
    smallest=1,
    largest=1,
    contrast=0,
    noise=0,
    outside="black",
)


def views(images: Tensor, seed: int = 0, **settings: Any) -> Tensor:
    generator = torch.Generator()
    generator.manual_seed(seed)
    return augment(images, STILL.model_copy(update=settings), generator)


def noise(height: int = 8, width: int = 12) -> Tensor:
    generator = torch.Generator()
    generator.manual_seed(7)
    return torch.randint(0, 256, (16, 3, height, width), dtype=torch.uint8, generator=generator)


def test_without_reach_a_view_is_its_picture() -> None:
    torch.testing.assert_close(views(noise()), noise().float(), atol=1e-3, rtol=0)


@given(
    shift=st.floats(0, 1),
    rotation_degrees=st.floats(0, 180),
    smallest=st.floats(0.1, 1),
    largest=st.floats(1, 4),
    contrast=st.floats(0, 1),
    noise_=st.floats(0, 1),
    outside=st.sampled_from(["black", "edge"]),
)
def test_every_view_has_the_shape_and_range_of_a_picture(noise_: float, **settings: Any) -> None:
    seen = views(noise(), noise=noise_, **settings)
    assert seen.shape == noise().shape
    assert seen.dtype == torch.float32
    assert bool(((seen >= 0) & (seen <= 255)).all())


def test_the_generator_decides() -> None:
    wild: dict[str, Any] = {"shift": 0.2, "rotation_degrees": 30, "noise": 0.1, "contrast": 0.3}
    assert torch.equal(views(noise(), seed=1, **wild), views(noise(), seed=1, **wild))
    assert not torch.equal(views(noise(), seed=1, **wild), views(noise(), seed=2, **wild))


@pytest.mark.parametrize(("smallest", "largest", "grows"), [(0.5, 1, False), (1, 2, True)])
def test_smallest_shrinks_and_largest_enlarges(
    smallest: float, largest: float, grows: bool
) -> None:
    square = torch.zeros(64, 1, 32, 32, dtype=torch.uint8)
    square[:, :, 8:24, 8:24] = 255
    light = views(square, smallest=smallest, largest=largest).mean(dim=(1, 2, 3))
    ratio = (light / square.float().mean(dim=(1, 2, 3))).sqrt()
    assert bool((ratio > 0.99).all() if grows else (ratio < 1.01).all())
    assert ratio.min() == pytest.approx(smallest, rel=0.15)
    assert ratio.max() == pytest.approx(largest, rel=0.15)


def test_a_turn_keeps_shapes_also_in_a_picture_that_is_not_square() -> None:
    """A disc turned is the same disc; it would be an ellipse if pixels were not square."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(64.0), indexing="ij")
    disc = ((rows - 15.5) ** 2 + (columns - 31.5) ** 2 < 100).to(torch.uint8) * 255
    disc = disc.expand(16, 1, 32, 64)
    difference = (views(disc, rotation_degrees=90) - disc.float()).abs().mean()
    assert difference < 3


def test_beyond_the_picture_is_black_or_its_edge() -> None:
    white = torch.full((8, 1, 8, 8), 255, dtype=torch.uint8)
    assert views(white, shift=0.5, outside="black").min() == 0
    assert views(white, shift=0.5, outside="edge").min() > 254.9
