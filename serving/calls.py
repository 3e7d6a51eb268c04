"""What a caller asks, from the first byte to the last: its identity, its front, and its trace."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from enum import StrEnum
from random import getrandbits
from typing import Any

MAX_ID = 128
"""Characters of a request's id that its caller chose."""
MOST_GROUPS = 64
"""Of steps, in the trace of one request."""
GROUP = 32
"""Steps of a group, until they are too many."""

_PROCESS = f"{getrandbits(64):016x}"
_numbers = itertools.count(1)
_NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9._:/+=@-]")


class Front(StrEnum):
    """The ways by which a request comes in."""

    V2_HTTP = "v2_http"
    V2_GRPC = "v2_grpc"
    TASK = "task"
    OPENAI = "openai"
    REALTIME = "realtime"
    INTERNAL = "internal"
    """From within, such as an ensemble's to its members."""


@dataclass(slots=True)
class Call:
    """What a caller asked of a front, for which it asks models once or several times.

    Times are seconds of the monotonic clock; 0 is "not".
    """

    front: Front
    operation: str = ""
    """The route or method, without the names that are in it."""
    id: str = ""
    """By which the caller's log and ours find each other."""
    model: str = ""
    """The latest that was found for it."""
    has_own_id: bool = False
    """The id is the caller's."""
    asks_several: bool = False
    traceparent: str = ""
    """W3C's, as they came."""
    tracestate: str = ""
    received: float = 0.0
    """When all of it was there."""
    sent: float = 0.0
    """When the whole answer was handed to the transport."""
    status: int | str = ""
    """Of the answer: HTTP's number, or gRPC's word."""
    unsent: Any = None
    """For the server: what there is to tell once the answer is sent, or never will be."""
    is_sampled: bool | None = None
    """Whether it is traced; None until its first request is there."""
    trace: Trace | None = None

    def identify(self, id: str) -> None:
        """Take the id that a caller chose, if it can be one and there is no better."""
        if not self.has_own_id and (chosen := clean_id(id)):
            self.id, self.has_own_id = chosen, True


@dataclass(slots=True, eq=False)
class Batch:
    """A run of an engine of which at least one request is traced."""

    rows: int
    requests: int
    batched: float
    answered: float
    members: tuple[Trace, ...]
    trace_id: int = field(default_factory=lambda: getrandbits(128))
    span_id: int = field(default_factory=lambda: getrandbits(64))
    is_told: bool = False


@dataclass(slots=True)
class StepGroup:
    """Iterations that follow one another, in which a request made a step."""

    began: float
    ended: float = 0.0
    steps: int = 0
    most_rows: int = 0
    """That were stepped together."""


@dataclass(slots=True, eq=False)
class Trace:
    """What is noted of a traced request, and under which ids; spans are made of it at its end.

    `span_id` is the request's own span, `parent_id` (0 is none) the one above it.
    """

    trace_id: int
    parent_id: int = 0
    state: str = ""
    span_id: int = field(default_factory=lambda: getrandbits(64))
    compute_id: int = field(default_factory=lambda: getrandbits(64))
    """The span of its run, or of its steps."""
    batch: Batch | None = None
    has_children: bool = False
    steps: list[StepGroup] = field(default_factory=list)
    group_size: int = GROUP
    events: int = 0
    first_event: float = 0.0
    last_event: float = 0.0

    @property
    def is_parent(self) -> bool:
        """Whether something was computed that has spans of its own."""
        return bool(self.steps) or self.has_children

    def below(self, span_id: int) -> Trace:
        """For a request that is made on account of one of this one's spans."""
        self.has_children = True
        return Trace(self.trace_id, span_id, self.state)

    def stepped(self, began: float, ended: float, rows: int) -> None:
        """The request made a step, beside those of so many rows in all."""
        if not self.steps or self.steps[-1].steps >= self.group_size:
            if len(self.steps) == MOST_GROUPS:
                self._merge()
            self.steps.append(StepGroup(began))
        group = self.steps[-1]
        group.ended = ended
        group.steps += 1
        group.most_rows = max(group.most_rows, rows)

    def came(self, at: float) -> None:
        """A response came."""
        self.events += 1
        self.first_event = self.first_event or at
        self.last_event = at

    def _merge(self) -> None:
        """Make groups twice as large, and half as many."""
        self.group_size *= 2
        pairs = zip(self.steps[::2], self.steps[1::2], strict=True)
        self.steps = [
            StepGroup(
                first.began,
                second.ended,
                first.steps + second.steps,
                max(first.most_rows, second.most_rows),
            )
            for first, second in pairs
        ]


def new_id() -> str:
    """One that no other call has, of this process or another."""
    return f"{_PROCESS}-{next(_numbers):x}"


def clean_id(id: str) -> str:
    """What of a caller's id may stand in a header and in a log."""
    return _NOT_IN_AN_ID.sub("", id[:MAX_ID])
