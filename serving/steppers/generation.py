"""Generates text: one token a step, for all requests together, from a cache that they share.

Encoder-decoder and decoder-only transformers are the same here but for how they begin: the one
encodes a source that every step attends to, the other prefills its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from serving.config import ModelConfig
from serving.engines.base import Graph
from serving.engines.onnx_graph import open_graph
from serving.errors import InferenceFailed, InvalidRequest, ModelLoadError
from serving.scheduling.step_policy import Capacity, Job
from serving.scheduling.stepper import News
from serving.steppers.advance import Advance, Decoding
from serving.steppers.cache import KeyValueCache, Saved, reserved_extent
from serving.steppers.decoding import Greedy, best_tokens, decoding_for
from serving.steppers.settings import GenerationSettings
from serving.text import Tokenizer, load_tokenizer
from serving.text.stream import TextStream
from serving.types import DYNAMIC, InferRequest, Tensors, TensorSpec, Work

INPUT = "text_input"
OUTPUT = "text_output"
ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"

MAX_BYTES_PER_TOKEN = 64
"""A text with more bytes than so many for each token that fits is refused unread."""

FINE_PADDING = 256
"""Tokens up to which texts of any lengths begin together: that takes no longer than the longest."""

WIDTHS = 8
"""Texts are padded to a multiple of this. With other widths a text's numbers would differ in their
last bits with those it begins together with, for they decide how ONNX Runtime rounds."""

DEFAULT_SLOTS = 32
DEFAULT_MEMORY_MB = 512

Tokens = npt.NDArray[np.int64]

T = TypeVar("T")


@dataclass(slots=True, eq=False, kw_only=True)
class Generation(Job):
    """One row of a request."""

    prompt: Sequence[int]
    """What the decoder begins with."""
    source: Sequence[int]
    """What the encoder reads; empty for a decoder-only model."""
    decoding: Decoding
    text: TextStream
    streams: bool
    slots: list[int] = field(default_factory=list)
    """Its rows of the cache; none before it has begun and while it is suspended."""
    saved: list[Saved] = field(default_factory=list)
    length: int = 0
    """Tokens in the cache, while it is suspended."""
    inputs: list[int] = field(default_factory=list)
    """The next step's token of each row, while it is suspended."""
    emitted: list[int] = field(default_factory=list)
    """Tokens that nobody has been told of."""
    has_stops: bool = False
    written: str = ""
    """The same as text, where every step has to look for stop strings."""


