"""Generates text: one token a step, for all requests together, from a cache that they share.

Encoder-decoder and decoder-only transformers are the same here but for how they begin: the one
encodes a source that every step attends to, the other prefills its prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.config import ModelConfig
from serving.engines.base import Graph
from serving.engines.onnx_graph import open_graph
from serving.errors import InferenceFailed, InvalidRequest, ModelLoadError
from serving.scheduling.outcomes import failure
from serving.scheduling.step_policy import Capacity
from serving.scheduling.stepper import News
from serving.steppers.advance import Advance, Decoding
from serving.steppers.beginnings import Beginnings, Tokens
from serving.steppers.cache import Saved, reserved_extent
from serving.steppers.decoding import Greedy, best_tokens, decoding_for
from serving.steppers.processors import Scores
from serving.steppers.rows import RowJob, Rows, parts
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

FEWEST_ROWS = 4
"""That are worth a thread of their own."""

DEFAULT_SLOTS = 32
DEFAULT_MEMORY_MB = 512


@dataclass(slots=True, eq=False, kw_only=True)
class Generation(RowJob):
    """One row of a request."""

    decoding: Decoding
    text: TextStream
    streams: bool
    emitted: list[int] = field(default_factory=list)
    """Tokens that nobody has been told of."""
    has_stops: bool = False
    written: str = ""
    """The same as text, where every step has to look for stop strings."""


@dataclass(frozen=True, slots=True)
class _Born:
    """What a job has before its first step."""

    saved: Saved
    logits: Scores | None
    """After its prompt, [1, vocabulary], where that is prefilled."""


class GenerationStepper:
    """See `Stepper`. `encoder` is None for a decoder-only model.

    A step reads and writes keys and values in place; each row attends to as many positions as it
    has itself. `threads` threads share the work: those that are not busy with beginnings step a
    part of the rows each.
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
        self._rows = Rows[Generation](decoder.inputs, slots, memory_bytes)
        self.capacity = Capacity(slots, memory_bytes, self._rows.cache.unit_bytes)
        self.work = Work()
        self._logits = np.zeros((slots, settings.vocab_size), np.float32)
        self._runs: dict[tuple[int, int], Callable[[], None]] = {}
        self._threads = threads
        self._helpers = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="step-part")
        self._beginnings = Beginnings[Generation, _Born](
            self._prefill if encoder is None else partial(self._encode, encoder),
            pad=settings.pad_token_id,
            threads=max(1, threads - 1),
        )
        self._unborn: set[Generation] = set()
        """Begun, without rows yet."""
        self._news: list[News[Generation]] = []
        """Of what began before a step that came to nothing."""

    @property
    def memory_bytes(self) -> int:
        return self._rows.cache.bytes

    def plan(self, request: InferRequest, *, streams: bool) -> Sequence[Generation]:
        return [
            self._planned(request, _text(element, self._longest_text), streams=streams)
            for element in request.inputs[INPUT].ravel()
        ]

    def begin(self, jobs: Sequence[Generation]) -> list[News[Generation]]:
        texts = [job.prompt if self._encoder is None else job.source for job in jobs]
        self._beginnings.start(jobs, texts)
        self._unborn.update(jobs)
        return []

    def step(self, jobs: Sequence[Generation]) -> list[News[Generation]]:
        self._news += self._bear(wait_for_one=not any(job.slots for job in jobs))
        ended = {item.job for item in self._news if item.is_last}
        able = [job for job in jobs if job.slots and job not in ended]
        made = self._step(able) if able else []
        news, self._news = self._news + made, []
        return news

    def suspend(self, jobs: Sequence[Generation]) -> list[News[Generation]]:
        news: list[News[Generation]] = []
        for job in jobs:
            while job in self._unborn:
                news += self._bear(wait_for_one=True)
            if job.slots:
                self._rows.suspend(job)
        return news

    def resume(self, jobs: Sequence[Generation]) -> list[News[Generation]]:
        self._reserve(jobs)
        for job in jobs:
            self._rows.resume(job)
        return []

    def end(self, job: Generation) -> None:
        self._unborn.discard(job)
        self._rows.leave(job)
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
        self._helpers.shutdown()
        self._beginnings.close()
        self._runs.clear()
        self._rows.cache.clear()

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

    def _bear(self, *, wait_for_one: bool) -> list[News[Generation]]:
        """Give rows to those whose beginning is done, but for those who left meanwhile."""
        news: list[News[Generation]] = []
        for begun in self._beginnings.finished(wait_for_one=wait_for_one):
            if isinstance(begun.results, Exception):
                news += self._failed(begun.jobs, begun.results)
                continue
            self.work.taken_in += begun.tokens
            self.work.padding += begun.padding
            for job, born in zip(begun.jobs, begun.results, strict=True):
                if job in self._unborn:
                    self._unborn.remove(job)
                    try:
                        news += self._born(job, born)
                    except Exception as error:  # such as for want of memory; nobody asks again
                        news.append(News(job, failure(error), is_last=True))
        return news

    def _born(self, job: Generation, born: _Born) -> Iterable[News[Generation]]:
        job.saved = [born.saved] * job.rows
        job.length = 0 if born.logits is None else len(job.prompt)
        job.inputs = [job.prompt[-1]] * job.rows
        self.resume([job])
        if born.logits is None:
            return []
        # A prompt that was prefilled has its first token.
        return list(self._after(job, job.decoding.advance(born.logits)))

    def _failed(self, jobs: Sequence[Generation], error: Exception) -> list[News[Generation]]:
        """Only that one shall fail which must."""
        wanted = [job for job in jobs if job in self._unborn]
        if len(jobs) == 1:
            self._unborn.difference_update(wanted)
            return [News(job, failure(error), is_last=True) for job in wanted]
        for job in wanted:
            self.begin([job])
        return []

    def _encode(self, encoder: Graph, ids: Tokens, lengths: Sequence[int]) -> list[_Born]:
        mask = (np.arange(ids.shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
        outputs = encoder.run({"input_ids": ids, "attention_mask": mask})
        packed = self._rows.packed(outputs, [0] * len(lengths), lengths)
        return [_Born(saved, None) for saved in packed]

    def _prefill(self, ids: Tokens, lengths: Sequence[int]) -> list[_Born]:
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
        self._bind(arrays, logits, cache)()
        packed = self._rows.packed(cache, lengths, [0] * len(lengths))
        return [_Born(saved, logits[index : index + 1]) for index, saved in enumerate(packed)]

    def _step(self, jobs: Sequence[Generation]) -> list[News[Generation]]:
        rows = self._rows.bring_forward(jobs)
        lengths, lengths_after = self._rows.lengths[:rows], self._rows.lengths_after[:rows]
        np.add(lengths, 1, out=lengths_after)
        self._rows.positions[:rows, 0] = lengths
        idle = max(1, self._threads - self._beginnings.busy)
        self._together([self._bound(*span) for span in parts(rows, idle, FEWEST_ROWS)])
        lengths[:] = lengths_after
        self.work.made += rows
        return self._advance(jobs, self._logits[:rows])

    def _together(self, calls: Sequence[Callable[[], None]]) -> None:
        """Run calls at the same time, the first on this thread and the others on helpers."""
        first, *others = calls
        helpers = [self._helpers.submit(call) for call in others]
        try:
            first()
        finally:
            wait(helpers)
        for helper in helpers:
            helper.result()

    def _bound(self, start: int, stop: int) -> Callable[[], None]:
        """A step of some rows."""
        run = self._runs.get((start, stop))
        if run is None:
            rows = slice(start, stop)
            arrays: Tensors = {
                "input_ids": self._rows.tokens[rows],
                "positions": self._rows.positions[rows],
                "lengths": self._rows.lengths_after[rows],
            }
            if self._rows.has_source:
                arrays["source_lengths"] = self._rows.source_lengths[rows]
            run = self._bind(arrays, self._logits[rows], self._rows.cache.rows(start, stop))
            self._runs[start, stop] = run
        return run

    def _bind(
        self, arrays: Tensors, logits: npt.NDArray[np.float32], cache: Tensors
    ) -> Callable[[], None]:
        """A run that reads the cache and writes it in place."""
        written = {
            _present(name): array for name, array in cache.items() if not name.startswith("last_")
        }
        return self._decoder.bind(arrays | cache, {"logits": logits} | written)

    def _advance(
        self, jobs: Sequence[Generation], logits: npt.NDArray[np.float32]
    ) -> list[News[Generation]]:
        best = best_tokens(logits, self._suppressed)
        self._rows.tokens[: len(best), 0] = best
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
            self._rows.tokens[job.slots, 0] = advance.tokens
            if advance.sources is not None:
                self._rows.reorder(job, advance.sources)
        event = job.written if job.has_stops else job.emitted
        if is_last or (job.streams and event):
            job.written, job.emitted = "", []
            yield News(job, event, is_last)

    def _reserve(self, jobs: Sequence[Generation]) -> None:
        if jobs and self._rows.reserve(jobs):
            self._runs.clear()


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


def _present(name: str) -> str:
    """The output that continues an input of the cache."""
    return "present_" + name.removeprefix("past_")
