"""How good drawn pictures are: what was asked for, as various as real ones, and new."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.svm import SVC

from training.record import Record
from training.split import Indices
from training.tasks.image_classification.images import Images, LabelledImages
from training.tasks.image_generation.sampling import Classes

COMPONENTS = 32
"""Principal components that the classifier sees of a picture."""
LEARNED_FROM = 5000
"""Pictures of the training part that the classifier learns from, if there are more."""
CUTS = 20
"""Of the held-out pictures in two, over which the Fréchet distances are averaged."""
FEWEST = 4 * COMPONENTS
"""Held-out pictures without which a half is too small to have a covariance to speak of."""
_CHUNK = 1024

Features = npt.NDArray[np.float64]
"""[picture, feature]."""


class Judge:
    """A support vector machine on the principal components of real pictures (scikit-learn).

    It learns from the training part, and has nothing else in common with the network.
    """

    def __init__(self, images: LabelledImages, train: Indices):
        some = train[:: math.ceil(len(train) / LEARNED_FROM)]
        pixels = _flat(images.read(some))
        components = min(COMPONENTS, len(some) - 1, pixels.shape[1])
        self._components = PCA(components, random_state=0).fit(pixels)
        self._machine = SVC(C=10.0).fit(self.features(images.read(some)), images.targets[some])

    def features(self, images: Images) -> Features:
        """What the machine is told of a picture."""
        features: Features = self._components.transform(_flat(images))
        return features

    def agreement(self, images: Images, classes: Classes) -> float:
        """Share of the pictures that it takes for one of their class."""
        return float(self._machine.score(self.features(images), classes))


class Frechet(Record):
    """Mean distances over several cuts of the held-out pictures in two halves.

    From one half to the other, and from it to as many drawn pictures, of the same classes as the
    other. They can be compared because they are of equally many pictures: the fewer, the larger.
    """

    real: float
    drawn: float

    @property
    def ratio(self) -> float:
        return self.drawn / self.real


def compare_with_held_out(
    drawn: Features, classes: Classes, real: Features, real_classes: Classes
) -> Frechet | None:
    """None if there are too few real pictures to cut them in two.

    Of each class there must be as many drawn as real ones.
    """
    if len(real) < FEWEST:
        return None
    chance = np.random.default_rng(0)
    distances = []
    for _ in range(CUTS):
        order = chance.permutation(len(real))
        one, other = order[: len(real) // 2], order[len(real) // 2 :]
        twins = np.concatenate(
            [
                chance.choice(np.flatnonzero(classes == which), count, replace=False)
                for which, count in zip(
                    *np.unique(real_classes[other], return_counts=True), strict=True
                )
            ]
        )
        distances.append(
            (frechet_distance(real[one], real[other]), frechet_distance(real[one], drawn[twins]))
        )
    between, from_drawn = np.mean(distances, axis=0)
    return Frechet(real=float(between), drawn=float(from_drawn))


def frechet_distance(one: Features, other: Features) -> float:
    """Between the Gaussians that have the features' means and covariances: Heusel et al., 2017."""
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # The trace of the product's root is that of a symmetric matrix, whose roots are real.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0.0))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ second @ root).clip(0.0)
    apart = one.mean(axis=0) - other.mean(axis=0)
    return float(apart @ apart + np.trace(first + second) - 2.0 * np.sqrt(mixed).sum())


class Nearest(Record):
    """How far pictures are from the nearest one that was learned from.

    Root mean square of the pixels' differences, where 1 is from black to white.
    """

    drawn_smallest: float
    drawn_median: float
    held_out_smallest: float
    held_out_median: float
    copies: float
    """Share of the drawn ones that are nearer than any held-out one is."""


def seek_copies(
    drawn: Images, images: LabelledImages, train: Indices, held_out: Indices
) -> Nearest:
    """Compare drawn and held-out pictures with all of the training part."""
    of_drawn = _nearest(drawn, images, train)
    of_held_out = np.concatenate(
        [_nearest(some, images, train) for some in _chunks(images, held_out)]
    )
    return Nearest(
        drawn_smallest=float(of_drawn.min()),
        drawn_median=float(np.median(of_drawn)),
        held_out_smallest=float(of_held_out.min()),
        held_out_median=float(np.median(of_held_out)),
        copies=float((of_drawn < of_held_out.min()).mean()),
    )


def _nearest(some: Images, images: LabelledImages, train: Indices) -> Features:
    """[picture], the distance from each to the nearest of the training part."""
    pixels = _flat(some)
    squares = [
        (pixels**2).sum(axis=1)[:, None] + (learned**2).sum(axis=1) - 2.0 * pixels @ learned.T
        for learned in map(_flat, _chunks(images, train))
    ]
    nearest = np.min([each.min(axis=1) for each in squares], axis=0)
    distances: Features = np.sqrt(nearest.clip(0.0) / pixels.shape[1])
    return distances


def _chunks(images: LabelledImages, indices: Indices) -> Iterator[Images]:
    for start in range(0, len(indices), _CHUNK):
        yield images.read(indices[start : start + _CHUNK])


def _flat(images: Images) -> Features:
    """[picture, pixel], 0 to 1."""
    return images.reshape(len(images), -1) / 255.0
