"""The sequence batching policy: pure, without a clock, a loop or a lock.

The rules are those of Triton's sequence batcher. A sequence begins with the request that has START
and is given a slot of one instance, which it keeps until its END has run, or until it has been idle
for too long. Without a free slot it waits in the backlog, first come, first served. Its requests
run in order, one at a time.

Only START and END bound a sequence. A second START begins anew, in the same slot, when what came
before it has run. What comes after END under the same id waits until END has run, so that a model
never sees two sequences with one id, and then asks for a slot of its own.

A request that leaves the queue unserved takes its START or END with it: without START the sequence
is not begun, and the requests up to the next START are `orphaned`; END ends it all the same.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serving.config import Batching, SequenceBatching, SequenceStrategy
from serving.scheduling.deadlines import Deadlines
from serving.scheduling.padding import Padding
from serving.scheduling.policy import BatchPolicy, Decision
from serving.scheduling.waiting import Ticket
from serving.types import Tensors


@dataclass(slots=True, eq=False, kw_only=True)
class Step(Ticket):
    """A request of a sequence as the policy sees it."""

    rows: int = 1
    id: int | str
    start: bool = False
    end: bool = False
    state: Tensors = field(default_factory=dict)
    """What the sequence remembers: before the run when a batch is handed out, then after it."""
    slot: int = 0
    waits: bool = False


T = TypeVar("T", bound=Step)


@dataclass(frozen=True, slots=True)
class SequenceBatch(Generic[T]):
    """Steps of different sequences, to run together on one instance."""

    instance: int
    steps: list[T]


@dataclass(frozen=True, slots=True)
class SequenceDecision(Generic[T]):
    """What to do now: answer those that will not run, run `batches`, ask again by `wake_at`."""

    expired: list[T]
    orphaned: list[T]
    batches: list[SequenceBatch[T]]
    wake_at: float


class SequencePolicy(Generic[T]):
    """Holds the live sequences and their waiting requests, and decides which requests run next.

    Times are seconds of any one clock that never goes back. `max_rows` bounds a batch, and is the
    number of slots that an instance has under DIRECT; under OLDEST it has
    `max_candidate_sequences`, or `max_rows` if that is 0. `initial_state` is what a sequence
    remembers at its START. Only steps with equal `shape_key` and equal shapes of their state share
    a batch.
    """

    def __init__(
        self, rules: SequenceBatching, *, max_rows: int, instances: int, initial_state: Tensors
    ):
        self._keeps_rows = rules.strategy is SequenceStrategy.DIRECT
        self._max_idle_s = rules.max_idle_s
        self._initial_state = initial_state
        self._instances = [_Instance[T](_line(rules, max_rows)) for _ in range(instances)]
        slots = max_rows if self._keeps_rows else rules.max_candidate_sequences or max_rows
        # A heap: the lowest slots of all instances are taken first, which keeps batches dense.
        self._free_slots = list(itertools.product(range(slots), range(instances)))
        self._sequences: dict[int | str, _Sequence[T]] = {}
        # Ordered dictionaries are queues from whose middle an entry leaves in constant time.
        self._backlog: OrderedDict[_Sequence[T], None] = OrderedDict()
        self._idle_since: OrderedDict[_Sequence[T], float] = OrderedDict()
        self._deadlines = Deadlines[T]()
        self._orphaned: list[T] = []
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def continues(self, id: int | str) -> bool:
        """Whether a request without START would belong to a sequence."""
        sequence = self._sequences.get(id)
        return sequence is not None and not sequence.closed

    @property
    def live(self) -> int:
        """Sequences that are going on, or about to."""
        return len(self._sequences)

    def add(self, step: T, now: float) -> None:
        """Let a request wait, until it `expires_at` at most.

        Without START it must belong to a sequence that `continues`.
        """
        sequence = self._sequences.get(step.id)
        if sequence is None:
            sequence = self._sequences[step.id] = _Sequence(step.id)
        sequence.steps.append(step)
        sequence.closed = step.end
        self._idle_since.pop(sequence, None)
        step.queued_at = now
        step.waits = True
        self._waiting += 1
        self._deadlines.add(step, step.expires_at)
        self._advance(sequence, now)

    def discard(self, step: T, now: float) -> None:
        """Forget a request whose caller is gone. Does nothing if it no longer waits."""
        if not step.waits:
            return
        self._stop_waiting(step)
        sequence = self._sequences[step.id]
        if sequence.current is step:
            self._withdraw(sequence)
        self._advance(sequence, now)

    def clear(self) -> list[T]:
        """Give up on all that wait, and return them. No sequence continues after this."""
        given_up = []
        for sequence in list(self._sequences.values()):
            waiting = [step for step in sequence.steps if step.waits]
            for step in waiting:
                self._stop_waiting(step)
            given_up += waiting
            if sequence.current in waiting:
                self._withdraw(sequence)
            sequence.steps.clear()
            sequence.closed = True
            if sequence.current is None:
                self._end(sequence)
                self._remove(sequence)
        return given_up

    def close(self) -> None:
        """No request will come any more: a sequence is over when its last has run."""
        self._max_idle_s = 0.0

    def decide(self, now: float) -> SequenceDecision[T]:
        expired = self._expire(now)
        self._end_idle(now)
        self._fill_slots(now)
        batches = []
        wake_at = min(self._deadlines.next(), self._next_idle())
        for index, instance in enumerate(self._instances):
            if not instance.is_free:
                continue
            decision = instance.ready.decide(now, free_instances=1)
            if not decision.batch:
                wake_at = min(wake_at, decision.wake_at)
                continue
            instance.is_free = False
            batches.append(SequenceBatch(index, decision.batch))
            for step in decision.batch:
                self._stop_waiting(step)
                self._sequences[step.id].steps.popleft()
        orphaned, self._orphaned = self._orphaned, []
        return SequenceDecision(expired, orphaned, batches, wake_at)

    def finish(self, batch: SequenceBatch[T], now: float) -> None:
        """A batch has run, for better or worse: its instance is free, its sequences go on."""
        self._instances[batch.instance].is_free = True
        for step in batch.steps:
            sequence = self._sequences[step.id]
            sequence.current = None
            sequence.state = step.state
            if step.end:
                self._end(sequence)
            self._advance(sequence, now)

    def rows(self, steps: Sequence[T]) -> list[T | None]:
        """The rows of a run of these steps; None is a row without a request.

        Under DIRECT a row is a slot, and the last row is the highest slot among these steps.
        """
        if not self._keeps_rows:
            return list(steps)
        by_slot = {step.slot: step for step in steps}
        return [by_slot.get(slot) for slot in range(max(by_slot) + 1)]

    def _advance(self, sequence: _Sequence[T], now: float) -> None:
        """Bring up the sequence's next request, if none is up yet; settle those that cannot run."""
        while sequence.steps and sequence.current is None:
            step = sequence.steps[0]
            if step.waits and (step.start or sequence.has_begun):
                if sequence.place is None:
                    self._backlog[sequence] = None
                else:
                    self._bring_up(step, sequence, sequence.place, now)
                return
            sequence.steps.popleft()
            if step.waits:
                self._stop_waiting(step)
                self._orphaned.append(step)
            elif step.start or step.end:
                self._end(sequence)
        if sequence.current is None:
            if sequence.has_begun:
                self._idle_since[sequence] = now
            else:
                self._remove(sequence)

    def _bring_up(
        self, step: T, sequence: _Sequence[T], place: tuple[int, int], now: float
    ) -> None:
        if step.start:
            sequence.has_begun = True
            sequence.state = self._initial_state
        sequence.current = step
        step.state = sequence.state
        step.shape_key = (step.shape_key, tuple(value.shape for value in step.state.values()))
        step.slot, instance = place
        self._instances[instance].ready.add(step, now)

    def _withdraw(self, sequence: _Sequence[T]) -> None:
        """Take back the request that was brought up."""
        assert sequence.place is not None
        assert sequence.current is not None
        _, instance = sequence.place
        self._instances[instance].ready.discard(sequence.current)
        sequence.current = None

    def _end(self, sequence: _Sequence[T]) -> None:
        sequence.has_begun = False
        sequence.state = {}
        if sequence.place is not None:
            heapq.heappush(self._free_slots, sequence.place)
            sequence.place = None

    def _remove(self, sequence: _Sequence[T]) -> None:
        del self._sequences[sequence.id]
        self._backlog.pop(sequence, None)
        self._idle_since.pop(sequence, None)

    def _fill_slots(self, now: float) -> None:
        while self._backlog and self._free_slots:
            sequence, _ = self._backlog.popitem(last=False)
            sequence.place = heapq.heappop(self._free_slots)
            self._advance(sequence, now)

    def _end_idle(self, now: float) -> None:
        while self._next_idle() <= now:
            sequence, _ = self._idle_since.popitem(last=False)
            self._end(sequence)
            self._remove(sequence)

    def _next_idle(self) -> float:
        since = next(iter(self._idle_since.values()), math.inf)
        return since + self._max_idle_s

    def _stop_waiting(self, step: T) -> None:
        step.waits = False
        self._deadlines.discard(step)
        self._waiting -= 1

    def _expire(self, now: float) -> list[T]:
        expired = []
        while (step := self._deadlines.pop(now)) is not None:
            self.discard(step, now)
            expired.append(step)
        return expired


