"""Whoever comes and goes, a job's rows hold what it has put there."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from serving.steppers.rows import RowJob, Rows
from serving.types import TensorSpec

SLOTS, EXTENT, HEADS, SIZE = 9, 8, 2, 3
NAMES = [f"{prefix}_{kind}_0" for prefix in ("past", "cross", "last") for kind in ("key", "value")]


@dataclass(slots=True, eq=False, kw_only=True)
class Numbered(RowJob):
    number: int
    beams: list[int] = field(default_factory=list)
    """Which beam's content each of its rows should have."""


class Coming(RuleBasedStateMachine):
    """Every position of every tensor holds a number that only one beam of one job can have."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        specs = [TensorSpec(name, "FP32", (-1, HEADS, -1, SIZE)) for name in NAMES]
        self.rows = Rows[Numbered](specs, SLOTS, 1 << 20)
        self.running: dict[Numbered, None] = {}
        self.count = 0

    @property
    def free(self) -> int:
        return SLOTS - sum(job.rows for job in self.running)

    @rule(
        target=jobs,
        beams=st.integers(1, 3),
        length=st.integers(0, EXTENT),
        source=st.integers(1, EXTENT),
    )
    def begin(self, beams: int, length: int, source: int) -> Numbered:
        self.count += 1
        job = Numbered(
            rows=beams,
            prompt=[0],
            source=[0] * source,
            number=self.count,
            extents=(max(1, length), source, 1),
            length=length,
            inputs=[10 * self.count + beam for beam in range(beams)],
            beams=[0] * beams,
        )
        outputs = {
            name: np.full((1, HEADS, EXTENT, SIZE), self.mark(job, 0, name), np.float32)
            for name in NAMES
        }
        job.saved = [self.rows.packed(outputs, [length], [source])[0]] * beams
        if beams <= self.free:
            self.rows.reserve([job])
            self.rows.resume(job)
            self.running[job] = None
            job.beams = list(range(beams))
            for beam, row in enumerate(job.slots):
                for name, array in self.rows.cache.rows(row, row + 1).items():
                    array[0, :, : self.filled(job, name)] = self.mark(job, beam, name)
        return job

    @rule(job=jobs)
    def suspend_or_resume(self, job: Numbered) -> None:
        if job in self.running:
            self.rows.suspend(job)
            del self.running[job]
        elif job.saved and job.rows <= self.free:
            self.rows.reserve([job])
            self.rows.resume(job)
            self.running[job] = None

    @rule(job=consumes(jobs))
    def leave(self, job: Numbered) -> None:
        self.rows.leave(job)
        self.running.pop(job, None)

    @rule(chosen=st.sets(st.integers(0, SLOTS)))
    def bring_forward(self, chosen: set[int]) -> None:
        jobs = [job for index, job in enumerate(self.running) if index in chosen]
        rows = self.rows.bring_forward(jobs)
        assert sorted(row for job in jobs for row in job.slots) == list(range(rows))

    @rule(job=jobs, data=st.data())
    def reorder(self, job: Numbered, data: st.DataObject) -> None:
        if job in self.running:
            one = st.integers(0, job.rows - 1)
            sources = data.draw(st.lists(one, min_size=job.rows, max_size=job.rows))
            self.rows.reorder(job, sources)
            job.beams = [job.beams[source] for source in sources]

    @invariant()
    def everybody_has_what_is_theirs(self) -> None:
        taken = [row for job in self.running for row in job.slots]
        assert len(taken) == len(set(taken)) == SLOTS - self.free
        for job in self.running:
            assert self.rows.tokens[job.slots, 0].tolist() == job.inputs
            for beam, row in zip(job.beams, job.slots, strict=True):
                for name, array in self.rows.cache.rows(row, row + 1).items():
                    content = array[0, :, : self.filled(job, name)]
                    assert set(content.ravel().tolist()) <= {self.mark(job, beam, name)}

    def filled(self, job: Numbered, name: str) -> int:
        return {"past": job.length, "cross": len(job.source), "last": 1}[name.partition("_")[0]]

    def mark(self, job: Numbered, beam: int, name: str) -> float:
        """The source's are the same for all beams, and its last position is one of its own."""
        own = beam if name.startswith("past") else 0
        return job.number * 100 + own * 10 + NAMES.index(name.replace("last", "cross"))


TestComing = Coming.TestCase
TestComing.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
