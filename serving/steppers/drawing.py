"""From a request to the images that it asks for."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from serving.diffusion.noise import FEWEST, TorchNoise
from serving.diffusion.parameters import DiffusionParameters
from serving.diffusion.prompts import Classes
from serving.diffusion.settings import DiffusionSettings
from serving.diffusion.solvers import Plan, plan_of
from serving.errors import InvalidRequest
from serving.scheduling.step_policy import Job
from serving.steppers.parameters import validated
from serving.text import Tokenizer
from serving.types import Array, InferRequest

INPUT = "prompt"

LARGEST = 4
"""Times the pixels of the model's own size, and either side, that a caller may ask for."""

MAX_PROMPT_BYTES = 1 << 15

Floats = npt.NDArray[np.float32]


@dataclass(slots=True, eq=False, kw_only=True)
class Drawing(Job):
    """One image. It has a second slot if it is guided: for the row without its prompt."""

    plan: Plan
    shape: tuple[int, int, int]
    guidance: float
    seed: int
    wanted: Array | None
    """What its row is told: a class, the tokens of a text and later what an encoder makes of them,
    or nothing."""
    unwanted: Array | None
    """The same of the row that it is guided away from."""
    shown_after: frozenset[int]
    """Steps after which its caller is shown what it will be."""
    place: int = 0
    """Steps made."""
    noise: TorchNoise = field(init=False)
    sample: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    clean: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    """What the last step took for the image."""
    is_ready: bool = False
    """It can be stepped."""
    has_left: bool = False


class Planner:
    """What a request means to a model of these settings. Needs the tokenizer of one that reads a
    text."""

    def __init__(self, settings: DiffusionSettings, tokenizer: Tokenizer | None):
        self._settings = settings
        self._tokenizer = tokenizer
        self._classes = Classes(settings.classes) if settings.classes else None

    def plan(self, request: InferRequest, *, streams: bool) -> Sequence[Drawing]:
        """A drawing for each prompt; where there is a seed, each has its own. Raises
        `InvalidRequest`."""
        chosen = validated(
            DiffusionParameters, {**dict(self._settings.defaults), **request.parameters}
        )
        shape = self._shape(chosen)
        plan = plan_of(self._settings.noise, chosen.scheduler, chosen.num_inference_steps)
        guidance = self._guidance(chosen, request)
        shown_after = _shown_after(len(plan.steps), chosen.partial_images) if streams else ()
        seed = secrets.randbits(63) if chosen.seed is None else chosen.seed
        unwanted = None if guidance is None else self._told(chosen.negative_prompt, is_wanted=False)
        return [
            Drawing(
                rows=1 if guidance is None else 2,
                priority=request.priority,
                timeout_s=request.timeout_s,
                deadline=request.deadline,
                plan=plan,
                shape=shape,
                guidance=guidance or 0.0,
                seed=seed + number,
                wanted=self._told(prompt, is_wanted=True),
                unwanted=unwanted,
                shown_after=frozenset(shown_after),
            )
            for number, prompt in enumerate(_prompts(request))
        ]

    @property
    def own_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        sample, scale = self._settings.sample, self._settings.pixels
        return sample.height * scale, sample.width * scale

    def _shape(self, chosen: DiffusionParameters) -> tuple[int, int, int]:
        """Of a sample. Raises `InvalidRequest`."""
        sample, scale = self._settings.sample, self._settings.pixels
        own = self.own_size
        wanted = chosen.height or own[0], chosen.width or own[1]
        if wanted == own:
            return sample.channels, sample.height, sample.width
        if sample.multiple is None:
            raise InvalidRequest(
                f"parameters 'width' and 'height': this model draws {own[1]}x{own[0]} only,"
                f" got {wanted[1]}x{wanted[0]}"
            )
        multiple = sample.multiple * scale
        if any(size % multiple for size in wanted):
            raise InvalidRequest(
                f"parameters 'width' and 'height': expected multiples of {multiple},"
                f" got {wanted[1]}x{wanted[0]}"
            )
        if prod(wanted) > LARGEST * prod(own) or any(
            size > LARGEST * most for size, most in zip(wanted, own, strict=True)
        ):
            raise InvalidRequest(
                f"parameters 'width' and 'height': expected at most {LARGEST} times the pixels of"
                f" {own[1]}x{own[0]}, and of either side, got {wanted[1]}x{wanted[0]}"
            )
        shape = sample.channels, wanted[0] // scale, wanted[1] // scale
        if prod(shape) < FEWEST:
            raise InvalidRequest(
                f"parameters 'width' and 'height': {wanted[1]}x{wanted[0]} is too small"
            )
        return shape

    def _guidance(self, chosen: DiffusionParameters, request: InferRequest) -> float | None:
        """How far to go away from what is not wanted, if at all. Raises `InvalidRequest`."""
        if not self._settings.can_guide:
            for name in ("guidance_scale", "negative_prompt"):
                if request.parameters.get(name) not in (None, "", 0, 1):
                    raise InvalidRequest(
                        f"parameter {name!r}: this model cannot be guided, leave it out"
                    )
        is_guided = self._settings.can_guide and chosen.guidance_scale > 1
        return chosen.guidance_scale if is_guided else None

    def _told(self, prompt: str, *, is_wanted: bool) -> Array | None:
        """What a row is told of a prompt. Raises `InvalidRequest`."""
        if self._tokenizer is not None:
            return self._tokens(prompt)
        if self._classes is not None:
            none = self._settings.unconditional_class
            number = none if not is_wanted and not prompt else self._classes.named(prompt)
            return np.array(number, np.int64)
        if prompt.strip():
            raise InvalidRequest("prompt: this model draws what it likes; expected an empty one")
        return None

    def _tokens(self, prompt: str) -> Array:
        assert self._tokenizer is not None
        assert self._settings.text is not None
        text = self._settings.text
        ids = self._tokenizer.encode(prompt)
        if len(ids) > text.tokens:
            raise InvalidRequest(
                f"prompt: expected at most {text.tokens} tokens, and this one has {len(ids)}"
            )
        return np.array(ids + [text.pad_token_id] * (text.tokens - len(ids)), np.int64)


def _prompts(request: InferRequest) -> Iterable[str]:
    for element in request.inputs[INPUT].ravel():
        if len(element) > MAX_PROMPT_BYTES:
            raise InvalidRequest(
                f"prompt: expected at most {MAX_PROMPT_BYTES} bytes, got {len(element)}"
            )
        try:
            yield element.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"input {INPUT!r} is not UTF-8 at byte {error.start}") from None


def _shown_after(steps: int, images: int | None) -> Iterable[int]:
    """Steps after which an image is shown, at even distances; after each for None."""
    if images is None or images >= steps:
        return range(1, steps)
    return (steps * number // (images + 1) for number in range(1, images + 1))
