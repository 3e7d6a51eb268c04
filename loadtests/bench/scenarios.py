"""The three things that are measured, and what is kept of each."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from contenders import CONTENDERS, Materials
from load import LOST, Group, Outcome, Plan, Result
from processes import Server, free_port, run_load, run_load_on, slipway, start
from texts import Text

Count = Callable[[str], int]
"""Tokens of an answer."""


@dataclass(frozen=True)
class Settings:
    rounds: int
    seconds: float
    warmup_s: float
    clients: int
    short_clients: int
    long_clients: int
    requests: int
    bursts: int
    max_queue_size: int


@dataclass
class Throughput:
    """Of one contender: an entry for each round, and the latencies of all."""

    tokens_per_s: list[float] = field(default_factory=list)
    requests_per_s: list[float] = field(default_factory=list)
    server_cores: list[float] = field(default_factory=list)
    load_cores: list[float] = field(default_factory=list)
    cpu_s_per_1000_tokens: list[float] = field(default_factory=list)
    peak_rss_mb: float = 0.0
    failed: int = 0
    latencies_s: list[float] = field(default_factory=list)

    def add(self, result: Result, count: Count) -> None:
        answered = _answered(result.outcomes)
        tokens = sum(count(outcome.answer) for outcome in answered)
        self.tokens_per_s.append(tokens / result.seconds)
        self.requests_per_s.append(len(answered) / result.seconds)
        self.server_cores.append(result.server_cpu_s / result.seconds)
        self.load_cores.append(result.load_cpu_s / result.seconds)
        self.cpu_s_per_1000_tokens.append(1000 * result.server_cpu_s / max(1, tokens))
        self.peak_rss_mb = max(self.peak_rss_mb, max(result.rss_bytes) / 1e6)
        self.failed += len(result.outcomes) - len(answered)
        self.latencies_s += [outcome.latency_s for outcome in answered]


@dataclass
class Short:
    """Of one contender: latencies of short requests, alone and beside long ones."""

    alone_s: list[float] = field(default_factory=list)
    beside_s: list[float] = field(default_factory=list)
    long_per_s: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return percentile(self.beside_s, 99) / percentile(self.alone_s, 99)


@dataclass
class Burst:
    """All requests at the same moment, to a server that is thrown at it several times."""

    label: str
    requests: int
    seconds: list[float] = field(default_factory=list)
    statuses: list[dict[str, int]] = field(default_factory=list)
    """What clients saw: how often each status."""
    counted: list[dict[str, int]] = field(default_factory=list)
    """What the server's /metrics counted: how often each outcome."""
    rss_before_mb: list[float] = field(default_factory=list)
    rss_peak_mb: list[float] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Nothing is lost, nothing is answered that the server does not know of."""
        return all(
            sum(statuses.values()) == sum(counted.values()) == self.requests
            and str(LOST) not in statuses
            and statuses.get("200", 0) == counted.get("answered", 0)
            for statuses, counted in zip(self.statuses, self.counted, strict=True)
        )


class Bench:
    """Servers that are all started, of which only the one that is measured runs."""

    def __init__(self, materials: Materials, servers: dict[str, Server], settings: Settings):
        self._materials = materials
        self._servers = servers
        self._settings = settings

    def answers(self, name: str, texts: Sequence[str]) -> list[str]:
        """All at once, so that they are batched."""
        group = Group("sample", len(texts), list(texts))
        outcomes = self._measure(name, [group], seconds=0.0).outcomes
        found = {outcome.number: outcome for outcome in outcomes}
        wrong = [outcome for outcome in found.values() if outcome.status != 200]
        if wrong or len(found) < len(texts):
            raise SystemExit(
                f"{name} answers {wrong[0].status}: {wrong[0].answer}" if wrong else f"{name} fails"
            )
        return [found[number].answer for number in range(len(texts))]

    def throughput(self, name: str, texts: Sequence[Text], found: Throughput, count: Count) -> None:
        group = Group("mixed", self._settings.clients, [each.text for each in texts])
        found.add(self._measure(name, [group]), count)

    def short(self, name: str, short: Sequence[Text], long: Sequence[Text], found: Short) -> None:
        group = Group("short", self._settings.short_clients, [each.text for each in short])
        others = Group("long", self._settings.long_clients, [each.text for each in long])
        alone = self._measure(name, [group])
        found.alone_s += [outcome.latency_s for outcome in _answered(alone.outcomes)]
        beside = self._measure(name, [group, others])
        answered = _answered(beside.outcomes)
        found.beside_s += [each.latency_s for each in answered if each.group == "short"]
        found.long_per_s.append(sum(each.group == "long" for each in answered) / beside.seconds)

    def _measure(self, name: str, groups: Sequence[Group], seconds: float | None = None) -> Result:
        contender = CONTENDERS[name]
        server = self._servers[contender.server]
        plan = Plan(
            port=server.port,
            wire=contender.wire,
            model=self._materials.model,
            server_pid=server.pid,
            groups=list(groups),
            max_new_tokens=self._materials.max_new_tokens,
            warmup_s=self._settings.warmup_s,
            seconds=self._settings.seconds if seconds is None else seconds,
        )
        return run_load_on(server, plan)


def burst(
    materials: Materials, texts: Sequence[Text], settings: Settings, scratch: Path
) -> Iterator[Burst]:
    """Against Slipway alone: as it is, and with a queue that is too short for so many."""
    number = settings.requests
    short = scratch / "short-queue"
    limit_queue(materials.repository, materials.model, settings.max_queue_size, short)
    for label, repository in (
        ("no limit", materials.repository),
        (f"max_queue_size {settings.max_queue_size}", short),
    ):
        found = Burst(label, number)
        with _served(repository, materials.model, scratch) as server:
            before = _outcomes(server, materials.model)
            for _ in range(settings.bursts):
                result = run_load(
                    Plan(
                        port=server.port,
                        wire="task",
                        model=materials.model,
                        server_pid=server.pid,
                        groups=[Group("burst", number, [t.text for t in texts[:number]])],
                        max_new_tokens=materials.max_new_tokens,
                        seconds=0.0,
                        sample_s=0.02,
                    )
                )
                after = _outcomes(server, materials.model)
                found.seconds.append(result.seconds)
                found.statuses.append(
                    dict(Counter(str(outcome.status) for outcome in result.outcomes))
                )
                found.counted.append(dict(after - before))
                found.rss_before_mb.append(result.rss_bytes[0] / 1e6)
                found.rss_peak_mb.append(max(result.rss_bytes) / 1e6)
                before = after
        yield found


@contextmanager
def _served(repository: Path, model: str, logs: Path) -> Iterator[Server]:
    port = free_port()
    server = start("slipway-burst", slipway(repository, model, port), port, logs)
    try:
        yield server
    finally:
        server.stop()


def limit_queue(repository: Path, model: str, size: int, destination: Path) -> None:
    """The same model in a repository of its own, refusing what does not fit into its queue."""
    directory = destination / model
    shutil.rmtree(destination, ignore_errors=True)
    directory.mkdir(parents=True)
    for path in (repository / model).iterdir():
        if path.name != "config.pbtxt":
            (directory / path.name).symlink_to(path.resolve())
    config = (repository / model / "config.pbtxt").read_text()
    if "dynamic_batching" in config:
        raise SystemExit(
            f"{model}/config.pbtxt limits its queue itself: leave out --scenario burst"
        )
    limit = f"dynamic_batching {{ default_queue_policy {{ max_queue_size: {size} }} }}\n"
    (directory / "config.pbtxt").write_text(f"{config}\n{limit}")


def percentile(values: Sequence[float], q: float) -> float:
    return float(np.percentile(values, q)) if values else float("nan")


def _answered(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.status == 200]


def _outcomes(server: Server, model: str) -> Counter[str]:
    pattern = re.compile(
        rf'^slipway_requests_total\{{(?=.*model="{re.escape(model)}").*outcome="(\w+)".*\}} (\S+)$',
        re.MULTILINE,
    )
    counts: Counter[str] = Counter()
    for outcome, value in pattern.findall(server.get("/metrics")):
        counts[outcome] += int(float(value))
    return counts
