"""Which settings are measured, and which one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from serving.tuning.setting import Axes, Setting
from serving.tuning.trial import Point, Trial

FINALISTS = 3
"""The best settings of the search, which are measured again, beside two others."""

ROUNDS = 3
"""So often."""

_AXES = ("workers", "batches", "delays_us")
_SWEEPS = 3
_NOISE = (0.03, 0.20)
"""Two throughputs this close are equal, at least and at most; between, what rounds differ by."""


@dataclass(frozen=True)
class Final:
    """A setting that was measured several times: the middle of its rounds, and each of them."""

    median: Trial
    rounds: tuple[Trial, ...]


def rank(trial: Trial, bound_ms: float) -> tuple[bool, float]:
    """The higher the better: throughput within the bound, else how near it the trial comes."""
    best = trial.best_within(bound_ms)
    return (True, best.rows_per_s) if best else (False, -trial.fastest.p99_ms)


def explore(
    today: Setting,
    axes: Axes,
    bound_ms: float,
    measure: Callable[[Sequence[Setting]], Sequence[Trial]],
) -> list[Trial]:
    """Try whole axes one after the other from the best setting so far, then its neighbours.

    `measure` may leave out settings that cannot be. Returns all trials, the best first.
    """
    trials = {trial.setting: trial for trial in measure([today])}

    def best() -> Setting:
        return max(trials.values(), key=lambda trial: rank(trial, bound_ms)).setting

    refused: set[Setting] = set()
    for sweep in range(_SWEEPS):
        before = best()
        for axis in _AXES:
            candidates = axes.along(best(), axis, near=sweep > 0)
            new = [each for each in candidates if each not in trials and each not in refused]
            trials |= {trial.setting: trial for trial in measure(new)}
            refused |= set(new) - trials.keys()
        if sweep > 0 and best() == before:
            break
    return sorted(trials.values(), key=lambda trial: rank(trial, bound_ms), reverse=True)


def finalists(explored: Sequence[Trial], today: Setting) -> list[Setting]:
    """What is measured again, of trials that are the best first: the first ones, the best one
    without delay, and today's.

    Clients in a closed loop move in step, so the delay of a preferred size may look better than it
    is; where it gains nothing beyond noise, `choose` does without.
    """
    tried = [trial.setting for trial in explored]
    twin = replace(tried[0], delay_us=0)
    chosen = [*tried[:FINALISTS], *([twin] if twin in tried else []), today]
    return list(dict.fromkeys(chosen))


def summarize(rounds: Sequence[Trial]) -> Final:
    """The median of each number at each concurrency."""
    points = [
        Point(
            group[0].concurrency,
            median(point.rows_per_s for point in group),
            median(point.p50_ms for point in group),
            median(point.p99_ms for point in group),
        )
        for group in zip(*(trial.points for trial in rounds), strict=True)
    ]
    return Final(Trial(rounds[0].setting, tuple(points)), tuple(rounds))


def choose(finals: Sequence[Final], today: Setting, bound_ms: float, cores: int) -> Final | None:
    """The one with the highest throughput within the bound; of equal ones the cheapest, then
    today's, then one without preferred batches, then one with today's delay. None if none keeps
    the bound.
    """
    meeting = [final for final in finals if rank(final.median, bound_ms)[0]]
    if not meeting:
        return None
    best = max(meeting, key=lambda final: rank(final.median, bound_ms))
    most = rank(best.median, bound_ms)[1]
    point = best.median.best_within(bound_ms)
    assert point is not None
    at = best.median.points.index(point)
    lowest = min(trial.points[at].rows_per_s for trial in best.rounds)
    noise = min(max(1 - lowest / most, _NOISE[0]), _NOISE[1])
    equal = [final for final in meeting if rank(final.median, bound_ms)[1] >= most * (1 - noise)]

    def preference(final: Final) -> tuple[object, ...]:
        setting = final.median.setting
        speed = rank(final.median, bound_ms)[1]
        return (
            *setting.cost(cores),
            setting != today,
            bool(setting.batches),
            setting.delay_us != today.delay_us,
            -speed,
        )

    return min(equal, key=preference)
