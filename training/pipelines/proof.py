"""The proof that the graphs of a pipeline compute what torch does, in batches and alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import nn

from serving.diffusion.settings import (
    IMAGE_DECODER_FILE,
    TEXT_ENCODER_FILE,
    UNET_FILE,
    DiffusionSettings,
)
from serving.text import load_tokenizer
from training.graphs.reference import open_session
from training.parity import Check, ParityReport, at_most, equal, hash_files
from training.pipelines.graphs import (
    CLASS_LABELS,
    HIDDEN_STATES,
    IMAGE,
    INPUT_IDS,
    LATENTS,
    MODEL_OUTPUT,
    SAMPLE,
    TIMESTEP,
    ImageDecoder,
    TextEncoder,
    condition_of,
    module_of,
)
from training.pipelines.pipeline import Pipeline, Words
from training.runs import FLOAT32

TOLERANCE = 1e-4
"""Largest difference of a number, relative to the largest."""

BATCH_SIZES = (1, 2, 8)
_ROWS = 8
_PROMPTS = (
    "",
    "A slipway is where a ship leaves the yard for the water.",
    "three red boats, oil on canvas",
    "an Astronaut's  dog, 1969",
    "Ein Café am Fluß bei Nacht",
    "日本の港 🚢",
    "a cat (sitting) on a <chair>",
    "water " * 200,
)
"""Read as prompts; the last is cut to what the encoder reads."""

Array = npt.NDArray[Any]
Row = Mapping[str, Array]
"""Of each input, without the batch's axis."""


def prove(directory: Path, pipeline: Pipeline) -> ParityReport:
    """Compare the graphs in `directory` with the modules they were exported from."""
    chance = np.random.default_rng(0)
    sessions = {path.name: open_session(path) for path in sorted(directory.glob("*.onnx"))}
    checks = [*_interface(sessions, pipeline)]
    if all(check.passed for check in checks):
        hidden: Sequence[Array] = ()
        if pipeline.words is not None:
            tokens = [_by_transformers(pipeline.words, prompt) for prompt in _PROMPTS]
            checks.append(_tokens(directory, pipeline.settings, tokens))
            texts = [{INPUT_IDS: row} for row in tokens]
            encoder = TextEncoder(pipeline.words.encoder)
            hidden = _by_torch(encoder, texts)
            checks += _same("text encoder", sessions[TEXT_ENCODER_FILE], encoder, [texts])
        checks += _same(
            "unet",
            sessions[UNET_FILE],
            module_of(pipeline.unet),
            _samples(chance, pipeline, hidden),
        )
        if pipeline.vae is not None:
            checks += _same(
                "image decoder",
                sessions[IMAGE_DECODER_FILE],
                ImageDecoder(pipeline.vae),
                _latents(chance, pipeline.settings),
            )
    return ParityReport(
        precision=FLOAT32, checks=tuple(checks), measurements={}, files=hash_files(directory)
    )


def _interface(sessions: Mapping[str, ort.InferenceSession], pipeline: Pipeline) -> list[Check]:
    """Names, types and axes."""
    settings = pipeline.settings
    channels = settings.sample.channels
    latent, image = _axes(settings, settings.sample.multiple), _axes(settings, settings.pixels)
    decoded = _axes(settings, 1)
    sample = f"tensor(float) [batch, {channels}, {latent}]"
    width = pipeline.words.encoder.config.hidden_size if pipeline.words else 0
    tokens = settings.text.tokens if settings.text else 0
    hidden = f"{HIDDEN_STATES} tensor(float) [batch, {tokens}, {width}]"
    conditions = {None: "", CLASS_LABELS: f", {CLASS_LABELS} tensor(int64) [batch]"}
    condition = conditions.get(condition_of(pipeline.unet), f", {hidden}")
    expected = {
        UNET_FILE: (
            f"{SAMPLE} {sample}, {TIMESTEP} tensor(float) [batch]{condition}",
            f"{MODEL_OUTPUT} {sample}",
        ),
        TEXT_ENCODER_FILE: (f"{INPUT_IDS} tensor(int64) [batch, {tokens}]", hidden),
        IMAGE_DECODER_FILE: (
            f"{LATENTS} tensor(float) [batch, {channels}, {decoded}]",
            f"{IMAGE} tensor(float) [batch, {settings.image_channels}, {image}]",
        ),
    }
    checks = []
    for name, session in sessions.items():
        inputs, outputs = expected[name]
        checks += [
            equal(f"inputs of {name}", _described(session.get_inputs()), inputs),
            equal(f"outputs of {name}", _described(session.get_outputs()), outputs),
        ]
    return checks


def _axes(settings: DiffusionSettings, factor: int | None) -> str:
    """Height and width of a graph's tensor, in `factor`s of the axes that it names."""
    sample = settings.sample
    if sample.multiple is None:
        return f"{sample.height * (factor or 1)}, {sample.width * (factor or 1)}"
    return ", ".join(name if factor == 1 else f"{factor}*{name}" for name in ("height", "width"))


