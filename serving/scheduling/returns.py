"""Whether a batch that is not full is worth waiting for: judged by who was answered lately.

Callers who ask again when they have their answer come back soon after it, all of them, and a run
that waits for them saves a run: of the time that a run takes, the part that does not depend on its
rows. Callers who come at random come no sooner after an answer than at any other time, and to wait
for them saves nothing: those who come while a batch runs make the next one.

Pure: without a clock, a loop or a lock.
"""

from __future__ import annotations

from math import inf

_WORTH = 0.5
"""Of the time that a run saves, what may be spent on waiting. Waiting in vain costs no more."""

_WEIGHT = 0.2
"""Of the latest measurement in a mean."""

_FORGOTTEN = 256
"""Runs after which it is no longer known what others of another size have taken."""


class Returns:
    """Expects that as many requests as the latest run has answered come soon after it.

    Times are seconds of any one clock that never goes back.
    """

    def __init__(self, *, instances: int):
        self._costs = _Costs()
        self._worth = _WORTH / instances
        # How soon after their answers the first of them comes back, and every other one after it.
        self._first_s = inf
        self._each_s = 0.0
        # The run after which that is measured, and how many have yet to come.
        self._timed_from = 0.0
        self._timed = 0
        self._untimed = 0
        # The latest run.
        self._ended_at = -inf
        self._missing = 0

    def came(self, now: float) -> None:
        """A request has come."""
        self._missing -= 1
        if not self._untimed:
            return
        if self._untimed == self._timed:
            first_s = now - self._timed_from
            self._first_s = _mean(self._first_s, first_s) if self._first_s < inf else first_s
            self._timed_from = now
        elif self._untimed == 1:
            self._each_s = _mean(self._each_s, (now - self._timed_from) / (self._timed - 1))
        self._untimed -= 1

    def ran(self, requests: int, rows: int, seconds: float, now: float) -> None:
        """A run has ended, which answers so many requests."""
        self._costs.ran(rows, seconds)
        self._ended_at = now
        self._missing = requests
        if not self._untimed:
            self._timed_from = now
            self._timed = self._untimed = requests

    def wait_until(self, rows: int, oldest: float, now: float, longest_s: float) -> float:
        """When a batch of so many rows is to run that could run now, and has waited since `oldest`.

        That is now, unless those who were answered last are expected back in time: then it is when
        that must have come true, no later than `longest_s` after they were answered.
        """
        if self._missing <= 0:
            return now
        worth_s = self._worth * self._costs.saved(rows)
        until = min(max(oldest, self._ended_at) + worth_s, self._ended_at + longest_s)
        back_at = max(self._ended_at + self._first_s, now) + self._each_s * self._missing
        return until if back_at <= until else now


def _mean(old: float, new: float) -> float:
    return old + _WEIGHT * (new - old)


class _Costs:
    """What runs take, by their size: a part for every run, and a part for every row."""

    def __init__(self) -> None:
        # Of sizes that are alike: the size, what it takes undisturbed, and the latest of such runs.
        self._known: dict[int, tuple[float, float, int]] = {}
        self._runs = 0

    def ran(self, rows: int, seconds: float) -> None:
        self._runs += 1
        alike = rows.bit_length()
        size, took, _ = self._known.pop(alike, (float(rows), seconds, 0))
        # What comes on top is somebody else's: the machine's, or that of a first time.
        took += (0.5 if seconds < took else 0.05) * (seconds - took)
        self._known[alike] = _mean(size, rows), took, self._runs
        # In the order of their latest runs: with every run one at most is forgotten.
        for longest_ago, (_, _, run) in self._known.items():
            if self._runs - run > _FORGOTTEN:
                del self._known[longest_ago]
            break

    def saved(self, rows: int) -> float:
        """Seconds by which a run of so many rows and others are shorter than two runs.

        As long as runs of one size only are known, what would tell more is held to be worth it:
        a smaller one at once, or a larger one later.
        """
        if not self._known:
            return 0.0
        (small, short, _), (large, long, _) = min(self._known.values()), max(self._known.values())
        if small == large:
            return short if rows >= small else 0.0
        return max(0.0, short - small * max(0.0, long - short) / (large - small))
