"""Generates tokens: one a step, for all requests together, from a cache that they share.

What is the same for whoever reads texts and whoever hears recordings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from serving.config import ModelConfig
from serving.engines.base import Graph
from serving.engines.onnx_graph import open_graph
from serving.errors import InferenceFailed, InvalidRequest, ModelLoadError
from serving.scheduling.outcomes import failure
from serving.scheduling.step_policy import Capacity
from serving.scheduling.stepper import News
from serving.steppers.advance import Advance, Decoding
from serving.steppers.beginnings import Beginnings
from serving.steppers.cache import Saved
from serving.steppers.crew import Crew, parts
from serving.steppers.decoding import NOT_FINITE, Greedy, replace_suppressed
from serving.steppers.processors import Scores
from serving.steppers.rows import RowJob, Rows, Tokens
from serving.steppers.settings import GenerationSettings
from serving.types import Tensors, Work

OUTPUT = "text_output"
ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"
LOGITS = "logits"
BEST = "best_token"
"""The decoder's output of where the largest logit is, or `NOT_FINITE`."""

FEWEST_ROWS = 4
"""That are worth a thread of their own."""

DEFAULT_SLOTS = 32
DEFAULT_MEMORY_MB = 512


class Writing(Protocol):
    """Makes text of tokens as they come."""

    stopped: bool
    """Nothing will follow."""

    def push(self, tokens: Iterable[int]) -> str:
        """What has become certain."""
        ...

    def finish(self) -> str:
        """The rest, when no token follows."""
        ...


@dataclass(slots=True, eq=False, kw_only=True)
class Generation(RowJob):
    """One row of a request."""

    decoding: Decoding
    text: Writing
    streams: bool
    emitted: list[int] = field(default_factory=list)
    """Tokens that nobody has been told of."""
    quiet_from: int | None = None
    """The length from which on nobody has looked at its row; None if somebody does at each step."""
    is_written: bool = False
    """Whether what follows may depend on the text so far, such as on a stop string in it."""
    written: str = ""
    """The same as text, if so."""


G = TypeVar("G", bound=Generation)


@dataclass(frozen=True, slots=True)
class Born:
    """What a job has before its first step."""

    saved: Saved
    logits: Scores | None
    """After its prompt, [1, vocabulary], where that is prefilled."""


