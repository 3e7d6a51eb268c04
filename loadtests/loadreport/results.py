"""What was measured, as it is kept in report.json."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadreport.expectations import Expectations
from loadreport.floors import Floor
from loadreport.loops import Load, Made
from loadreport.stages import Served
from loadreport.transports import LOST, OK

FORMAT = 1
QUANTILES = tuple(
    round(float(q), 6)
    for q in sorted({*np.linspace(0, 0.99, 100), *(1 - 10 ** -np.linspace(2, 4, 21))})
)
"""At which a distribution is kept: each hundredth, and finer towards 1."""
_BINS = 60


def number(value: float | None) -> str:
    """Three digits or, of a thousand and more, all before the point."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass
class Spread:
    """Of many durations."""

    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not len(values):
            return cls(*[math.nan] * 6)
        quantiles = np.quantile(values, [0.5, 0.9, 0.99, 0.999, 1.0])
        return cls(float(np.mean(values)), *map(float, quantiles))


@dataclass
class Round:
    """One load, once. All durations are in milliseconds."""

    seconds: float
    requests: int
    unfinished: int
    """More requests, which were answered after the clock had stopped."""
    failed: int
    """Refused, lost, or answered wrongly."""
    answered_per_s: float
    latency: Spread
    """Of right answers, from when a call was due."""
    latency_from_sent: Spread
    late: Spread
    """By how much calls were sent after they were due."""
    first_event: Spread | None
    between_events: Spread | None
    """Of streamed answers: from when a call was sent to its first event; and the mean pause
    between the events of each."""
    client_cores: float
    server_cores: float
    machine_cores: float
    """Of the client's machine, busy with anything at all."""
    served: Served
    problems: dict[str, int]
    """How often what went wrong; the most frequent ones."""


@dataclass
class Timeline:
    """Of one open load, in bins of equal length."""

    bin_s: float
    answered_per_s: list[float]
    p50: list[float | None]
    max: list[float | None]
    """Latency of the calls that were due in the bin."""


@dataclass
class Scenario:
    """A load with its rounds."""

    name: str
    kind: str
    """closed or open"""
    clients: int = 0
    rate_per_s: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    distribution: list[float] = field(default_factory=list)
    """Latency at `QUANTILES`, of all rounds together; from when calls were due."""
    distribution_from_sent: list[float] = field(default_factory=list)
    timeline: Timeline | None = None
    """Of the last round."""

    def median(self, name: str) -> float:
        """Of the rounds: of a field, or of a field's field, such as latency.p99."""
        return statistics.median(self.values(name))

    def values(self, name: str) -> list[float]:
        found = []
        for each in self.rounds:
            value: Any = each
            for part in name.split("."):
                value = getattr(value, part)
            found.append(float(value))
        return found


@dataclass
class Knee:
    """The highest rate that the server bears: p99 within the bound, and it keeps up."""

    rate_per_s: float
    """0 if it bears none of those that were tried."""
    next_per_s: float
    """The lowest rate that it does not bear."""
    p99: float


@dataclass
class Results:
    format: int
    model: str
    front: str
    command: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    floors: dict[str, Floor]
    """graph and fake; empty for a server that is not ours."""
    closed: list[Scenario]
    ramp: list[Scenario]
    knee: Knee
    open: Scenario | None
    """None if there is no knee."""


class Summary:
    """Gathers the rounds of one scenario."""

    def __init__(self, scenario: Scenario):
        self.scenario = scenario
        self._latencies: list[float] = []
        self._from_sent: list[float] = []

    def add(
        self, load: Load, served: Served, machine_cores: float, expectations: Expectations
    ) -> Round:
        right, problems = _judge(load.made, expectations)
        due = [1000 * (each.reply.ended - each.intended) for each in right]
        sent = [1000 * (each.reply.ended - each.reply.sent) for each in right]
        seconds = load.ended - load.started
        found = Round(
            seconds=seconds,
            requests=len(load.made),
            unfinished=load.unfinished,
            failed=len(load.made) - len(right),
            answered_per_s=self._rate(right, seconds),
            latency=Spread.of(due),
            latency_from_sent=Spread.of(sent),
            late=Spread.of([1000 * (each.reply.sent - each.intended) for each in load.made]),
            first_event=_first_event(right),
            between_events=_between_events(right),
            client_cores=load.client_cpu_s / seconds,
            server_cores=served.cpu_s / seconds,
            machine_cores=machine_cores,
            served=served,
            problems=dict(problems.most_common(5)),
        )
        self._latencies += due
        self._from_sent += sent
        scenario = self.scenario
        scenario.rounds.append(found)
        if self._latencies:
            scenario.distribution = np.quantile(self._latencies, QUANTILES).tolist()
            scenario.distribution_from_sent = np.quantile(self._from_sent, QUANTILES).tolist()
        if scenario.kind == "open":
            scenario.timeline = _timeline(right, load)
        return found

    def _rate(self, right: Sequence[Made], seconds: float) -> float:
        """Between the first answer and the last; so what is still to come after a short load, or
        is there only after a while, does not make it look slower."""
        if self.scenario.kind == "closed" or len(right) < 2:
            return len(right) / seconds
        ends = [each.reply.ended for each in right]
        return (len(ends) - 1) / max(max(ends) - min(ends), 1e-9)


