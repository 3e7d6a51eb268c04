"""What the requests of one front have come to, and where the time of those answered went."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from serving.observability.spread import FINE_SECONDS, Spread
from serving.types import Stamps


class Outcome(StrEnum):
    """How a request ended. Exactly one is counted for each."""

    ANSWERED = "answered"
    INVALID = "invalid"
    REFUSED = "refused"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"


# Stage -> the stamps between which it lies.
STAGES: Mapping[str, tuple[str, str]] = {
    "parse": ("received", "queued"),
    "queue": ("queued", "batched"),
    "gather": ("batched", "started"),
    "compute": ("started", "computed"),
    "scatter": ("computed", "answered"),
    "send": ("answered", "sent"),
}


class FrontTotals:
    """Of one front and one version of a model. Stages are of answered requests that the response
    cache had no answer for; `send` is of all that were answered and whose front tells of it."""

    __slots__ = ("outcomes", "stages", *(f"_{name}" for name in STAGES))

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.stages = {name: Spread(FINE_SECONDS) for name in STAGES}
        self._parse, self._queue, self._gather, self._compute, self._scatter, self._send = (
            self.stages.values()
        )

    def computed(self, stamps: Stamps) -> None:
        """A request was answered by a run of the engine."""
        self._parse.add(stamps.queued - stamps.received)
        self._queue.add(stamps.batched - stamps.queued)
        self._gather.add(stamps.started - stamps.batched)
        self._compute.add(stamps.computed - stamps.started)
        self._scatter.add(stamps.answered - stamps.computed)

    def sent(self, stamps: Stamps) -> None:
        """Its answer was handed to the transport."""
        self._send.add(stamps.sent - stamps.answered)

    def exemplify(self, stamps: Stamps, trace_id: str) -> None:
        """Show this trace for the stages that were reached and left."""
        for name, (start, end) in STAGES.items():
            began, ended = getattr(stamps, start), getattr(stamps, end)
            if began and ended:
                self.stages[name].exemplify(ended - began, trace_id)
