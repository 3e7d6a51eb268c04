"""Pictures beside one another, enlarged so that people see the pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from training import durable
from training.tasks.image_classification.images import Images

SHOWN_PX = 32
"""The least that a picture's side is enlarged to."""
GAP_PX = 2


def save_grid(path: Path, images: Images, columns: int) -> None:
    """Write a PNG of rows of so many pictures; their number is a multiple of it."""
    factor = -(-SHOWN_PX // min(images.shape[2:]))
    enlarged = images.repeat(factor, axis=2).repeat(factor, axis=3)
    gaps = ((0, 0), (0, 0), (0, GAP_PX), (0, GAP_PX))
    framed = np.pad(enlarged, gaps, constant_values=255)
    _, channels, height, width = framed.shape
    cells = framed.reshape(-1, columns, channels, height, width)
    pixels = cells.transpose(0, 3, 1, 4, 2).reshape(-1, columns * width, channels)
    png = io.BytesIO()
    Image.fromarray(pixels[:-GAP_PX, :-GAP_PX].squeeze()).save(png, "PNG", optimize=True)
    durable.write(path, png.getvalue())
