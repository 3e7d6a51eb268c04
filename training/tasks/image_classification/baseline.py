"""What a user would try first: scikit-learn's support vector machine on the same split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.svm import SVC

from training.record import Record
from training.split import Indices, Split
from training.tasks.image_classification.images import LabelledImages

_C = (1.0, 3.0, 10.0, 30.0, 100.0)
_GAMMA = ("scale", 0.01, 0.03, 0.1)
_AFFORDABLE = 10**10
"""Multiplications in one fit, about ten seconds; a larger data set goes without."""


class Baseline(Record):
    setting: str
    held_out_accuracy: float


def support_vectors(images: LabelledImages, split: Split) -> Baseline | None:
    """The setting that is best on validation, fitted anew on training and validation together.

    None if the pictures are too many or too large for it.
    """
    pixels = images.read(split.train[:1]).size
    if len(split.train) ** 2 * pixels > _AFFORDABLE:
        return None
    train, validation = _flat(images, split.train), _flat(images, split.validation)
    train_targets, validation_targets = (
        images.targets[split.train],
        images.targets[split.validation],
    )
    settings = [(c, gamma) for c in _C for gamma in _GAMMA]
    scores = [
        SVC(C=c, gamma=gamma).fit(train, train_targets).score(validation, validation_targets)
        for c, gamma in settings
    ]
    c, gamma = settings[int(np.argmax(scores))]
    # The network uses validation to choose its epoch; this uses it to learn from, which is more.
    machine = SVC(C=c, gamma=gamma).fit(
        np.concatenate([train, validation]),
        np.concatenate([train_targets, validation_targets]),
    )
    accuracy = machine.score(_flat(images, split.held_out), images.targets[split.held_out])
    return Baseline(setting=f"SVC(C={c:g}, gamma={gamma!r})", held_out_accuracy=float(accuracy))


def _flat(images: LabelledImages, indices: Indices) -> npt.NDArray[np.float64]:
    """[picture, pixel], 0 to 1."""
    return images.read(indices).reshape(len(indices), -1) / 255.0
