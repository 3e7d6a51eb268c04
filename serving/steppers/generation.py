"""Texts from texts.

Encoder-decoder and decoder-only transformers are the same here but for how they begin: the one
encodes a source that every step attends to, the other prefills its prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from serving.config import ModelConfig
from serving.engines.base import Graph
from serving.engines.onnx_graph import open_graph
from serving.errors import InvalidRequest
from serving.scheduling.stepper import News
from serving.steppers.beginnings import Tokens, alike, padded
from serving.steppers.cache import reserved_extent
from serving.steppers.decoding import decoding_for
from serving.steppers.options import count
from serving.steppers.settings import GenerationSettings
from serving.steppers.tokens import (
    DEFAULT_MEMORY_MB,
    DEFAULT_SLOTS,
    ENCODER_FILE,
    LOGITS,
    OUTPUT,
    Born,
    Generation,
    TokenStepper,
    open_decoder,
)
from serving.text import Tokenizer, load_tokenizer
from serving.text.stream import TextStream
from serving.types import DYNAMIC, InferRequest, Tensors, TensorSpec, Work

INPUT = "text_input"

MAX_BYTES_PER_TOKEN = 64
"""A text with more bytes than so many for each token that fits is refused unread."""


class GenerationStepper(TokenStepper[Generation]):
    """See `Stepper`. `encoder` is None for a decoder-only model."""

    def __init__(
        self,
        decoder: Graph,
        encoder: Graph | None,
        settings: GenerationSettings,
        tokenizer: Tokenizer,
        *,
        slots: int,
        memory_bytes: int,
        threads: int = 1,
    ):
        super().__init__(decoder, settings, slots=slots, memory_bytes=memory_bytes, threads=threads)
        self.inputs: Sequence[TensorSpec] = [TensorSpec(INPUT, "BYTES", (DYNAMIC, 1))]
        self.outputs: Sequence[TensorSpec] = [TensorSpec(OUTPUT, "BYTES", (DYNAMIC, 1))]
        self._encoder = encoder
        self._tokenizer = tokenizer

    def plan(self, request: InferRequest, *, streams: bool) -> Sequence[Generation]:
        return [
            self._admitted(self._job(request, self._tokenizer.encode(text), streams=streams))
            for text in self._texts(request)
        ]

    def begin(self, jobs: Sequence[Generation]) -> list[News[Generation]]:
        texts = [job.prompt if self._encoder is None else job.source for job in jobs]
        pairs = list(zip(jobs, texts, strict=True))
        for group in alike(pairs, [len(text) for text in texts]):
            lengths = [len(text) for _, text in group]
            ids = padded([text for _, text in group], self._settings.pad_token_id)
            compute: Callable[[], list[Born]] = partial(self._prefill, ids, lengths)
            if self._encoder is not None:
                compute = partial(self._encode, self._encoder, ids, lengths)
            tokens = sum(lengths)
            self._beginnings.start(
                [job for job, _ in group], compute, tokens=tokens, padding=ids.size - tokens
            )
        self._unborn.update(jobs)
        return []

    def warm(self) -> None:
        token = self._settings.eos_token_ids[0]
        job = self._job(InferRequest("", {}), [token], streams=False)
        self.begin([job])
        self.step([job])
        self.end(job)
        self.work = Work()

    def _texts(self, request: InferRequest) -> Iterator[str]:
        return (_text(element, self._longest_text) for element in request.inputs[INPUT].ravel())

    def _job(self, request: InferRequest, ids: Sequence[int], *, streams: bool) -> Generation:
        settings = self._settings
        parameters = settings.parameters(request.parameters, len(ids))
        start = settings.decoder_start_token_id
        prompt, source = (ids, []) if start is None else ([start], ids)
        # What an encoder-decoder model writes stands by itself.
        text = TextStream(self._tokenizer, parameters.stop, ids if start is None else ())
        decoding = decoding_for(settings, parameters, prompt)
        extents = [reserved_extent(len(prompt) + parameters.max_new_tokens, settings.max_length)]
        if settings.max_source is not None:
            extents += [reserved_extent(len(source), settings.max_source), 1]
        return Generation(
            rows=decoding.rows,
            priority=request.priority,
            timeout_s=request.timeout_s,
            deadline=request.deadline,
            extents=tuple(extents),
            begin_cost=len(ids),
            prompt=prompt,
            source=source,
            decoding=decoding,
            text=text,
            streams=streams,
            is_written=bool(parameters.stop),
        )

    @property
    def _longest_text(self) -> int:
        """In bytes."""
        settings = self._settings
        return MAX_BYTES_PER_TOKEN * (settings.max_source or settings.max_length)

    def _encode(self, encoder: Graph, ids: Tokens, lengths: Sequence[int]) -> list[Born]:
        mask = (np.arange(ids.shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
        outputs = encoder.run({"input_ids": ids, "attention_mask": mask})
        packed = self._rows.packed(outputs, [0] * len(lengths), lengths)
        return [Born(saved, None) for saved in packed]

    def _prefill(self, ids: Tokens, lengths: Sequence[int]) -> list[Born]:
        texts, width = ids.shape
        logits = np.empty((texts, self._settings.vocab_size), np.float32)
        arrays: Tensors = {
            "input_ids": ids,
            "positions": np.tile(np.arange(width), (texts, 1)),
            "lengths": np.array(lengths, np.int32),
        }
        cache: Tensors = {
            spec.name: np.empty((texts, spec.shape[1], width, spec.shape[3]), np.float32)
            for spec in self._decoder.inputs
            if spec.name not in arrays
        }
        self._bind(arrays, {LOGITS: logits}, cache)()
        packed = self._rows.packed(cache, lengths, [0] * len(lengths))
        return [Born(saved, logits[index : index + 1]) for index, saved in enumerate(packed)]


def load(config: ModelConfig, directory: Path) -> GenerationStepper:
    """From a version directory. Raises `ModelLoadError`."""
    settings = GenerationSettings.load(directory)
    encoder = None
    if settings.is_encoder_decoder:
        encoder = open_graph(directory / ENCODER_FILE, config)
    decoder = open_decoder(config, directory)
    return GenerationStepper(
        decoder,
        encoder,
        settings,
        load_tokenizer(directory),
        slots=count(config, "slots", DEFAULT_SLOTS),
        memory_bytes=count(config, "memory_mb", DEFAULT_MEMORY_MB) << 20,
        threads=count(config, "step_threads", os.cpu_count() or 1),
    )


def _text(element: object, most_bytes: int) -> str:
    assert isinstance(element, bytes)
    if len(element) > most_bytes:
        raise InvalidRequest(
            f"input {INPUT!r} has {len(element)} bytes, and this model reads at most {most_bytes}"
        )
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input {INPUT!r} is not UTF-8 at byte {error.start}") from None
