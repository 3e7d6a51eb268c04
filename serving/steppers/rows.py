"""Which row of the cache belongs to whom, and how far each is filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from serving.scheduling.step_policy import Job
from serving.steppers.cache import Blocks, KeyValueCache, Saved, blocks
from serving.types import Array, Tensors, TensorSpec

Tokens = npt.NDArray[np.int64]


@dataclass(slots=True, eq=False, kw_only=True)
class RowJob(Job):
    """A job with rows of a cache: one for each of its beams."""

    prompt: Sequence[int]
    """What the decoder begins with."""
    source: Sequence[int]
    """What the encoder reads; empty for a decoder-only model."""
    slots: list[int] = field(default_factory=list)
    """Its rows; none while it begins and while it is suspended."""
    saved: list[Saved] = field(default_factory=list)
    """What is in its rows, while it has none; so are the next two."""
    length: int = 0
    """Tokens in the cache."""
    inputs: list[int] = field(default_factory=list)
    """The next step's token of each row."""


R = TypeVar("R", bound=RowJob)


class Rows(Generic[R]):
    """Who leaves makes a hole, which the next who comes fills, or else whoever is last.

    `tokens`, `positions` and `lengths_after` are what the next step reads of every row, and
    `source_lengths`. `texts` holds the token that was chosen after each position, and `look_at` the
    length at which somebody must see to the row (see `TokenStepper`). `inputs` are the decoder's;
    those of the cache are known by their names.
    """

    def __init__(self, inputs: Sequence[TensorSpec], slots: int, memory_bytes: int):
        groups = [
            [spec for spec in inputs if _prefix(spec) == prefix]
            for prefix in ("past", "cross", "last")
        ]
        self._groups = [group for group in groups if group]
        self.has_source = len(self._groups) > 1
        self.cache = KeyValueCache(self._groups)
        self._memory_bytes = memory_bytes
        self._owners: list[tuple[R, int] | None] = [None] * slots
        self._holes = list(range(slots))
        """A heap of the rows that nobody has."""
        self.tokens: Tokens = np.zeros((slots, 1), np.int64)
        self.positions: Tokens = np.zeros((slots, 1), np.int64)
        self.lengths = np.zeros(slots, np.int32)
        self.lengths_after = np.zeros(slots, np.int32)
        self.source_lengths = np.ones(slots, np.int32)
        self.look_at = np.zeros(slots, np.int32)
        self.texts: Tokens = np.zeros((slots, 0), np.int64)
        self._each = np.arange(slots)

    def reserve(self, jobs: Sequence[R]) -> bool:
        """Have room for these, too; returns whether the cache lies elsewhere now.

        The policy has seen to it that there can be room.
        """
        in_use = rows = len(self._owners) - len(self._holes)
        for job in jobs:
            rows += job.rows
        # All others fit already.
        if all(self.cache.fits(rows, job.extents) for job in jobs):
            return False
        owners = list({owner[0]: None for owner in self._owners if owner is not None})
        self.bring_forward(owners)
        lengths = [int(self.lengths[:in_use].max(initial=0))]
        if self.has_source:
            lengths += [int(self.source_lengths[:in_use].max(initial=0)), 1]
        extents = _furthest([*owners, *jobs])
        self.cache.grow(rows, extents, lengths, self._memory_bytes)
        missing = max(0, extents[0] - self.texts.shape[1])
        self.texts = np.pad(self.texts, ((0, 0), (0, missing)))
        return True

    def packed(
        self, outputs: Tensors, own: Sequence[int], sources: Sequence[int]
    ) -> Sequence[Saved]:
        """What a run of a graph has made for each text, as `resume` takes it.

        `outputs` are called as the cache's tensors are, but for the last position of the source,
        which the attention operator is given as if it were new. `own` and `sources` are how many
        positions the texts have. May be called on any thread.
        """
        saved: list[list[Blocks | None]] = [[] for _ in own]
        stacks: dict[str, Array] = {}
        for group in self._groups:
            prefix = _prefix(group[0])
            names = [spec.name.replace("last", "cross") for spec in group]
            if names[0] not in outputs:
                for row in saved:
                    row.append(None)
                continue
            if names[0] not in stacks:
                stacks[names[0]] = np.stack([outputs[name] for name in names])
            stack = stacks[names[0]]
            for index, row in enumerate(saved):
                stop = own[index] if prefix == "past" else sources[index]
                row.append(blocks(stack, stop - 1 if prefix == "last" else 0, stop)[index])
        return saved

    def leave(self, job: R) -> None:
        """Take a job's rows from it."""
        for row in job.slots:
            self._owners[row] = None
            heappush(self._holes, row)
        job.slots = []

    def suspend(self, job: R) -> None:
        """Take a job's rows from it, and keep what is in them."""
        job.saved = [self.cache.save(row, self._filled(row)) for row in job.slots]
        job.length = int(self.lengths[job.slots[0]])
        job.inputs = self.tokens[job.slots, 0].tolist()
        self.leave(job)

    def resume(self, job: R) -> None:
        """Give a job that is suspended or has begun the rows that it needs, for which there is
        room."""
        for row, saved, token in zip(
            self._take(job, job.length), job.saved, job.inputs, strict=True
        ):
            self.cache.load(row, saved)
            self.tokens[row, 0] = token
        job.saved = []

    def owner(self, row: int) -> tuple[R, int]:
        """Whose row it is, and which of its rows."""
        owner = self._owners[row]
        assert owner is not None, "only rows in use are stepped. This is a bug."
        return owner

    def choose(self, chosen: Tokens) -> None:
        """What the first rows go on with, after the position that was their last before it."""
        rows = len(chosen)
        self.tokens[:rows, 0] = chosen
        self.texts[self._each[:rows], self.positions[:rows, 0]] = chosen

    def bring_forward(self, jobs: Sequence[R]) -> int:
        """Let the rows of these jobs be the first; returns how many those are."""
        rows = sum(job.rows for job in jobs)
        in_use = len(self._owners) - len(self._holes)
        if rows == in_use and (not self._holes or self._holes[0] >= rows):
            return rows
        chosen = set(jobs)
        outside = (row for job in jobs for row in tuple(job.slots) if row >= rows)
        for row in range(rows):
            owner = self._owners[row]
            if owner is None:
                self._move(next(outside), row)
            elif owner[0] not in chosen:
                self._swap(row, next(outside))
        return rows

    def reorder(self, job: R, sources: Sequence[int]) -> None:
        """Let each of a job's rows continue from that of the beam in `sources`."""
        targets = [row for index, row in enumerate(job.slots) if sources[index] != index]
        if targets:
            origins = [job.slots[source] for index, source in enumerate(sources) if source != index]
            length = int(self.lengths[job.slots[0]])
            # Beams of one request have the same source.
            self.cache.copy(origins, targets, [length, 0, 0] if self.has_source else [length])

    def _take(self, job: R, length: int) -> Sequence[int]:
        job.slots = [heappop(self._holes) for _ in range(job.rows)]
        for index, row in enumerate(job.slots):
            self._owners[row] = (job, index)
            self.lengths[row] = length
            self.look_at[row] = 0
            self.source_lengths[row] = max(1, len(job.source))
        return job.slots

    def _move(self, row: int, hole: int) -> None:
        """To the first hole of all."""
        self.cache.move(row, hole, self._filled(row))
        for array in self._of_rows:
            array[hole] = array[row]
        self._own(hole, self._owners[row])
        self._owners[row] = None
        heapreplace(self._holes, row)

    def _swap(self, one: int, other: int) -> None:
        lengths = [max(pair) for pair in zip(self._filled(one), self._filled(other), strict=True)]
        self.cache.copy([one, other], [other, one], lengths)
        for array in self._of_rows:
            array[[one, other]] = array[[other, one]]
        owners = self._owners[one], self._owners[other]
        self._own(one, owners[1])
        self._own(other, owners[0])

    @property
    def _of_rows(self) -> Sequence[Array]:
        """What goes with a row that is moved."""
        return self.tokens, self.lengths, self.source_lengths, self.look_at, self.texts

    def _own(self, row: int, owner: tuple[R, int] | None) -> None:
        assert owner is not None, "only rows in use are moved. This is a bug."
        job, index = owner
        self._owners[row] = owner
        job.slots[index] = row

    def _filled(self, row: int) -> list[int]:
        """How far a row of the cache is filled, by group."""
        own = int(self.lengths[row])
        return [own, int(self.source_lengths[row]), 1] if self.has_source else [own]


def _prefix(spec: TensorSpec) -> str:
    return spec.name.partition("_")[0]


def _furthest(jobs: Sequence[RowJob]) -> Sequence[int]:
    return [max(each) for each in zip(*(job.extents for job in jobs), strict=True)]
