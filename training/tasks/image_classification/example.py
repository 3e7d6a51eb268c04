"""One real input that comes with a version, for those who try it and for the demo."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from training.split import Split
from training.tasks.image_classification.evaluate import compute_logits
from training.tasks.image_classification.images import LabelledImages
from training.tasks.image_classification.network import ImageClassifier

EXAMPLE_FILE = "example.png"
ANSWER_FILE = "example.json"
SIDE_PX = 128
"""About how large the picture is shown; enlarging keeps its pixels, as squares."""


def write_example(
    directory: Path, model: ImageClassifier, images: LabelledImages, split: Split
) -> None:
    """Write the first held-out picture that the model gets right, and what the right answer is."""
    logits = compute_logits(model, images, split.held_out).numpy()
    right = logits.argmax(axis=1) == images.targets[split.held_out]
    chosen = split.held_out[np.argmax(right)]
    pixels = images.read(np.array([chosen]))[0]
    factor = max(1, SIDE_PX // max(pixels.shape[1:]))
    enlarged = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    Image.fromarray(enlarged.transpose(1, 2, 0).squeeze()).save(directory / EXAMPLE_FILE)
    answer = {"answer": images.labels[images.targets[chosen]]}
    (directory / ANSWER_FILE).write_text(json.dumps(answer) + "\n", encoding="utf-8")
