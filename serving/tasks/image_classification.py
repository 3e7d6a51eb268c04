"""Image classification: from the bytes of a picture to labels with scores.

Training, evaluation and serving all prepare pictures with `ImagePreprocessing`, so a difference
between what a model learned from and what it is asked is a failing test.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, PositiveInt

from serving.errors import InvalidRequest, ModelLoadError, TooLarge
from serving.tasks import Question
from serving.tasks.payload import as_bytes
from serving.types import DYNAMIC, Tensors, TensorSpec

Pixels = npt.NDArray[np.uint8]
"""One picture, [channel, row, column], 0 to 255."""

Scores = npt.NDArray[np.float64]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_MEGAPIXELS = 25
MIN_SIDE_PX = 4
"""A picture smaller than this shows nothing; it is nearly always a tracking pixel or a mistake."""

INPUT = "image"
OUTPUT = "logits"
PREPROCESSING_FILE = "preprocessing.json"
LABELS_FILE = "labels.txt"


Mode = Literal["L", "RGB"]
Resample = Literal["box", "bilinear", "bicubic", "lanczos"]
Background = Literal["any", "dark"]
_CHOICES = {
    "mode": get_args(Mode),
    "resample": get_args(Resample),
    "background": get_args(Background),
}


@dataclass(frozen=True)
class ImagePreprocessing:
    """How a picture becomes the model's input. Normalisation is not here: it is in the graph.

    With `background="dark"` a picture whose border is brighter than its middle tone is inverted,
    so that ink on paper and chalk on slate look alike to the model.
    """

    height: int
    width: int
    mode: Mode
    resample: Resample = "bilinear"
    background: Background = "any"

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} must be one of {choices}, got {getattr(self, field)!r}")
        if not (isinstance(self.height, int) and isinstance(self.width, int)):
            raise ValueError(f"height and width must be integers, got {self.height}, {self.width}")
        if min(self.height, self.width) < 1:
            raise ValueError(f"height and width must be 1 or more, got {self.height}, {self.width}")

    @property
    def channels(self) -> int:
        return len(self.mode)

    def decode(self, body: bytes) -> Pixels:
        """Decode and fit one picture; returns [channels, height, width].

        Raises `InvalidRequest` for what is not a usable picture, `TooLarge` for too many pixels.
        """
        return self.fit(_open(body))

    def fit(self, image: Image.Image) -> Pixels:
        """Bring an opened picture to the model's mode and size."""
        flat = _flatten(image).convert(self.mode)
        if self.background == "dark" and _border_is_bright(flat):
            flat = ImageOps.invert(flat)
        flat = flat.resize((self.width, self.height), Image.Resampling[self.resample.upper()])
        pixels = np.asarray(flat, dtype=np.uint8)
        return pixels[np.newaxis] if self.mode == "L" else pixels.transpose(2, 0, 1).copy()

    def save(self, directory: Path) -> None:
        (directory / PREPROCESSING_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> ImagePreprocessing:
        path = directory / PREPROCESSING_FILE
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ModelLoadError(f"{path}: unusable preprocessing settings: {error}") from error


class ImageClassification:
    """The task: `preprocess` a picture, let the model compute logits, `postprocess` to labels."""

    takes_long = True

    class Parameters(BaseModel, extra="forbid", frozen=True):
        top_k: PositiveInt | None = None
        function_to_apply: Literal["softmax", "sigmoid", "none"] = "softmax"

    def __init__(self, preprocessing: ImagePreprocessing, labels: Sequence[str]):
        self._preprocessing = preprocessing
        self._labels = labels
        pixels = (preprocessing.channels, preprocessing.height, preprocessing.width)
        self.inputs = (TensorSpec(INPUT, "UINT8", (DYNAMIC, *pixels)),)
        self.outputs = (TensorSpec(OUTPUT, "FP32", (DYNAMIC, len(labels))),)

    @classmethod
    def load(cls, directory: Path) -> ImageClassification:
        """Read the assets of a version directory."""
        path = directory / LABELS_FILE
        try:
            labels = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{path}: unusable labels: {error}") from error
        return cls(ImagePreprocessing.load(directory), labels)

    def preprocess(self, payload: object, settings: ImageClassification.Parameters) -> Question:
        """One picture file: its bytes, or in JSON their base64."""
        pixels = self._preprocessing.decode(as_bytes(payload))
        return Question(settings, {INPUT: pixels[np.newaxis]})

    def postprocess(self, outputs: Tensors, question: Question) -> list[dict[str, str | float]]:
        """Labels with scores, best first."""
        settings: ImageClassification.Parameters = question.settings
        logits = outputs[OUTPUT][0].astype(np.float64)
        scores = _SCORES[settings.function_to_apply](logits)
        best = np.argsort(-scores, kind="stable")[: settings.top_k]
        return [{"label": self._labels[i], "score": float(scores[i])} for i in best]


def _softmax(logits: Scores) -> Scores:
    exponentials = np.exp(logits - logits.max())
    return np.asarray(exponentials / exponentials.sum())


def _sigmoid(logits: Scores) -> Scores:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


_SCORES: Mapping[str, Callable[[Scores], Scores]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "none": lambda logits: logits,
}


def _open(body: bytes) -> Image.Image:
    if not body:
        raise InvalidRequest("the body is empty; expected the bytes of a PNG or JPEG image")
    try:
        # Reads the header only, so the size is known before memory is spent on pixels.
        image = Image.open(io.BytesIO(body), formats=FORMATS)
        _check_size(image)
        image.load()
    except UnidentifiedImageError:
        expected = ", ".join(FORMATS)
        raise InvalidRequest(
            f"the body is not an image; expected the bytes of one of {expected}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLarge(
            f"the image has too many pixels; the limit is {MAX_MEGAPIXELS} megapixels"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InvalidRequest("the image is damaged or cut short and cannot be decoded") from error
    return image


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise TooLarge(
            f"the image is {width}×{height}, {width * height / 1e6:.0f} megapixels; "
            f"the limit is {MAX_MEGAPIXELS}"
        )
    if min(width, height) < MIN_SIDE_PX:
        raise InvalidRequest(
            f"the image is {width}×{height} pixels; expected at least {MIN_SIDE_PX} on each side"
        )


def _flatten(image: Image.Image) -> Image.Image:
    """Upright, eight bits a channel, and opaque on white."""
    try:
        upright = ImageOps.exif_transpose(image)
    except (SyntaxError, struct.error, ValueError, TypeError, KeyError, OSError):
        upright = image  # a damaged note on orientation says nothing about the pixels
    if upright.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(upright, dtype=np.uint16) >> 8).astype(np.uint8))
    if upright.has_transparency_data:
        coloured = upright.convert("RGBA")
        on_white = Image.new("RGB", coloured.size, "white")
        on_white.paste(coloured, mask=coloured.getchannel("A"))
        return on_white
    return upright


def _border_is_bright(image: Image.Image) -> bool:
    grey = np.asarray(image.convert("L"))
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return bool(np.median(border) > 127)
