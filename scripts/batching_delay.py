"""What the queue delay does to throughput and latency, by a simulation of the server around the
real batching policy: no delay, the whole delay as in Triton, and what Slipway does.

  python scripts/batching_delay.py
  python scripts/batching_delay.py --instances 2 --away-us 500 --slower 3

Networks: `tiny` (20 µs a run and 0.5 a row), `mid` (1 ms and 0.2) and `flat` (2 ms and 0.02). An
event loop takes 30 µs for each request and for each answer, and tells a thread to run a batch, or
runs it itself if that takes less than 200 µs. Loads: callers who ask again when they have their
answer and are away for `--away-us` in between; arrivals at random, at a share of what the server
could do; and bursts every 20 ms. With `--slower` every second thousand of requests meets a machine
on which the network takes so many times as long.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from serving.config import Batching
from serving.scheduling.policy import BatchPolicy
from serving.scheduling.returns import Returns
from serving.scheduling.waiting import Ticket

MAX_ROWS = 32
REQUEST_S = ANSWER_S = 30e-6
HAND_OVER_S = 60e-6
ON_THE_LOOP_S = 200e-6
BURST_EVERY_S = 0.02


@dataclass(slots=True, eq=False, kw_only=True)
class Request(Ticket):
    asked_at: float


@dataclass(frozen=True)
class Network:
    run_s: float
    row_s: float

    def __call__(self, rows: int) -> float:
        return self.run_s + self.row_s * rows

    @property
    def capacity(self) -> float:
        """Requests in a second, of one instance behind one event loop."""
        return min(1 / (REQUEST_S + ANSWER_S), MAX_ROWS / (HAND_OVER_S + self(MAX_ROWS)))


NETWORKS = {
    "tiny": Network(20e-6, 0.5e-6),
    "mid": Network(1e-3, 0.2e-3),
    "flat": Network(2e-3, 0.02e-3),
}


class Simulation:
    """Time is in seconds, and passes on the event loop only."""

    def __init__(
        self, network: Network, options: argparse.Namespace, *, delay_s: float, returns: bool
    ):
        self._network = network
        self._options = options
        batching = Batching(max_queue_delay_s=delay_s)
        expected = Returns(instances=options.instances) if returns else None
        self._policy: BatchPolicy[Request] = BatchPolicy(MAX_ROWS, batching, returns=expected)
        self._random = random.Random(0)
        self._free: int = options.instances
        self._now = 0.0
        self._wake_at = math.inf
        self._is_closed = False
        self._order = itertools.count()
        self._events: list[tuple[float, int, Sequence[Request], float]] = []
        self.batches: list[int] = []
        self.latencies: list[float] = []
        self.answered_at: list[float] = []

    def run(self, arrivals: Iterator[float], *, closed: bool) -> None:
        """Until --requests have their answers. Of a `closed` loop `arrivals` are the first."""
        self._is_closed = closed
        for at in arrivals:
            self._push(at)
        while len(self.latencies) < self._options.requests:
            next_at = self._events[0][0] if self._events else math.inf
            self._now = max(self._now, min(self._wake_at, next_at))
            turn = []
            while self._events and self._events[0][0] <= self._now:
                turn.append(heapq.heappop(self._events))
            for at, _, ended, took_s in turn:
                if ended:
                    self._free += 1
                    self._told(ended, took_s)
                    self._decide()
                    self._hand_out(ended)
                else:
                    self._now += REQUEST_S
                    self._policy.add(Request(rows=1, asked_at=at), self._now)
            self._decide()

    def _decide(self) -> None:
        while True:
            decision = self._policy.decide(self._now, free_instances=self._free)
            if not (batch := decision.batch):
                self._wake_at = decision.wake_at
                return
            self.batches.append(len(batch))
            took_s = self._network(len(batch)) * (1 + 0.1 * self._random.random())
            if len(self.latencies) % 2000 >= 1000:
                took_s *= self._options.slower
            if took_s < ON_THE_LOOP_S:
                self._now += took_s
                self._told(batch, took_s)
                self._hand_out(batch)
            else:
                self._free -= 1
                took_s += HAND_OVER_S
                self._push(self._now + took_s, batch, took_s)

    def _told(self, batch: Sequence[Request], took_s: float) -> None:
        self._policy.ran(len(batch), len(batch), took_s, self._now)

    def _hand_out(self, batch: Sequence[Request]) -> None:
        for request in batch:
            self._now += ANSWER_S
            self.latencies.append(self._now - request.asked_at)
            self.answered_at.append(self._now)
            if self._is_closed:
                away_s = self._options.away_us / 1e6 * (0.5 + self._random.random())
                self._push(self._now + away_s)

    def _push(self, at: float, batch: Sequence[Request] = (), took_s: float = 0.0) -> None:
        """The end of a batch, or a request."""
        heapq.heappush(self._events, (at, next(self._order), batch, took_s))


def at_random(rate: float, count: int) -> Iterator[float]:
    source = random.Random(1)
    at = 0.0
    for _ in range(count):
        at += source.expovariate(rate)
        yield at


def bursts(size: int, count: int) -> Iterator[float]:
    for number in range(count):
        yield number // size * BURST_EVERY_S + number % size * 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--delay-us", type=float, default=2000.0, help="the longest delay (2000)")
    parser.add_argument("--away-us", type=float, default=20.0, help="between two requests (20)")
    parser.add_argument("--instances", type=int, default=1, help="of the network (1)")
    parser.add_argument("--slower", type=float, default=1.0, help="every second thousand (1)")
    parser.add_argument("--requests", type=int, default=6000, help="for each number (6000)")
    options = parser.parse_args()
    heads = ["network", "load"]
    for way in ("no delay", "the whole delay", "Slipway"):
        heads += [f"{way}: requests/s", "p50 ms", "p99 ms"]
    print(f"| {' | '.join([*heads, 'of the better: requests/s', 'p50', 'p99'])} |")
    print("|---|---|" + "--:|" * 12)
    for name, network in NETWORKS.items():
        loads = [(f"{n} clients", ("closed", float(n))) for n in (1, 2, 4, 8, 16, 32, 48, 64)]
        loads += [(f"{share:.0%} at random", ("random", share)) for share in (0.1, 0.3, 0.6, 0.9)]
        loads += [(f"bursts of {size}", ("bursts", float(size))) for size in (16, 32)]
        for title, load in loads:
            none, whole, ours = (
                measured(network, load, options, delay_s, returns)
                for delay_s, returns in (
                    (0.0, False),
                    (options.delay_us / 1e6, False),
                    (options.delay_us / 1e6, True),
                )
            )
            cells = [f"{n[0]:,.0f} | {n[1]:.2f} | {n[2]:.2f}" for n in (none, whole, ours)]
            cells.append(f"{ours[0] / max(none[0], whole[0]):.2f}")
            cells += [f"{ours[place] / min(none[place], whole[place]):.2f}" for place in (1, 2)]
            print(f"| {name} | {title} | {' | '.join(cells)} |", flush=True)


def measured(
    network: Network,
    load: tuple[str, float],
    options: argparse.Namespace,
    delay_s: float,
    returns: bool,
) -> tuple[float, float, float]:
    """Requests in a second, p50 and p99 in milliseconds, without the first fifth."""
    kind, size = load
    count = 2 * options.requests
    match kind:
        case "closed":
            arrivals = bursts(int(size), int(size))
        case "random":
            arrivals = at_random(size * network.capacity, count)
        case _:
            arrivals = bursts(int(size), count)
    simulation = Simulation(network, options, delay_s=delay_s, returns=returns)
    simulation.run(arrivals, closed=kind == "closed")
    skipped = options.requests // 5
    seconds = simulation.answered_at[-1] - simulation.answered_at[skipped - 1]
    p50, p99 = np.percentile(simulation.latencies[skipped:], [50, 99]) * 1000
    return (len(simulation.latencies) - skipped) / seconds, float(p50), float(p99)


if __name__ == "__main__":
    main()
