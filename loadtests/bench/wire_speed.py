"""The wire: how fast Slipway answers next to the bare ONNX Runtime loop and to other servers.

Everybody has the same ONNX file and the same session options. Two networks, with random weights:
`small` (16 -> 32 -> 4), where only the server's own cost counts, and `residual` (3x64x64, a
millisecond or two), where the network does. A request is one row. Closed loop: each connection
asks again when it has its answer, so that batches of up to 32 can form where a server makes them.

  python loadtests/bench/wire_speed.py                                   everybody; 40 minutes
  python loadtests/bench/wire_speed.py --networks small --rounds 1 --seconds 1 \\
      --contenders slipway-binary fastapi-raw                            two of them; a minute

The load is made by programs in C, each with one thread: wrk over HTTP (16 bodies in turns), h2load
over gRPC (one body). "load's cores" tells whether it was they that were measured: near 1 it was.
Right before and right after each measurement 16 answers, asked for at the same time, must be those
of ONNX Runtime, or the run ends. Between, answers that are no success are counted as failed.

Only one server runs at a time. In each of --rounds, every server is started anew, in another order,
so that whatever else the machine does hits all of them; medians of the rounds are told, and all
ratios are of the same run. "Slipway is x as fast" compares what is sent alike: JSON with JSON,
bytes with bytes, gRPC with gRPC. The cold start is from the start of the process to its first right
answer. Nothing else should run meanwhile: what others take of the CPU is told with the results.

grpc.aio is a plain servicer of gRPC's for Python, in the network's own process and without batches.
Triton is that of the wheel nvidia-pytriton, with ONNX Runtime in its Python backend. LitServe and
MLServer are installed into environments below --out when they are first needed. Who cannot be
installed is left out. Results are tables on the terminal, and table.md, results.json and plot.png
in --out.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import psutil
import wire_load
import wire_networks
from bare_session import Rows
from load import Watched
from machine import machine
from processes import ROOT, Server, Uninstallable, alone
from tqdm import tqdm
from wire_contenders import CONTENDERS, SERVERS, Command, command, install
from wire_networks import MAX_BATCH, NETWORKS, Network
from wire_report import Measured, Results, Started, plot, tables
from wire_requests import Request, Unanswered, Wire, ask, request

PACKAGES = ("onnxruntime", "numpy", "fastapi", "uvicorn", "grpcio")
POLL_S = 0.005


def main() -> None:
    options = parse()
    wire_load.require([CONTENDERS[name].wire for name in options.contenders])
    options.out.mkdir(parents=True, exist_ok=True)
    options.out = options.out.resolve()
    homes, left_out = installed(options.contenders, options.out)
    names = [name for name in options.contenders if CONTENDERS[name].server in homes]
    results = Results()
    benches = [Bench(NETWORKS[name], homes, options) for name in options.networks]
    for bench in benches:
        print(f"Trying batches of {bench.network.name} in the bare loop ...", flush=True)
        results.begin(bench.network.name, bench.search(), names)
    servers = list(dict.fromkeys(CONTENDERS[name].server for name in names))
    turns = options.rounds * len(benches) * (1 + len(names) * len(options.connections))
    with tqdm(total=turns, desc="measuring") as progress:
        for turn in range(options.rounds):
            results.others_cpu.append(psutil.cpu_percent(1.0) / 100)
            for bench in benches:
                found = results.networks[bench.network.name]
                found.floor.append(bench.floor(found.best))
                progress.update()
                # Nobody always comes after the same other.
                for server in [*servers[turn % len(servers) :], *servers[: turn % len(servers)]]:
                    asked = [name for name in names if CONTENDERS[name].server == server]
                    bench.measure(server, asked, found.measured, found.started, progress)
    show(results, left_out, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "runs/bench-wire", metavar="DIR")
    networks = list(NETWORKS)
    add(
        "--networks",
        nargs="+",
        choices=networks,
        default=networks,
        metavar="NAME",
        help="small residual",
    )
    names = list(CONTENDERS)
    add("--contenders", nargs="+", choices=names, default=names, metavar="NAME", help=_names())
    add(
        "--connections",
        nargs="+",
        type=_whole,
        default=[1, 8, 32, 64],
        metavar="N",
        help="1 8 32 64",
    )
    add("--rounds", type=_whole, default=3, help="turns that each contender gets (3)")
    add("--seconds", type=_seconds, default=5.0, help="that each measurement takes (5)")
    add("--warmup-s", type=_seconds, default=1.0, help="before each, not measured (1)")
    add(
        "--search-s",
        type=_seconds,
        default=1.0,
        help="for each batch of the bare loop, three times (1)",
    )
    cores = os.cpu_count() or 1
    add("--threads", type=_whole, default=cores, help=f"of the one session, each has one ({cores})")
    add("--seed", type=int, default=1, help="of weights and inputs (1)")
    options = parser.parse_args()
    for name in ("networks", "contenders", "connections"):
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))
    return options


def _names() -> str:
    return f"all: {', '.join(CONTENDERS)}"


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.05 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected seconds from 0.05 to 3600, got {text!r}")
    return seconds


def installed(names: Sequence[str], out: Path) -> tuple[dict[str, Path], list[str]]:
    """What `install` found for each server, and a sentence for each that is left out."""
    homes: dict[str, Path] = {}
    left_out = []
    for server in dict.fromkeys(CONTENDERS[name].server for name in names):
        try:
            homes[server] = install(server, out)
        except Uninstallable as error:
            left_out.append(f"{SERVERS[server]} is left out: {error}.")
            print(left_out[-1], flush=True)
    if not homes:
        raise SystemExit("there is nobody left to measure")
    return homes, left_out


class Bench:
    """One network, and everybody who answers for it."""

    def __init__(self, network: Network, homes: dict[str, Path], options: argparse.Namespace):
        self.network = network
        self._homes = homes
        self._options = options
        self._out: Path = options.out / network.name
        self._out.mkdir(exist_ok=True)
        self._graph = self._out / "model.onnx"
        wire_networks.write(network, self._graph, options.seed)
        self._inputs = wire_networks.examples(network, options.seed)
        self._expected: Rows = alone(
            wire_networks.answers, self._graph, options.threads, self._inputs
        )

    def search(self) -> dict[int, wire_networks.Rate]:
        given = (self._graph, self._options.threads, self._inputs, self._options.search_s)
        return alone(wire_networks.search, *given)

    def floor(self, batch: int) -> wire_networks.Rate:
        given = (self._graph, self._options.threads, self._inputs, batch, self._options.seconds)
        return alone(wire_networks.measure, *given)

    def measure(
        self,
        server: str,
        names: Sequence[str],
        measured: dict[str, dict[int, Measured]],
        started: dict[str, Started],
        progress: tqdm[Any],
    ) -> None:
        """Start the server, ask it in every way at every number of connections, and stop it."""
        given = (self._homes[server], self.network, self._graph, self._options.threads)
        how = command(server, *given, self._out / server)
        requests = {name: self._requests(CONTENDERS[name].wire) for name in names}
        log = self._out / f"{server}.log"
        began = monotonic()
        process = Server(how.arguments, how.http_port, log, how.directory, how.variables)
        with ExitStack() as stack:
            stack.callback(process.stop)
            first = CONTENDERS[names[0]].wire
            port = how.port(first)
            process.wait_until(lambda: ask(first, port, requests[names[0]][0]), POLL_S)
            cold_start_s = monotonic() - began
            for name in names:
                for connections in self._options.connections:
                    progress.set_postfix_str(f"{self.network.name}, {name}, {connections}")
                    loaded = self._loaded(name, how, process.pid, requests[name], connections)
                    measured[name].setdefault(connections, Measured()).add(loaded)
                    progress.update()
            rss_bytes = Watched(process.pid).rss_bytes()
        started.setdefault(server, Started()).add(cold_start_s, rss_bytes)

    def _loaded(
        self, name: str, how: Command, pid: int, requests: Sequence[Request], connections: int
    ) -> wire_load.Loaded:
        wire = CONTENDERS[name].wire
        answer_bytes = self._check(name, how, requests)

        def loaded(seconds: float) -> wire_load.Loaded:
            return wire_load.load(
                wire,
                how.port(wire),
                pid,
                requests,
                answer_bytes,
                connections,
                seconds,
                self._out / "requests",
            )

        loaded(self._options.warmup_s)
        found = loaded(self._options.seconds)
        self._check(name, how, requests)
        return found

    def _requests(self, wire: Wire) -> list[Request]:
        return [request(wire, self.network.name, row) for row in self._inputs]

    def _check(self, name: str, how: Command, requests: Sequence[Request]) -> int:
        """Ends the run if an answer is wrong. Returns the bytes of the first answer."""
        wire = CONTENDERS[name].wire
        with ThreadPoolExecutor(len(requests)) as threads:
            asking = [threads.submit(ask, wire, how.port(wire), each) for each in requests]
        try:
            answers = [each.result() for each in asking]
        except Unanswered as error:
            raise SystemExit(f"{name} does not answer for {self.network.name}: {error}") from error
        for (given, _), wanted in zip(answers, self._expected, strict=True):
            # Other batches are summed in another order.
            if given.shape != wanted.shape or not np.allclose(given, wanted, 1e-3, 1e-4):
                raise SystemExit(
                    f"{name} answers wrongly for {self.network.name}:"
                    f" expected {wanted}, got {given}"
                )
        return answers[0][1]


def show(results: Results, left_out: Sequence[str], options: argparse.Namespace) -> None:
    about = (
        f"{machine(*PACKAGES)['cpu']}, {os.cpu_count()} cores, of which other processes took"
        f" {100 * max(results.others_cpu):.0f} %. Everybody has one session, of"
        f" {options.threads} threads, and batches of up to {MAX_BATCH}. Medians of"
        f" {options.rounds} × {options.seconds:g} s."
    )
    about = " ".join([about, *left_out])
    text = f"{about}\n\n{tables(results)}"
    print(f"\n{text}\n\nin {options.out}: table.md, results.json, plot.png")
    (options.out / "table.md").write_text(text + "\n")
    document = {
        "machine": machine(*PACKAGES),
        "options": {name: str(value) for name, value in vars(options).items()},
        "left_out": left_out,
        **asdict(results),
    }
    (options.out / "results.json").write_text(json.dumps(document) + "\n")
    plot(options.out / "plot.png", results)


if __name__ == "__main__":
    main()
