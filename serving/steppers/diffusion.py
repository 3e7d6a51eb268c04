"""Draws: an image is a row that loses some of its noise at each step, beside rows of any age."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from serving.config import ModelConfig
from serving.diffusion.noise import TorchNoise
from serving.diffusion.settings import (
    DIFFUSION_FILE,
    IMAGE_DECODER_FILE,
    TEXT_ENCODER_FILE,
    UNET_FILE,
    DiffusionSettings,
)
from serving.diffusion.solvers import advance
from serving.engines.base import Graph
from serving.engines.onnx_graph import open_graph
from serving.errors import InferenceFailed, InvalidRequest, ModelLoadError
from serving.scheduling.outcomes import failure
from serving.scheduling.step_policy import Capacity
from serving.scheduling.stepper import News
from serving.steppers.beginnings import Beginnings
from serving.steppers.crew import Crew, parts
from serving.steppers.drawing import INPUT, Drawing, Floats, Planner
from serving.steppers.options import count
from serving.text import Tokenizer, load_tokenizer
from serving.types import DYNAMIC, Array, InferRequest, Tensors, TensorSpec, Work

OUTPUT = "image"

DEFAULT_SLOTS = 32
DEFAULT_MEMORY_MB = 512
"""Of samples and what is told of prompts; what the networks take while they run comes on top."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What a text encoder has made of a job's prompts."""

    wanted: Array
    unwanted: Array | None


@dataclass(frozen=True, slots=True)
class _Shown:
    """Pixels of a job, [height, width, channel]."""

    pixels: Array
    is_last: bool