def _described(nodes: Sequence[ort.NodeArg]) -> str:
    return ", ".join(
        f"{node.name} {node.type} [{', '.join(map(str, node.shape))}]" for node in nodes
    )


def _by_transformers(words: Words, prompt: str) -> Array:
    # transformers does not annotate it.
    tokenizer: Any = words.tokenizer
    read = tokenizer(prompt, padding="max_length", max_length=words.tokens, truncation=True)
    return np.array(read.input_ids, np.int64)


def _tokens(directory: Path, settings: DiffusionSettings, expected: Sequence[Array]) -> Check:
    """That serving's tokenizer reads the prompts like transformers', where they are not cut."""
    text = settings.text
    assert text is not None, "whoever asks has words"
    tokenizer = load_tokenizer(directory)
    differing = 0
    for prompt, tokens in zip(_PROMPTS, expected, strict=True):
        read = tokenizer.encode(prompt)
        if len(read) <= text.tokens:
            padded = [*read, *[text.pad_token_id] * (text.tokens - len(read))]
            differing += padded != tokens.tolist()
    return at_most("prompts whose tokens are not transformers'", differing, 0)


def _samples(
    chance: np.random.Generator, pipeline: Pipeline, hidden: Sequence[Array]
) -> list[list[Row]]:
    """Noise at the first and the last timestep and between, also between two of training."""
    settings = pipeline.settings
    last = settings.noise.num_train_timesteps - 1
    timesteps = [0, last, *chance.uniform(0, last, _ROWS - 3), last // 2]
    condition = condition_of(pipeline.unet)
    labels = [0, len(settings.classes) - 1, *chance.integers(0, len(settings.classes) or 1, _ROWS)]
    groups = []
    for size in _sizes(settings):
        rows: list[Row] = []
        for number, timestep in enumerate(timesteps):
            row: dict[str, Array] = {
                SAMPLE: _noise(chance, settings, size),
                TIMESTEP: np.array(timestep, np.float32),
            }
            if condition == CLASS_LABELS:
                row[CLASS_LABELS] = np.array(labels[number], np.int64)
            elif condition == HIDDEN_STATES:
                row[HIDDEN_STATES] = hidden[number]
            rows.append(row)
        groups.append(rows)
    return groups


def _latents(chance: np.random.Generator, settings: DiffusionSettings) -> list[list[Row]]:
    assert settings.decoder is not None, "whoever asks has a decoder"
    scale = np.float32(settings.decoder.scaling_factor)
    return [
        [{LATENTS: _noise(chance, settings, size) / scale} for _ in range(_ROWS)]
        for size in _sizes(settings)
    ]


def _sizes(settings: DiffusionSettings) -> list[tuple[int, int]]:
    """Heights and widths: only the model's own, or small ones of either orientation."""
    sample = settings.sample
    if sample.multiple is None:
        return [(sample.height, sample.width)]
    return [(factor * sample.multiple, (3 - factor) * sample.multiple) for factor in (1, 2)]


def _noise(
    chance: np.random.Generator, settings: DiffusionSettings, size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    return chance.standard_normal((settings.sample.channels, *size), np.float32)


def _same(
    name: str, session: ort.InferenceSession, module: nn.Module, groups: Sequence[Sequence[Row]]
) -> list[Check]:
    """Each of `groups` has rows of one shape, which may be one batch."""
    expected = [row for rows in groups for row in _by_torch(module, rows)]
    served = {
        size: [row for rows in groups for row in _by_batches(_running(session), rows, size)]
        for size in BATCH_SIZES
    }
    scale = max(float(np.abs(row).max()) for row in expected)
    checks = [
        at_most(
            f"{name}: difference from torch, batch of {size}",
            _difference(rows, expected) / scale,
            TOLERANCE,
        )
        for size, rows in served.items()
    ]
    checks.append(
        at_most(
            f"{name}: difference between batched and alone",
            _difference(served[BATCH_SIZES[-1]], served[1]) / scale,
            TOLERANCE,
        )
    )
    return checks


def _by_torch(module: nn.Module, rows: Sequence[Row]) -> list[Array]:
    def run(batch: dict[str, Array]) -> Array:
        with torch.no_grad():
            output = module(**{name: torch.from_numpy(array) for name, array in batch.items()})
        array: Array = output.numpy()
        return array

    return _by_batches(run, rows, len(rows))


def _running(session: ort.InferenceSession) -> Callable[[dict[str, Array]], Array]:
    def run(batch: dict[str, Array]) -> Array:
        array: Array = session.run(None, batch)[0]
        return array

    return run


def _by_batches(
    run: Callable[[dict[str, Array]], Array], rows: Sequence[Row], size: int
) -> list[Array]:
    outputs: list[Array] = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        outputs += [*run({name: np.stack([row[name] for row in batch]) for name in batch[0]})]
    return outputs


def _difference(one: Sequence[Array], other: Sequence[Array]) -> float:
    return max(float(np.abs(left - right).max()) for left, right in zip(one, other, strict=True))