class TokenStepper(ABC, Generic[G]):
    """All of `Stepper` but how jobs are planned and begun.

    A step reads and writes keys and values in place; each row attends to as many positions as it
    has itself. `threads` threads share the work: those that are not busy with beginnings step a
    part of the rows each.

    What a step has chosen is written down for all rows at once. A row whose request needs no more
    than that (see `Greedy.quiet`) is looked at only when its text ends; all others at each step.
    """

    def __init__(
        self,
        decoder: Graph,
        settings: GenerationSettings,
        *,
        slots: int,
        memory_bytes: int,
        threads: int,
    ):
        self._decoder = decoder
        self._settings = settings
        self._suppressed = frozenset(settings.suppressed_token_ids)
        # The last element is that of `NOT_FINITE`.
        self._ends = np.zeros(settings.vocab_size + 1, np.bool_)
        self._ends[[*settings.eos_token_ids, NOT_FINITE]] = True
        self._rows = Rows[G](decoder.inputs, slots, memory_bytes)
        self.capacity = Capacity(slots, memory_bytes, self._rows.cache.unit_bytes)
        self.work = Work()
        self._logits = np.zeros((slots, settings.vocab_size), np.float32)
        self._best = np.zeros(slots, np.int64)
        self._runs: dict[tuple[int, int], Callable[[], None]] = {}
        self._threads = threads
        self._crew = Crew(threads)
        self._beginnings = Beginnings[G, Born](max(1, threads - 1))
        self._unborn: set[G] = set()
        """Begun, without rows yet."""
        self._parked: dict[G, Born | None] = {}
        """Those that were suspended meanwhile, and what they have once their beginning is done."""
        self._news: list[News[G]] = []
        """Of what began before a step that came to nothing."""

    @property
    def memory_bytes(self) -> int:
        return self._rows.cache.bytes

    @abstractmethod
    def begin(self, jobs: Sequence[G]) -> list[News[G]]: ...

    def step(self, jobs: Sequence[G]) -> list[News[G]]:
        self._news += self._bear(wait_for_one=not any(job.slots for job in jobs))
        ended = {item.job for item in self._news if item.is_last}
        able = [job for job in jobs if job.slots and job not in ended]
        made = self._step(able) if able else []
        news, self._news = self._news + made, []
        return news

    def suspend(self, jobs: Sequence[G]) -> list[News[G]]:
        for job in jobs:
            if job in self._unborn:
                # A beginning takes far longer than a step, and nobody shall wait for it.
                self._parked[job] = None
            elif job.slots:
                self._catch_up(job, int(self._rows.lengths[job.slots[0]]))
                self._rows.suspend(job)
        return []

    def resume(self, jobs: Sequence[G]) -> list[News[G]]:
        ready = [job for job in jobs if job not in self._unborn]
        self._reserve(ready)
        news: list[News[G]] = []
        for job in jobs:
            born = self._parked.pop(job, None)
            if born is not None:
                news += self._welcomed(job, born)
            elif job in ready:
                self._rows.resume(job)
        return news

    def end(self, job: G) -> None:
        self._unborn.discard(job)
        self._parked.pop(job, None)
        self._rows.leave(job)
        job.saved = []

    def render(self, job: G, event: object, *, is_last: bool) -> Tensors | None:
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

    def close(self) -> None:
        self._crew.close()
        self._beginnings.close()
        self._runs.clear()
        self._rows.cache.clear()

    def _admitted(self, job: G) -> G:
        """Raises `InvalidRequest` for a job that there could never be room for."""
        if not self.capacity.admits(job):
            raise InvalidRequest(
                f"this request needs {job.rows} slots and more memory than the model has for all"
                " requests together; ask for fewer tokens or beams"
            )
        return job

    def _bear(self, *, wait_for_one: bool) -> list[News[G]]:
        """Give rows to those whose beginning is done, but for those who left meanwhile."""
        news: list[News[G]] = []
        for begun in self._beginnings.finished(wait_for_one=wait_for_one):
            if isinstance(begun.results, Exception):
                news += self._failed(begun.jobs, begun.results)
                continue
            self.work.taken_in += begun.tokens
            self.work.padding += begun.padding
            for job, born in zip(begun.jobs, begun.results, strict=True):
                if job in self._unborn:
                    self._unborn.remove(job)
                    if job in self._parked:
                        self._parked[job] = born
                    else:
                        news += self._welcomed(job, born)
        return news

    def _welcomed(self, job: G, born: Born) -> Iterable[News[G]]:
        try:
            return self._born(job, born)
        except Exception as error:  # such as for want of memory; nobody asks again
            return [News(job, failure(error), is_last=True)]

    def _born(self, job: G, born: Born) -> Iterable[News[G]]:
        job.saved = [born.saved] * job.rows
        job.length = 0 if born.logits is None else len(job.prompt)
        job.inputs = [job.prompt[-1]] * job.rows
        self._reserve([job])
        self._rows.resume(job)
        news: list[News[G]] = []
        if born.logits is not None:
            # A prompt that was prefilled has its first token.
            news += self._after(job, job.decoding.advance(born.logits))
        self._let_be(job)
        return news

    def _failed(self, jobs: Sequence[G], error: Exception) -> list[News[G]]:
        """Only that one shall fail which must."""
        wanted = [job for job in jobs if job in self._unborn]
        if len(jobs) == 1:
            self._unborn.difference_update(wanted)
            return [News(job, failure(error), is_last=True) for job in wanted]
        for job in wanted:
            self.begin([job])
        return []

    def _step(self, jobs: Sequence[G]) -> list[News[G]]:
        rows = self._rows.bring_forward(jobs)
        lengths, lengths_after = self._rows.lengths[:rows], self._rows.lengths_after[:rows]
        np.add(lengths, 1, out=lengths_after)
        self._rows.positions[:rows, 0] = lengths
        idle = max(1, self._threads - self._beginnings.busy)
        self._crew.run([self._bound(*span) for span in parts(rows, idle, FEWEST_ROWS)])
        lengths[:] = lengths_after
        self.work.made += rows
        return self._advance(self._best[:rows], self._logits[:rows])

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
            outputs: Tensors = {LOGITS: self._logits[rows], BEST: self._best[rows]}
            run = self._bind(arrays, outputs, self._rows.cache.rows(start, stop))
            self._runs[start, stop] = run
        return run

    def _bind(self, arrays: Tensors, outputs: Tensors, cache: Tensors) -> Callable[[], None]:
        """A run that reads the cache and writes it in place."""
        written = {
            _present(name): array for name, array in cache.items() if not name.startswith("last_")
        }
        return self._decoder.bind(arrays | cache, outputs | written)

    def _advance(self, best: Tokens, logits: Scores) -> list[News[G]]:
        rows = self._rows
        replace_suppressed(best, logits, self._suppressed)
        rows.choose(best)
        wanted = self._ends[best]
        wanted |= rows.lengths[: len(best)] >= rows.look_at[: len(best)]
        # Known before any of them is looked at, for whoever begins anew gives its rows back.
        owners = [(row, *rows.owner(row)) for row in wanted.nonzero()[0].tolist()]
        news: list[News[G]] = []
        for row, job, beam in owners:
            if beam == 0:
                try:
                    advance = self._look(job, row, int(best[row]), logits)
                except InferenceFailed as error:
                    news.append(News(job, error, is_last=True))
                    continue
                news += self._after(job, advance)
                self._let_be(job)
        return news

    def _look(self, job: G, row: int, best: int, logits: Scores) -> Advance:
        decoding = job.decoding
        if isinstance(decoding, Greedy) and decoding.plain:
            self._catch_up(job, int(self._rows.positions[row, 0]))
            return decoding.take(best)
        return decoding.advance(logits[job.slots])

    def _catch_up(self, job: G, length: int) -> None:
        """Give a job the tokens of its quiet steps, up to a length."""
        if job.quiet_from is not None:
            assert isinstance(job.decoding, Greedy)
            job.decoding.skip(length - job.quiet_from)
            job.emitted += self._rows.texts[job.slots[0], job.quiet_from : length].tolist()
            job.quiet_from = None

    def _let_be(self, job: G) -> None:
        """Look no more at a job's row for as long as nothing can come of it."""
        if not (job.streams or job.is_written) and isinstance(job.decoding, Greedy):
            [row] = job.slots
            job.quiet_from = length = int(self._rows.lengths[row])
            self._rows.look_at[row] = length + job.decoding.quiet + 1

    def _after(self, job: G, advance: Advance) -> Iterable[News[G]]:
        """Prepare a job's next step; yields what is to be told of it."""
        has_ended = advance.finished is not None
        if job.is_written:
            job.written += job.text.push(advance.emitted)
            if has_ended:
                job.written += job.text.finish()
            has_ended = has_ended or job.text.stopped
        else:
            job.emitted += advance.emitted
        is_last = has_ended and not self._goes_on(job)
        if not has_ended:
            self._rows.tokens[job.slots, 0] = advance.tokens
            if advance.sources is not None:
                self._rows.reorder(job, advance.sources)
        event = job.written if job.is_written else job.emitted
        if is_last or (job.streams and event):
            job.written, job.emitted = "", []
            yield News(job, event, is_last)

    def _goes_on(self, job: G) -> bool:
        """Whether a job whose text has ended begins another."""
        return False

    def _reserve(self, jobs: Sequence[G]) -> None:
        if jobs and self._rows.reserve(jobs):
            self._runs.clear()


def open_decoder(config: ModelConfig, directory: Path) -> Graph:
    """Of a version directory. Raises `ModelLoadError`."""
    path = directory / DECODER_FILE
    decoder = open_graph(path, config)
    missing = {LOGITS, BEST} - {spec.name for spec in decoder.outputs}
    if missing:
        raise ModelLoadError(
            f"{path}: a decoder has the outputs {LOGITS!r} and {BEST!r}, and this one lacks"
            f" {', '.join(map(repr, sorted(missing)))}; export the model again"
        )
    return decoder


def _present(name: str) -> str:
    """The output that continues an input of the cache."""
    return "present_" + name.removeprefix("past_")