class DiffusionStepper:
    """See `Stepper`. Jobs of the same shape share a run of the network; those that are guided have
    two rows in it.

    What other networks do, the encoder of prompts and the decoder of images, is done on a thread
    beside the steps of others. A job waits for it, so there is never more of it under way than
    there are jobs.
    """

    def __init__(
        self,
        unet: Graph,
        settings: DiffusionSettings,
        *,
        text_encoder: Graph | None = None,
        tokenizer: Tokenizer | None = None,
        image_decoder: Graph | None = None,
        slots: int,
        memory_bytes: int,
        threads: int,
    ):
        self._unet = unet
        self._settings = settings
        self._planner = Planner(settings, tokenizer)
        self._text_encoder = text_encoder
        self._image_decoder = image_decoder
        self._condition = next(
            (spec.name for spec in unet.inputs if spec.name not in ("sample", "timestep")), None
        )
        sizes = [DYNAMIC, DYNAMIC] if settings.sample.multiple else list(self._planner.own_size)
        self.inputs: Sequence[TensorSpec] = [TensorSpec(INPUT, "BYTES", (DYNAMIC, 1))]
        self.outputs: Sequence[TensorSpec] = [
            TensorSpec(OUTPUT, "UINT8", (DYNAMIC, *sizes, settings.image_channels))
        ]
        # Of a row, by what is told of its prompt.
        self._told_elements = sum(
            prod(spec.shape[1:]) for spec in unet.inputs if spec.name == "encoder_hidden_states"
        )
        self.capacity = Capacity(slots, memory_bytes, (np.float32().itemsize,))
        self.work = Work()
        self.memory_bytes = 0
        self._threads = threads
        self._crew = Crew(threads)
        self._aside = Beginnings[Drawing, _Told | _Shown | None](1)
        self._news: list[News[Drawing]] = []
        """Of what was done before a step that came to nothing."""

    def plan(self, request: InferRequest, *, streams: bool) -> Sequence[Drawing]:
        jobs = self._planner.plan(request, streams=streams)
        for job in jobs:
            # Its sample, and what that is taken for.
            job.extents = (2 * prod(job.shape) + self._told_elements,)
            if not self.capacity.admits(job):
                raise InvalidRequest(
                    f"this image needs {job.rows} slots, and the model has {self.capacity.slots};"
                    " or more memory than the model has for all images together"
                )
        return jobs

    def begin(self, jobs: Sequence[Drawing]) -> list[News[Drawing]]:
        noises = [TorchNoise(job.seed) for job in jobs]
        samples = [
            noise.normal(job.shape) * np.float32(job.plan.start)
            for noise, job in zip(noises, jobs, strict=True)
        ]
        for job, noise, sample in zip(jobs, noises, samples, strict=True):
            job.noise, job.sample, job.clean = noise, sample, np.zeros_like(sample)
            self.memory_bytes += job.sample.nbytes + job.clean.nbytes
            job.is_ready = self._text_encoder is None
        if self._text_encoder is not None:
            self._read_prompts(jobs, self._text_encoder)
        return []

    def step(self, jobs: Sequence[Drawing]) -> list[News[Drawing]]:
        self._news += self._received(wait_for_one=not any(job.is_ready for job in jobs))
        by_shape: defaultdict[tuple[int, int, int], list[Drawing]] = defaultdict(list)
        for job in jobs:
            if job.is_ready:
                by_shape[job.shape].append(job)
        # All that may fail comes before anything is changed.
        outputs = [self._computed(group) for group in by_shape.values()]
        for group, output in zip(by_shape.values(), outputs, strict=True):
            self._news += self._advanced(group, output)
        news, self._news = self._news, []
        return news

    def suspend(self, jobs: Sequence[Drawing]) -> list[News[Drawing]]:
        return []

    def resume(self, jobs: Sequence[Drawing]) -> list[News[Drawing]]:
        return []

    def end(self, job: Drawing) -> None:
        job.has_left = True
        self.memory_bytes -= job.sample.nbytes + job.clean.nbytes

    def render(self, job: Drawing, event: object, *, is_last: bool) -> Tensors:
        assert isinstance(event, np.ndarray)
        return {OUTPUT: event[np.newaxis]}

    def warm(self) -> None:
        prompt = self._settings.classes[0][0] if self._settings.classes else ""
        tensor = np.array([[prompt.encode()]], np.object_)
        [job] = self.plan(
            InferRequest("", {INPUT: tensor}, parameters={"num_inference_steps": 1}), streams=False
        )
        self.begin([job])
        while not any(item.is_last for item in self.step([job])):
            pass
        self.end(job)
        self.work = Work()

    def close(self) -> None:
        self._aside.close()
        self._crew.close()

    def _read_prompts(self, jobs: Sequence[Drawing], encoder: Graph) -> None:
        self._aside.start(jobs, partial(self._encode, encoder, jobs), tokens=1)

    def _encode(self, encoder: Graph, jobs: Sequence[Drawing]) -> Sequence[_Told | None]:
        if all(job.has_left for job in jobs):
            return [None] * len(jobs)
        told = [job.wanted for job in jobs] + [job.unwanted for job in jobs if job.rows == 2]
        states = encoder.run({"input_ids": np.stack(_present(told))})[self._condition_name]
        without = iter(states[len(jobs) :])
        return [
            _Told(states[number], next(without) if job.rows == 2 else None)
            for number, job in enumerate(jobs)
        ]

    @property
    def _condition_name(self) -> str:
        assert self._condition is not None
        return self._condition

    def _received(self, *, wait_for_one: bool) -> Iterable[News[Drawing]]:
        """What has been done aside, but for those who have left meanwhile."""
        for begun in self._aside.finished(wait_for_one=wait_for_one):
            if isinstance(begun.results, Exception):
                yield from self._failed(begun.jobs, begun.results)
                continue
            for job, result in zip(begun.jobs, begun.results, strict=True):
                if job.has_left or result is None:
                    continue
                if isinstance(result, _Shown):
                    job.is_ready = not result.is_last
                    yield News(job, result.pixels, result.is_last)
                else:
                    job.is_ready = True
                    job.wanted, job.unwanted = result.wanted, result.unwanted

    def _failed(self, jobs: Sequence[Drawing], error: Exception) -> Iterable[News[Drawing]]:
        """Only that one shall fail which must."""
        for job in jobs:
            if job.has_left:
                continue
            if len(jobs) == 1:
                yield News(job, failure(error), is_last=True)
            else:
                assert self._text_encoder is not None, "images are decoded one by one"
                self._read_prompts([job], self._text_encoder)

    def _computed(self, jobs: Sequence[Drawing]) -> Floats:
        """What the network says of each job's sample, guided if it is to be."""
        guided = [number for number, job in enumerate(jobs) if job.rows == 2]
        rows = [*range(len(jobs)), *guided]
        steps = [job.plan.steps[job.place] for job in jobs]
        inputs: Tensors = {
            "sample": np.stack([jobs[row].sample * np.float32(steps[row].input) for row in rows]),
            "timestep": np.array([steps[row].timestep for row in rows], np.float32),
        }
        if self._condition is not None:
            told = [job.wanted for job in jobs] + [jobs[row].unwanted for row in guided]
            inputs[self._condition] = np.stack(_present(told))
        output = self._run(inputs, len(rows))
        if not guided:
            return output
        chosen, without = output[: len(jobs)], output[len(jobs) :]
        scales = np.array([jobs[row].guidance for row in guided], np.float32)
        chosen[guided] = without + scales[:, None, None, None] * (chosen[guided] - without)
        return chosen

    def _run(self, inputs: Tensors, rows: int) -> Floats:
        """The network, on all threads that are free."""
        output = np.empty(inputs["sample"].shape, np.float32)

        def run(start: int, stop: int) -> None:
            part = {name: array[start:stop] for name, array in inputs.items()}
            output[start:stop] = self._unet.run(part)["model_output"]

        free = max(1, self._threads - self._aside.busy)
        calls: list[Callable[[], None]] = [
            partial(run, *span) for span in parts(rows, free, fewest_rows=1)
        ]
        self._crew.run(calls)
        self.work.made += rows
        return output

    def _advanced(self, jobs: Sequence[Drawing], output: Floats) -> Iterable[News[Drawing]]:
        noise = np.zeros(output.shape, np.float32)
        for row, job in enumerate(jobs):
            if job.plan.steps[job.place].next_noise:
                noise[row] = job.noise.normal(job.shape)
        samples, cleans = advance(
            [(job.plan, job.place) for job in jobs],
            np.stack([job.sample for job in jobs]),
            output,
            np.stack([job.clean for job in jobs]),
            noise,
        )
        for row, job in enumerate(jobs):
            if not (np.isfinite(output[row]).all() and np.isfinite(samples[row]).all()):
                yield News(job, _not_finite(), is_last=True)
                continue
            job.sample, job.clean = samples[row], cleans[row]
            job.place += 1
            is_last = job.place == len(job.plan.steps)
            if is_last or job.place in job.shown_after:
                yield from self._show(job, job.sample if is_last else job.clean, is_last=is_last)

    def _show(self, job: Drawing, sample: Floats, *, is_last: bool) -> Iterable[News[Drawing]]:
        if self._image_decoder is None:
            job.is_ready = not is_last
            yield News(job, _pixels(sample), is_last)
        else:
            job.is_ready = False
            decode = partial(self._decode, self._image_decoder, job, sample, is_last=is_last)
            self._aside.start([job], decode, tokens=1)

    def _decode(
        self, decoder: Graph, job: Drawing, sample: Floats, *, is_last: bool
    ) -> Sequence[_Shown | None]:
        if job.has_left:
            return [None]
        assert self._settings.decoder is not None
        scaling, shift = self._settings.decoder.scaling_factor, self._settings.decoder.shift_factor
        latents = sample[np.newaxis] / np.float32(scaling) + np.float32(shift)
        [image] = decoder.run({"latents": latents})["image"]
        if not np.isfinite(image).all():
            raise _not_finite()
        return [_Shown(_pixels(image), is_last)]


