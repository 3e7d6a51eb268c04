"""Generates text: one token a step, for all requests together, from a cache that they share.

Encoder-decoder and decoder-only transformers are the same here but for how they begin: the one
encodes a source that every step attends to, the other prefills its prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
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

FINE_PADDING = 32
"""Tokens up to which texts of any lengths begin together."""

LANES = 16
"""ONNX Runtime rounds a product with one column more than a multiple of these otherwise than wider
and narrower ones. No text is padded to such a width, so that its numbers do not depend on those
that begin together with it."""

FEWEST_ROWS = 4
"""That are worth a thread of their own."""

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


@dataclass(frozen=True, slots=True)
class _Beginning:
    """Jobs that begin in one run of a graph."""

    jobs: Sequence[Generation]
    run: Callable[[], Tensors]
    tokens: int
    padding: int


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
        threads: int = 1,
    ):
        self.inputs: Sequence[TensorSpec] = [TensorSpec(INPUT, "BYTES", (DYNAMIC, 1))]
        self.outputs: Sequence[TensorSpec] = [TensorSpec(OUTPUT, "BYTES", (DYNAMIC, 1))]
        self._decoder = decoder
        self._encoder = encoder
        self._settings = settings
        self._suppressed = frozenset(settings.suppressed_token_ids)
        self._tokenizer = tokenizer
        inputs = {spec.name: spec for spec in decoder.inputs}
        groups = [
            [spec for name, spec in inputs.items() if name.startswith(prefix)]
            for prefix in ("past_", "cross_", "last_")
        ]
        self._cross_names = [spec.name for spec in groups[1]]
        self._cache = KeyValueCache([group for group in groups if group])
        self.capacity = Capacity(slots, memory_bytes, self._cache.unit_bytes)
        self.work = Work()
        self._owners: list[tuple[Generation, int]] = []
        self._tokens: Tokens = np.zeros((slots, 1), np.int64)
        self._positions: Tokens = np.zeros((slots, 1), np.int64)
        self._lengths = np.zeros(slots, np.int32)
        self._lengths_after = np.zeros(slots, np.int32)
        self._source_lengths = np.ones(slots, np.int32)
        self._logits = np.zeros((slots, settings.vocab_size), np.float32)
        self._runs: dict[tuple[int, int], Callable[[], None]] = {}
        self._threads = threads
        self._helpers = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="step-part")

    @property
    def memory_bytes(self) -> int:
        return self._cache.bytes

    def plan(self, request: InferRequest, *, streams: bool) -> Sequence[Generation]:
        return [
            self._planned(request, _text(element, self._longest_text), streams=streams)
            for element in request.inputs[INPUT].ravel()
        ]

    def iterate(
        self, begin: Sequence[Generation], step: Sequence[Generation]
    ) -> list[News[Generation]]:
        if begin:
            self._reserve(begin)
        beginnings = list(self._beginnings(begin))
        rows = self._bring_forward(step)
        np.add(self._lengths[:rows], 1, out=self._lengths_after[:rows])
        self._positions[:rows, 0] = self._lengths[:rows]
        results = self._together(
            [
                *(beginning.run for beginning in beginnings),
                *(self._bound(start, stop) for start, stop in self._parts(rows)),
            ]
        )
        self._lengths[:rows] = self._lengths_after[:rows]
        self.work.made += rows
        news = self._advance(step, self._logits[:rows])
        self._take_slots([job for beginning in beginnings for job in beginning.jobs], 0)
        for beginning, result in zip(beginnings, results, strict=False):
            self.work.taken_in += beginning.tokens
            self.work.padding += beginning.padding
            assert result is not None, "a beginning yields something. This is a bug."
            news += self._begun(beginning.jobs, result)
        return news

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
        self.iterate([job], [])
        self.iterate([], [job])
        self.end(job)
        self.work = Work()

    def close(self) -> None:
        self._helpers.shutdown()
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
            has_stops=bool(parameters.stop),
        )

    @property
    def _longest_text(self) -> int:
        """In bytes."""
        settings = self._settings
        return MAX_BYTES_PER_TOKEN * (settings.max_source or settings.max_length)

    def _beginnings(self, jobs: Sequence[Generation]) -> Iterator[_Beginning]:
        """Runs of jobs of like length; what they yield, and what they need, is apart from steps."""
        free = len(self._owners)
        for group in alike(jobs, [job.begin_cost for job in jobs]):
            texts = [job.prompt if self._encoder is None else job.source for job in group]
            lengths = [len(text) for text in texts]
            ids, mask = self._padded(texts, lengths)
            run: Callable[[], Tensors]
            if self._encoder is None:
                run = self._prefill(ids, lengths, free)
            else:
                run = partial(self._encoder.run, {"input_ids": ids, "attention_mask": mask})
            tokens = sum(lengths)
            yield _Beginning(group, run, tokens, ids.size - tokens)
            free += len(group)

    def _begun(self, jobs: Sequence[Generation], outputs: Tensors) -> list[News[Generation]]:
        """Keep what came of a beginning. Prompts that were prefilled have their first token."""
        if self._encoder is None:
            return self._prefilled(jobs, outputs)
        for index, job in enumerate(jobs):
            for row in job.slots:
                self._tokens[row, 0] = job.prompt[0]
                for name in self._cross_names:
                    read = outputs[name][index, :, : len(job.source)]
                    self._cache.put(name, row, read)
                    # What the attention operator is given as if it were new.
                    self._cache.put(name.replace("cross", "last"), row, read[:, -1:])
        return []

    def _prefill(self, ids: Tokens, lengths: Sequence[int], start: int) -> Callable[[], Tensors]:
        """A run over whole prompts, which fills the cache of rows that nobody has yet."""
        logits = np.empty((len(ids), self._settings.vocab_size), np.float32)
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        arrays: Tensors = {
            "input_ids": ids,
            "positions": np.ascontiguousarray(positions),
            "lengths": np.array(lengths, np.int32),
        }
        run = self._bind(arrays, logits, start, start + len(ids))

        def prefill() -> Tensors:
            run()
            return {"logits": logits}

        return prefill

    def _prefilled(self, jobs: Sequence[Generation], outputs: Tensors) -> list[News[Generation]]:
        """The rows of a job's beams are copies of its first."""
        news: list[News[Generation]] = []
        for job, logits in zip(jobs, outputs["logits"], strict=True):
            self._lengths[job.slots] = len(job.prompt)
            if job.rows > 1:
                self._cache.copy([job.slots[0]] * (job.rows - 1), job.slots[1:], [len(job.prompt)])
            try:
                advance = job.decoding.advance(logits[np.newaxis])
            except InferenceFailed as error:
                news.append(News(job, error, is_last=True))
                continue
            news += self._after(job, advance)
        return news

    def _padded(
        self, texts: Sequence[Sequence[int]], lengths: Sequence[int]
    ) -> tuple[Tokens, Tokens]:
        """[text, token] with the padding at the end, and a mask that is 0 there."""
        width = max(lengths)
        width += width % LANES == 1
        ids = np.full((len(texts), width), self._settings.pad_token_id, np.int64)
        mask = np.zeros_like(ids)
        for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            ids[row, :length] = text
            mask[row, :length] = 1
        return ids, mask

    def _parts(self, rows: int) -> Iterator[tuple[int, int]]:
        """Rows that one thread steps. A row's numbers do not depend on those beside it."""
        parts = max(min(1, rows), min(self._threads, rows // FEWEST_ROWS))
        for part in range(parts):
            yield rows * part // parts, rows * (part + 1) // parts

    def _together(self, calls: Sequence[Callable[[], Tensors | None]]) -> list[Tensors | None]:
        """The results of calls that run at the same time, on this thread and on helpers."""
        results: list[Tensors | None] = [None] * len(calls)
        remaining = iter(list(enumerate(calls)))

        def work() -> None:
            for index, call in remaining:
                results[index] = call()

        helpers = [self._helpers.submit(work) for _ in range(min(self._threads, len(calls)) - 1)]
        try:
            work()
        finally:
            wait(helpers)
        for helper in helpers:
            helper.result()
        return results

    def _bound(self, start: int, stop: int) -> Callable[[], None]:
        """A step of some rows."""
        run = self._runs.get((start, stop))
        if run is None:
            rows = slice(start, stop)
            arrays: Tensors = {
                "input_ids": self._tokens[rows],
                "positions": self._positions[rows],
                "lengths": self._lengths_after[rows],
            }
            if self._cross_names:
                arrays["source_lengths"] = self._source_lengths[rows]
            run = self._bind(arrays, self._logits[rows], start, stop)
            self._runs[start, stop] = run
        return run

    def _bind(
        self, arrays: Tensors, logits: npt.NDArray[np.float32], start: int, stop: int
    ) -> Callable[[], None]:
        cache = self._cache.rows(start, stop)
        written = {
            _present(name): array for name, array in cache.items() if not name.startswith("last_")
        }
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
            lengths = [length, 0, 0] if self._cross_names else [length]
            self._cache.copy(origins, targets, lengths)

    def _reserve(self, jobs: Sequence[Generation]) -> None:
        """Have room for these, too; the policy has seen to it that there can be."""
        everybody = [*(job for job, _ in self._owners), *jobs]
        rows = len(self._owners) + sum(job.rows for job in jobs)
        extents = [max(each) for each in zip(*(job.extents for job in everybody), strict=True)]
        used = len(self._owners)
        lengths = [int(self._lengths[:used].max(initial=0))]
        if self._cross_names:
            lengths += [int(self._source_lengths[:used].max(initial=0)), 1]
        if self._cache.reserve(rows, extents, lengths, self.capacity.memory_bytes):
            self._runs.clear()

    def _take_slots(self, jobs: Sequence[Generation], length: int) -> None:
        """The rows behind those in use: the first of each job, then those of their beams."""
        for job in jobs:
            job.slots = []
        for index in range(max((job.rows for job in jobs), default=0)):
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
        own = int(self._lengths[row])
        return [own, int(self._source_lengths[row]), 1] if self._cross_names else [own]


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
        threads=_count(config, "step_threads", os.cpu_count() or 1),
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
    if group:
        yield group


def _present(name: str) -> str:
    """The output that continues an input of the cache."""
    return "present_" + name.removeprefix("past_")