def _judge(made: Sequence[Made], expectations: Expectations) -> tuple[list[Made], Counter[str]]:
    """Those that were answered rightly, and what is wrong with the others."""
    right: list[Made] = []
    problems: Counter[str] = Counter()
    for each in made:
        reply = each.reply
        if reply.status == LOST:
            problem: str | None = "no answer: the connection ended, or time was up"
        elif reply.status != OK:
            text = reply.answer.body[:100].decode(errors="replace")
            problem = f"status {reply.status}: {text}"
        else:
            problem = expectations.problem(each.call, reply.answer)
        if problem is None:
            right.append(each)
        else:
            problems[problem] += 1
    return right, problems


def _first_event(made: Sequence[Made]) -> Spread | None:
    waits = [1000 * (each.reply.events[0] - each.reply.sent) for each in made if each.reply.events]
    return Spread.of(waits) if waits else None


def _between_events(made: Sequence[Made]) -> Spread | None:
    pauses = [
        1000 * (each.reply.events[-1] - each.reply.events[0]) / (len(each.reply.events) - 1)
        for each in made
        if len(each.reply.events) > 1
    ]
    return Spread.of(pauses) if pauses else None


def _timeline(right: Sequence[Made], load: Load) -> Timeline:
    bin_s = max((load.ended - load.started) / _BINS, 1e-3)
    answered = [0] * _BINS
    latencies: list[list[float]] = [[] for _ in range(_BINS)]
    for each in right:
        ended = int((each.reply.ended - load.started) / bin_s)
        answered[min(ended, _BINS - 1)] += 1
        due = int((each.intended - load.started) / bin_s)
        latencies[min(due, _BINS - 1)].append(1000 * (each.reply.ended - each.intended))
    return Timeline(
        bin_s,
        [count / bin_s for count in answered],
        [statistics.median(each) if each else None for each in latencies],
        [max(each) if each else None for each in latencies],
    )


def comparable(results: Results) -> Mapping[str, dict[str, Any]]:
    """What is compared with an earlier run: the median of the rounds and their range, by name."""
    found: dict[str, dict[str, Any]] = {}

    def put(name: str, unit: str, values: Sequence[float], *, more_is_better: bool) -> None:
        found[name] = {
            "unit": unit,
            "more_is_better": more_is_better,
            "value": statistics.median(values),
            "least": min(values),
            "most": max(values),
        }

    for scenario in [*results.closed, *([results.open] if results.open else [])]:
        if scenario.kind == "closed":
            rates = scenario.values("answered_per_s")
            put(f"{scenario.name}: throughput", "requests/s", rates, more_is_better=True)
        for q in ("p50", "p99"):
            latencies = scenario.values(f"latency.{q}")
            put(f"{scenario.name}: {q}", "ms", latencies, more_is_better=False)
        failures = [each.failed / max(1, each.requests) for each in scenario.rounds]
        put(f"{scenario.name}: failures", "share", failures, more_is_better=False)
    knee = results.knee
    # It was looked for between two rates, and is known no better than that.
    if knee.rate_per_s:
        put("knee", "requests/s", [knee.rate_per_s], more_is_better=True)
        found["knee"]["most"] = knee.next_per_s
    if "fake" in results.floors:
        rounds = results.floors["fake"].rounds
        put("fake engine: throughput", "requests/s", rounds, more_is_better=True)
    return found
