"""scikit-learn's handwritten digits: 1,797 pictures of 8×8, made from forms filled by 43 people.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (1998), the UCI
repository's test part, CC BY 4.0. It comes inside scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from serving.tasks.image_classification import ImagePreprocessing
from training.split import Indices, sha256_hex
from training.tasks.image_classification.images import Images

_FULL_INK = 16


class Digits:
    """All of them, prepared and in memory."""

    def __init__(self, preprocessing: ImagePreprocessing):
        ink = load_digits()
        grey = np.round(ink.images * (255 / _FULL_INK)).astype(np.uint8)
        self.labels = tuple(str(name) for name in ink.target_names)
        self.targets = ink.target.astype(np.int64)
        self.digests = tuple(sha256_hex(picture.tobytes()) for picture in grey)
        self._pixels = np.stack([preprocessing.fit(Image.fromarray(picture)) for picture in grey])

    def read(self, indices: Indices) -> Images:
        return self._pixels[indices]
