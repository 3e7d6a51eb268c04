"""What the requests of one front have come to, and where the time of those answered went."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from serving.observability.spread import FINE_SECONDS, Spread
from serving.types import Stamps

MOST_UNSETTLED = 256
"""Requests that are not counted yet."""

Times = npt.NDArray[np.float64]
"""Seconds of the monotonic clock."""


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


_COMPUTED = attrgetter(*(start for start, _ in STAGES.values()))
"""The ends of all stages but the last, and the beginning of the first."""


class FrontTotals:
    """Of one front and one version of a model. Stages are of answered requests that the response
    cache had no answer for; `send` is of all that were answered and whose front tells of it.

    To count one request after the other takes longer than all of them together, so the latest are
    only kept, until `settle`.
    """

    __slots__ = ("_answered", "_sent", "outcomes", "stages")

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.stages = {name: Spread(FINE_SECONDS) for name in STAGES}
        self._answered: list[Stamps] = []
        self._sent: list[Stamps] = []

    def computed(self, stamps: Stamps) -> bool:
        """A request was answered by a run of the engine. Whether it is time to settle."""
        self._answered.append(stamps)
        return len(self._answered) >= MOST_UNSETTLED

    def sent(self, stamps: Stamps) -> None:
        """Its answer was handed to the transport."""
        self._sent.append(stamps)
        if len(self._sent) >= MOST_UNSETTLED:
            self._settle_sent()

    def settle(self) -> Times | None:
        """Count what is not counted. Returns the times of the answered among that, a row each,
        from `received` to `answered`."""
        self._settle_sent()
        if not self._answered:
            return None
        stamps, self._answered = self._answered, []
        self.outcomes[Outcome.ANSWERED] += len(stamps)
        times = np.array([*map(_COMPUTED, stamps)])
        for spread, stage in zip(self.stages.values(), np.diff(times).T, strict=False):
            spread.add_all(stage)
        return times

    def _settle_sent(self) -> None:
        if self._sent:
            stamps, self._sent = self._sent, []
            self.stages["send"].add_all(np.array([each.sent - each.answered for each in stamps]))

    def exemplify(self, stamps: Stamps, trace_id: str) -> None:
        """Show this trace for the stages that were reached and left."""
        for name, (start, end) in STAGES.items():
            began, ended = getattr(stamps, start), getattr(stamps, end)
            if began and ended:
                self.stages[name].exemplify(ended - began, trace_id)