def load(config: ModelConfig, directory: Path) -> DiffusionStepper:
    """From a version directory. Raises `ModelLoadError`."""
    settings = DiffusionSettings.load(directory)
    has_text, has_decoder = settings.text is not None, settings.decoder is not None
    path = directory / UNET_FILE
    unet = open_graph(path, config)
    told = "class_labels" if settings.classes else "encoder_hidden_states" if has_text else None
    expected = {"sample", "timestep", told} - {None}
    if {spec.name for spec in unet.inputs} != expected:
        names = ", ".join(sorted(spec.name for spec in unet.inputs))
        raise ModelLoadError(
            f"{path}: expected the inputs {', '.join(sorted(map(str, expected)))}, as"
            f" {DIFFUSION_FILE} has it, got {names}"
        )
    return DiffusionStepper(
        unet,
        settings,
        text_encoder=open_graph(directory / TEXT_ENCODER_FILE, config) if has_text else None,
        tokenizer=load_tokenizer(directory) if has_text else None,
        image_decoder=open_graph(directory / IMAGE_DECODER_FILE, config) if has_decoder else None,
        slots=count(config, "slots", DEFAULT_SLOTS),
        memory_bytes=count(config, "memory_mb", DEFAULT_MEMORY_MB) << 20,
        threads=count(config, "step_threads", os.cpu_count() or 1),
    )


def _not_finite() -> InferenceFailed:
    return InferenceFailed("the model computed numbers that are not finite")


def _pixels(image: Floats) -> Array:
    """[channel, height, width] from -1 to 1, as bytes [height, width, channel]."""
    scaled = np.clip(image / 2 + 0.5, 0, 1) * 255
    return np.ascontiguousarray(scaled.round().astype(np.uint8).transpose(1, 2, 0))


def _present(arrays: Iterable[Array | None]) -> list[Array]:
    return [array for array in arrays if array is not None]