@dataclass(slots=True, eq=False)
class _Sequence(Generic[T]):
    """What is sent under one correlation id: a sequence, and those that shall follow it.

    It has a `place`, (slot, instance), while `has_begun`, and when it is about to.
    """

    id: int | str
    steps: deque[T] = field(default_factory=deque)
    """In order. Those that wait no longer still say, by their START and END, what ends here."""
    current: T | None = None
    """Brought up to the instance, or running there (and then no longer among `steps`)."""
    place: tuple[int, int] | None = None
    has_begun: bool = False
    closed: bool = False
    """The last request had END: the next must have START."""
    state: Tensors = field(default_factory=dict)


class _Slots(Generic[T]):
    """DIRECT's counterpart of `BatchPolicy`: the requests that are up, one per slot."""

    def __init__(self, slots: int, rules: SequenceBatching):
        self._enough = rules.minimum_slot_utilization * slots
        self._max_queue_delay_s = rules.max_queue_delay_s
        self._ready: dict[T, None] = {}

    def add(self, step: T, now: float) -> None:
        self._ready[step] = None

    def discard(self, step: T) -> None:
        self._ready.pop(step, None)

    def decide(self, now: float, *, free_instances: int) -> Decision[T]:
        if not self._ready or not free_instances:
            return Decision([], [], math.inf)
        oldest = min(self._ready, key=lambda step: step.queued_at)
        due = oldest.queued_at + self._max_queue_delay_s
        if len(self._ready) < self._enough and now < due:
            return Decision([], [], due)
        padding = Padding()
        batch = [
            step
            for step in (oldest, *(step for step in self._ready if step is not oldest))
            if step.shape_key == oldest.shape_key
            and (not step.padded_shapes or padding.takes(1, step.padded_shapes))
        ]
        for step in batch:
            self.discard(step)
        return Decision([], batch, math.inf)


@dataclass(slots=True)
class _Instance(Generic[T]):
    ready: BatchPolicy[T] | _Slots[T]
    is_free: bool = True


def _line(rules: SequenceBatching, max_rows: int) -> BatchPolicy[T] | _Slots[T]:
    if rules.strategy is SequenceStrategy.DIRECT:
        return _Slots(max_rows, rules)
    batching = Batching(rules.preferred_batch_sizes, rules.max_queue_delay_s)
    return BatchPolicy(max_rows, batching)
