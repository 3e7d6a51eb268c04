"""The order of events: warm up, take turns in rounds, look for the knee, stay below it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil
import uvloop
from tqdm import tqdm

from loadreport.calls import Call, calls
from loadreport.expectations import Expectations, Unfit
from loadreport.floors import Floor, GraphFloor, fake_calls
from loadreport.loops import Load, alone, closed_loop, open_loop
from loadreport.models import Front, ShippedModel
from loadreport.pools import Sample
from loadreport.results import Knee, Round, Scenario, Summary, number
from loadreport.stages import Scrape
from loadreport.transports import OK, Grpc, Http, Reply, Transport

KEEPS_UP = 0.95
"""The share of the offered rate that answers must come at."""
BELOW_KNEE = 0.7
_FIRST, _FACTOR = 0.3, 1.4
"""Of the best closed loop: where the ramp begins; and by which each step is higher."""
_MOST_STEPS, _HALVINGS, _TRIES = 12, 3, 2
_FEWEST = 20
"""Requests of a step, however slow."""


@dataclass(frozen=True)
class Target:
    """A server as its clients know it."""

    url: str
    grpc: str

    def transport(self, front: Front, made: Sequence[Call]) -> Transport:
        if front == "v2_grpc":
            return Grpc(self.grpc, made)
        parts = urlsplit(self.url)
        return Http(parts.hostname or "", parts.port or 80, made)


@dataclass(frozen=True)
class Settings:
    duration_s: float
    """Of every load."""
    warmup_s: float
    rounds: int
    clients: tuple[int, ...]
    p99_bound_ms: float
    open_rate_per_s: float | None = None
    """Of an earlier run, so that its latencies and these are of the same load."""


@dataclass
class Measured:
    closed: list[Scenario]
    ramp: list[Scenario]
    knee: Knee
    open: Scenario | None
    floors: dict[str, Floor]


class _Bench:
    """Puts loads on one server, by one front."""

    def __init__(
        self,
        transport: Transport,
        number: int,
        expectations: Expectations,
        target: Target,
    ):
        self._transport = transport
        self._number = number
        self._expectations = expectations
        self._url, self._model = target.url, expectations.model.name
        self._next = 0
        self.work_per_request: float | None = None

    async def add(self, summary: Summary, seconds: float) -> Round:
        """One more round of a scenario."""
        scenario = summary.scenario
        before = Scrape(self._url, self._model)
        psutil.cpu_percent()
        if scenario.kind == "closed":
            load = await self.closed(scenario.clients, seconds)
        else:
            seconds = max(seconds, _FEWEST / scenario.rate_per_s)
            load = await open_loop(
                self._transport, self._number, scenario.rate_per_s, seconds, self._next
            )
        machine_cores = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
        self._next += len(load.made)
        served = Scrape(self._url, self._model).since(before)
        self.work_per_request = served.work_per_request
        found = summary.add(load, served, machine_cores, self._expectations)
        if not found.requests:
            raise Unfit(f"{scenario.name}: no answer in {seconds:g} s; give a longer --duration")
        if scenario.kind == "closed" and found.failed == found.requests:
            raise Unfit(f"{scenario.name}: nothing was answered rightly; {found.problems}")
        return found

    async def closed(self, clients: int, seconds: float) -> Load:
        return await closed_loop(self._transport, self._number, clients, seconds, self._next)


def measure(
    model: ShippedModel,
    front: Front,
    target: Target,
    settings: Settings,
    fake: Target | None,
    graph: GraphFloor | None,
) -> Measured:
    """All of it. `fake` is a server of the fake engine, `graph` the graph alone.

    Raises `Unfit` if the server does not answer as it should.
    """
    # uvloop has no edge in what it does itself, and the load is then not what holds it up.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(model, front, target, settings, fake, graph))


async def _measure(
    model: ShippedModel,
    front: Front,
    target: Target,
    settings: Settings,
    fake: Target | None,
    graph: GraphFloor | None,
) -> Measured:
    samples = model.samples()
    async with _ready(model, front, target, calls(model, front, samples)) as bench:
        await bench.closed(max(settings.clients), settings.warmup_s)
        closed = [
            Summary(Scenario(_closed_name(clients), "closed", clients))
            for clients in settings.clients
        ]
        floors: dict[str, Floor] = {}
        with tqdm(
            total=settings.rounds * len(closed), desc="closed loop", leave=False, disable=None
        ) as bar:
            for _ in range(settings.rounds):
                for summary in closed:
                    await bench.add(summary, settings.duration_s)
                    bar.update()
                if fake is not None:
                    await _add_fake(model, fake, samples, settings, floors)
                if graph is not None:
                    # Beside the loop, which meanwhile sees which connections the server closes.
                    await asyncio.to_thread(graph.measure, bench.work_per_request)
                    floors["graph"] = graph.floor
        peak = max(summary.scenario.median("answered_per_s") for summary in closed)
        ramp, knee = await _ramp(bench, peak, settings)
        opened = None
        rate = settings.open_rate_per_s or BELOW_KNEE * knee.rate_per_s
        if rate:
            summary = Summary(Scenario("open loop", "open", 0, rate))
            for _ in tqdm(range(settings.rounds), "open loop", leave=False, disable=None):
                await bench.add(summary, settings.duration_s)
            opened = summary.scenario
        scenarios = [summary.scenario for summary in closed]
        return Measured(scenarios, ramp, knee, opened, floors)


@asynccontextmanager
async def _ready(
    model: ShippedModel, front: Front, target: Target, made: Sequence[Call]
) -> AsyncIterator[_Bench]:
    """With every call made once, alone, so that it is known what each is answered."""
    transport = target.transport(front, made)
    try:
        replies = await alone(transport, len(made))
        _check(model, front, replies)
        answers = [reply.answer for reply in replies]
        expectations = Expectations.learn(model, front, made, answers)
        yield _Bench(transport, len(made), expectations, target)
    finally:
        await transport.close()


def _check(model: ShippedModel, front: Front, replies: Sequence[Reply]) -> None:
    for reply in replies:
        if reply.status != OK:
            text = reply.answer.body[:200].decode(errors="replace")
            raise Unfit(f"{model.name} answers through {front} with {reply.status}: {text}")


def _closed_name(clients: int) -> str:
    return f"closed, {clients} client{'s' if clients > 1 else ''}"


async def _add_fake(
    model: ShippedModel,
    fake: Target,
    samples: Sequence[Sample],
    settings: Settings,
    floors: dict[str, Floor],
) -> None:
    clients = max(settings.clients)
    made = fake_calls(model, samples)
    transport = fake.transport("v2_http", made)
    try:
        load = await closed_loop(transport, len(made), clients, settings.duration_s)
    finally:
        await transport.close()
    answered = sum(each.reply.status == OK for each in load.made)
    if answered < len(load.made):
        raise Unfit(f"the fake engine answered {answered} of {len(load.made)} requests")
    rate = answered / (load.ended - load.started)
    way = f"the gateway with an engine that computes nothing, v2 over HTTP, {_closed_name(clients)}"
    rounds = [*floors["fake"].rounds, rate] if "fake" in floors else [rate]
    floors["fake"] = Floor(way, rounds)


async def _ramp(bench: _Bench, peak: float, settings: Settings) -> tuple[list[Scenario], Knee]:
    """Offer more and more until the server does not bear it, then look closer.

    A rate counts as too much if it is so twice, for the machine may have had other work.
    """
    steps: list[Scenario] = []

    async def is_borne(rate: float) -> bool:
        summary = Summary(Scenario(f"open, {number(rate)}/s", "open", 0, rate))
        steps.append(summary.scenario)
        for _ in range(_TRIES):
            found = await bench.add(summary, settings.duration_s)
            if borne(found, rate, settings.p99_bound_ms):
                return True
        return False

    with tqdm(desc="ramp", leave=False, disable=None) as bar:
        low, high = 0.0, 0.0
        rate = _FIRST * peak
        for _ in range(_MOST_STEPS):
            bar.update()
            bar.set_postfix_str(f"{number(rate)}/s")
            if await is_borne(rate):
                low = rate
                rate *= _FACTOR
            else:
                high = rate
                rate /= 2
            if low and high:
                break
            if not low and len(steps) > _MOST_STEPS // 2:
                break
        for _ in range(_HALVINGS if low and high else 0):
            bar.update()
            rate = (low * high) ** 0.5
            if await is_borne(rate):
                low = rate
            else:
                high = rate
    steps.sort(key=lambda step: step.rate_per_s)
    best = next((step for step in steps if step.rate_per_s == low), None)
    p99 = best.rounds[-1].latency.p99 if best else 0.0
    return steps, Knee(low, high or low * _FACTOR, p99)


def borne(found: Round, rate: float, p99_bound_ms: float) -> bool:
    """Whether that is what a server that bears the rate answers."""
    return (
        not found.failed
        and found.latency.p99 <= p99_bound_ms
        and found.answered_per_s >= KEEPS_UP * rate
    )