class GenerationStepper:
    """See `Stepper`. `encoder` is None for a decoder-only model.

    The cache's rows in use are always its first. A step reads and writes their keys and values in
    place; each row attends to as many positions as it has itself.
    """

    def __init__(
        self,
        decoder: Graph,
        encoder: Graph | None,
        settings: GenerationSettings,
        tokenizer: Tokenizer,
        *,
        slots: int,
        memory_bytes: int,
    ):
        self.inputs: Sequence[TensorSpec] = [TensorSpec(INPUT, "BYTES", (DYNAMIC, 1))]
        self.outputs: Sequence[TensorSpec] = [TensorSpec(OUTPUT, "BYTES", (DYNAMIC, 1))]
        self._decoder = decoder
        self._encoder = encoder
        self._settings = settings
        self._suppressed = frozenset(settings.suppressed_token_ids)
        self._tokenizer = tokenizer
        inputs = {spec.name: spec for spec in decoder.inputs}
        own = [spec for name, spec in inputs.items() if name.startswith("past_")]
        cross = [spec for name, spec in inputs.items() if name.startswith("cross_")]
        self._own_names = [spec.name for spec in own]
        self._cross_names = [spec.name for spec in cross]
        self._cache = KeyValueCache([own, cross] if cross else [own])
        self.capacity = Capacity(slots, memory_bytes, self._cache.unit_bytes)
        self.work = Work()
        self._owners: list[tuple[Generation, int]] = []
        self._tokens: Tokens = np.zeros((slots, 1), np.int64)
        self._positions: Tokens = np.zeros((slots, 1), np.int64)
        self._lengths = np.zeros(slots, np.int32)
        self._lengths_after = np.zeros(slots, np.int32)
        self._source_lengths = np.ones(slots, np.int32)
        self._logits = np.zeros((slots, settings.vocab_size), np.float32)
        self._runs: dict[int, Callable[[], None]] = {}

    @property
    def memory_bytes(self) -> int:
        return self._cache.bytes

    def plan(self, request: InferRequest, *, streams: bool) -> Sequence[Generation]:
        return [
            self._planned(request, _text(element, self._longest_text), streams=streams)
            for element in request.inputs[INPUT].ravel()
        ]

    def begin(self, jobs: Sequence[Generation]) -> list[News[Generation]]:
        self._reserve(jobs)
        if self._encoder is not None:
            self._encode(self._encoder, jobs)
            return []
        return self._prefill(jobs)

    def step(self, jobs: Sequence[Generation]) -> list[News[Generation]]:
        rows = self._bring_forward(jobs)
        np.add(self._lengths[:rows], 1, out=self._lengths_after[:rows])
        self._positions[:rows, 0] = self._lengths[:rows]
        run = self._runs.get(rows)
        if run is None:
            run = self._runs[rows] = self._bound(rows)
        run()
        self._lengths[:rows] = self._lengths_after[:rows]
        self.work.made += rows
        return self._advance(jobs, self._logits[:rows])

    def suspend(self, jobs: Sequence[Generation]) -> list[News[Generation]]:
        for job in jobs:
            job.saved = [self._cache.save(row, self._filled(row)) for row in job.slots]
            job.length = int(self._lengths[job.slots[0]])
            job.inputs = self._tokens[job.slots, 0].tolist()
            self._leave(job)
        return []

    def resume(self, jobs: Sequence[Generation]) -> list[News[Generation]]:
        self._reserve(jobs)
        for job in jobs:
            self._take_slots([job], job.length)
            for row, saved, token in zip(job.slots, job.saved, job.inputs, strict=True):
                self._cache.load(row, saved)
                self._tokens[row, 0] = token
            job.saved = []
        return []

    def end(self, job: Generation) -> None:
        self._leave(job)
        job.saved = []

    def render(self, job: Generation, event: object, *, is_last: bool) -> Tensors | None:
        if isinstance(event, str):
            text = event
        else:
            assert isinstance(event, list)
            text = job.text.push(event)
            if is_last:
                text += job.text.finish()
        if not text and not is_last:
            return None
        value = np.empty((1, 1), np.object_)
        value[0, 0] = text.encode()
        return {OUTPUT: value}

    def warm(self) -> None:
        token = self._settings.eos_token_ids[0]
        job = self._job(InferRequest("", {}), [token], streams=False)
        self.begin([job])
        self.step([job])
        self.end(job)
        self.work = Work()

    def close(self) -> None:
        self._runs.clear()
        self._cache.arrays.clear()

    def _planned(self, request: InferRequest, text: str, *, streams: bool) -> Generation:
        job = self._job(request, self._tokenizer.encode(text), streams=streams)
        if not self.capacity.admits(job):
            raise InvalidRequest(
                f"this request needs {job.rows} slots and more memory than the model has for all"
                " requests together; ask for fewer tokens or beams"
            )
        return job

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
            extents.append(reserved_extent(len(source), settings.max_source))
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
            has_stops=bool(parameters.stop),
        )

    @property
    def _longest_text(self) -> int:
        """In bytes."""
        settings = self._settings
        return MAX_BYTES_PER_TOKEN * (settings.max_source or settings.max_length)

    def _encode(self, encoder: Graph, jobs: Sequence[Generation]) -> None:
        encoded = []
        for group in alike(jobs, [len(job.source) for job in jobs]):
            ids, mask = self._padded([job.source for job in group])
            outputs = encoder.run({"input_ids": ids, "attention_mask": mask})
            encoded += [(job, index, outputs) for index, job in enumerate(group)]
        self._take_slots(jobs, 0)
        for job, index, outputs in encoded:
            for row in job.slots:
                self._tokens[row, 0] = job.prompt[0]
                for name in self._cross_names:
                    self._cache.put(name, row, outputs[name][index, :, : len(job.source)])

    def _prefill(self, jobs: Sequence[Generation]) -> list[News[Generation]]:
        """Every prompt once; the rows of its beams are copies."""
        first = len(self._owners)
        ordered: list[Generation] = []
        logits = []
        for group in alike(jobs, [len(job.prompt) for job in jobs]):
            start = first + len(ordered)
            ids, _ = self._padded([job.prompt for job in group])
            logits.append(self._run_apart(ids, [len(job.prompt) for job in group], start))
            ordered += group
        self._take_slots(ordered, 0)
        for job in ordered:
            self._lengths[job.slots] = len(job.prompt)
            if job.rows > 1:
                self._cache.copy([job.slots[0]] * (job.rows - 1), job.slots[1:], [len(job.prompt)])
        news: list[News[Generation]] = []
        for job, row in zip(ordered, np.concatenate(logits), strict=True):
            try:
                advance = job.decoding.advance(row[np.newaxis])
            except InferenceFailed as error:
                news.append(News(job, error, is_last=True))
            else:
                news += self._after(job, advance)
        return news

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[Tokens, Tokens]:
        """[sequence, token] with the padding at the end, and a mask that is 0 there."""
        width = -(-max(map(len, sequences)) // WIDTHS) * WIDTHS
        ids = np.full((len(sequences), width), self._settings.pad_token_id, np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        units = sum(map(len, sequences))
        self.work.taken_in += units
        self.work.padding += ids.size - units
        return ids, mask

    def _run_apart(
        self, ids: Tokens, lengths: Sequence[int], start: int
    ) -> npt.NDArray[np.float32]:
        """Logits of rows that nobody has yet, whose cache is filled from `start` on."""
        stop = start + len(ids)
        logits = np.empty((len(ids), self._settings.vocab_size), np.float32)
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        arrays: Tensors = {
            "input_ids": ids,
            "positions": np.ascontiguousarray(positions),
            "lengths": np.array(lengths, np.int32),
        }
        self._bind(arrays, logits, start, stop)()
        return logits

    def _bound(self, rows: int) -> Callable[[], None]:
        """A step of the first rows."""
        arrays: Tensors = {
            "input_ids": self._tokens[:rows],
            "positions": self._positions[:rows],
            "lengths": self._lengths_after[:rows],
        }
        if self._cross_names:
            arrays["source_lengths"] = self._source_lengths[:rows]
        return self._bind(arrays, self._logits[:rows], 0, rows)

    def _bind(
        self, arrays: Tensors, logits: npt.NDArray[np.float32], start: int, stop: int
    ) -> Callable[[], None]:
        cache = self._cache.rows(start, stop)
        written = {_present(name): array for name, array in cache.items()}
        return self._decoder.bind(arrays | cache, {"logits": logits} | written)

    def _advance(
        self, jobs: Sequence[Generation], logits: npt.NDArray[np.float32]
    ) -> list[News[Generation]]:
        best = best_tokens(logits, self._suppressed)
        self._tokens[: len(best), 0] = best
        news: list[News[Generation]] = []
        for job in jobs:
            decoding = job.decoding
            row = job.slots[0]
            try:
                if isinstance(decoding, Greedy) and decoding.plain:
                    advance = decoding.take(best[row])
                    if advance.finished is None and not (job.streams or job.has_stops):
                        job.emitted += advance.emitted
                        continue
                else:
                    advance = decoding.advance(logits[job.slots])
            except InferenceFailed as error:
                news.append(News(job, error, is_last=True))
                continue
            news += self._after(job, advance)
        return news

    def _after(self, job: Generation, advance: Advance) -> Iterable[News[Generation]]:
        """Prepare a job's next step; yields what is to be told of it."""
        is_last = advance.finished is not None
        if job.has_stops:
            job.written += job.text.push(advance.emitted)
            if is_last:
                job.written += job.text.finish()
            is_last = is_last or job.text.stopped
        else:
            job.emitted += advance.emitted
        if not is_last:
            self._tokens[job.slots, 0] = advance.tokens
            if advance.sources is not None:
                self._reorder(job, advance.sources)
        event = job.written if job.has_stops else job.emitted
        if is_last or (job.streams and event):
            job.written, job.emitted = "", []
            yield News(job, event, is_last)

    def _reorder(self, job: Generation, sources: Sequence[int]) -> None:
        """Let rows continue from the cache of others."""
        targets = [row for index, row in enumerate(job.slots) if sources[index] != index]
        if targets:
            origins = [job.slots[source] for index, source in enumerate(sources) if source != index]
            length = int(self._lengths[job.slots[0]])
            # Beams of one request have the same source.
            lengths = [length, 0] if self._cross_names else [length]
            self._cache.copy(origins, targets, lengths)

    def _reserve(self, jobs: Sequence[Generation]) -> None:
        """Have room for these, too; the policy has seen to it that there can be."""
        everybody = [*(job for job, _ in self._owners), *jobs]
        rows = len(self._owners) + sum(job.rows for job in jobs)
        extents = [max(each) for each in zip(*(job.extents for job in everybody), strict=True)]
        used = len(self._owners)
        lengths = [int(self._lengths[:used].max(initial=0))]
        if self._cross_names:
            lengths.append(int(self._source_lengths[:used].max(initial=0)))
        if self._cache.reserve(rows, extents, lengths, self.capacity.memory_bytes):
            self._runs.clear()

    def _take_slots(self, jobs: Sequence[Generation], length: int) -> None:
        """The rows behind those in use: the first of each job, then those of their beams."""
        for job in jobs:
            job.slots = []
        for index in range(max(job.rows for job in jobs)):
            for job in jobs:
                if index < job.rows:
                    row = len(self._owners)
                    self._owners.append((job, index))
                    job.slots.append(row)
                    self._lengths[row] = length
                    self._source_lengths[row] = max(1, len(job.source))

    def _leave(self, job: Generation) -> None:
        """Give rows back; the last ones in use fill the gaps."""
        for row in sorted(job.slots, reverse=True):
            last = len(self._owners) - 1
            if row != last:
                self._copy_row(last, row)
            self._owners.pop()
        job.slots = []

    def _copy_row(self, source: int, target: int) -> None:
        self._cache.copy([source], [target], self._filled(source))
        for array in (self._tokens, self._lengths, self._source_lengths):
            array[target] = array[source]
        self._own(target, *self._owners[source])

    def _own(self, row: int, job: Generation, index: int) -> None:
        self._owners[row] = (job, index)
        job.slots[index] = row

    def _bring_forward(self, jobs: Sequence[Generation]) -> int:
        """Let the rows of these jobs be the first; returns how many those are."""
        rows = sum(job.rows for job in jobs)
        if rows == len(self._owners):
            return rows
        moving = set(jobs)
        outside = (row for job in jobs for row in tuple(job.slots) if row >= rows)
        for row in range(rows):
            if self._owners[row][0] not in moving:
                self._swap(row, next(outside))
        return rows

    def _swap(self, one: int, other: int) -> None:
        lengths = [max(pair) for pair in zip(self._filled(one), self._filled(other), strict=True)]
        self._cache.copy([one, other], [other, one], lengths)
        for array in (self._tokens, self._lengths, self._source_lengths):
            array[[one, other]] = array[[other, one]]
        owners = self._owners[one], self._owners[other]
        self._own(one, *owners[1])
        self._own(other, *owners[0])

    def _filled(self, row: int) -> list[int]:
        """How far a row of the cache is filled, by group."""
        own = [int(self._lengths[row])]
        return [*own, int(self._source_lengths[row])] if self._cross_names else own


def load(config: ModelConfig, directory: Path) -> GenerationStepper:
    """From a version directory. Raises `ModelLoadError`."""
    settings = GenerationSettings.load(directory)
    encoder = None
    if settings.is_encoder_decoder:
        encoder = open_graph(directory / ENCODER_FILE, config)
    decoder = open_graph(directory / DECODER_FILE, config)
    return GenerationStepper(
        decoder,
        encoder,
        settings,
        load_tokenizer(directory),
        slots=_count(config, "slots", DEFAULT_SLOTS),
        memory_bytes=_count(config, "memory_mb", DEFAULT_MEMORY_MB) << 20,
    )


def _count(config: ModelConfig, key: str, default: int) -> int:
    text = config.parameters.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 1 << 20:
        raise ModelLoadError(
            f"model {config.name!r}: parameters {key} must be a whole number of 1 or more,"
            f" got {text!r}"
        )
    return int(text)


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


def alike(items: Sequence[T], lengths: Sequence[int]) -> Iterator[list[T]]:
    """Groups to begin together: of what one computes, padding is at most a quarter, or little."""
    group: list[T] = []
    longest = total = 0
    for index in sorted(range(len(items)), key=lambda index: -lengths[index]):
        padded = (len(group) + 1) * longest
        total += lengths[index]
        if group and padded > FINE_PADDING and 4 * total < 3 * padded:
            yield group
            group, total = [], lengths[index]
        if not group:
            longest = lengths[index]
        group.append(items[index])
    yield group


def _present(name: str) -> str:
    """The output that continues an input of the cache."""
    return "present_" + name.removeprefix("past_")
