"""Speech recognition: Slipway against the bare ONNX Runtime loop and sherpa-onnx, in one run.

Recordings of 1 to 10 seconds, most of them short, from 1, 8 and 32 clients that each wait for their
answer before they send the next one. The contenders take turns in several rounds, so that whatever
else the machine does hits all of them, and stand still while another is measured.

The bare loop runs the same graph over the same recordings, in its best batch and thread layout of
those that are tried beforehand, in a process of its own with nothing around it. sherpa-onnx serves
a graph of the same layers and sizes with random weights, for it has its own spectrogram, in C++:
so its texts are not compared. Slipway's are, with those of the bare graph.

  python loadtests/bench/speech.py --model-repository model_repo --model spoken-numbers

Nothing else should run meanwhile: what other processes take of the CPU is told with the results.
What Slipway is compared with is installed into an environment below --out when it is first needed.
Results are tables on the terminal, and table.md and results.json in --out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import clips
import numpy as np
import psutil
import speech_floor
from clips import Clip
from load import Group, Plan, Result
from machine import machine
from processes import HERE, ROOT, Server, alone, environment, run_load_on, slipway, start_held
from report import table
from scenarios import percentile
from speech_floor import Rate, Way
from tqdm import tqdm
from wire import Wire

FLOOR = "bare loop"
PACKAGES = ("onnxruntime", "numpy", "soundfile", "soxr")
SAMPLE = 32


@dataclass(frozen=True)
class Contender:
    label: str
    server: str
    wire: Wire
    suffix: str
    """Of the files that are sent."""


CONTENDERS: Mapping[str, Contender] = {
    "slipway-v2": Contender("Slipway, protocol v2, binary", "slipway", "waveform", "wav"),
    "slipway-wav": Contender("Slipway, POST /models, WAV", "slipway", "recording", "wav"),
    "slipway-flac": Contender("Slipway, POST /models, FLAC", "slipway", "recording", "flac"),
    "sherpa": Contender("sherpa-onnx, batching queue, WAV", "sherpa", "recording", "wav"),
}


@dataclass
class Heard:
    """Of one contender and number of clients: an entry for each round, and all requests'."""

    audio_s_per_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    real_time_factors: list[float] = field(default_factory=list)
    """How long a request took as a share of its recording."""
    server_cores: list[float] = field(default_factory=list)
    load_cores: list[float] = field(default_factory=list)
    failed: int = 0

    def add(self, result: Result, heard: Sequence[Clip]) -> None:
        answered = [outcome for outcome in result.outcomes if outcome.status == 200]
        seconds = [heard[outcome.number].seconds for outcome in answered]
        self.audio_s_per_s.append(sum(seconds) / result.seconds)
        self.latencies_s += [outcome.latency_s for outcome in answered]
        self.real_time_factors += [
            outcome.latency_s / length for outcome, length in zip(answered, seconds, strict=True)
        ]
        self.server_cores.append(result.server_cpu_s / result.seconds)
        self.load_cores.append(result.load_cpu_s / result.seconds)
        self.failed += len(result.outcomes) - len(answered)


@dataclass
class Results:
    others_cpu: list[float]
    """The share of the CPU that others took while all servers stood still, at each round."""
    tried: list[tuple[Way, Rate]]
    """The bare loop, before the rounds."""
    floor: list[Rate]
    """Its best way, at each round."""
    same: dict[str, float]
    heard: dict[str, dict[int, Heard]]


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    heard = clips.mixed(options.out / "clips", options.recordings, options.seed)
    bench = Bench(options, heard)
    tried = alone(speech_floor.search, *bench.floor, options.search_s)
    best, _ = max(tried, key=lambda pair: pair[1].audio_s_per_s)
    with ExitStack() as stack:
        bench.start(stack)
        same = bench.compare(alone(speech_floor.texts, *bench.floor[:2], heard[:SAMPLE]))
        floor: list[Rate] = []
        found: dict[str, dict[int, Heard]] = {
            name: {number: Heard() for number in options.clients} for name in options.contenders
        }
        others_cpu = []
        turns = options.rounds * (1 + len(found) * len(options.clients))
        with tqdm(total=turns, desc="measuring") as progress:
            for turn in range(options.rounds):
                others_cpu.append(psutil.cpu_percent(1.0) / 100)
                floor.append(alone(speech_floor.measure, *bench.floor, best, options.seconds))
                progress.update()
                # Nobody always comes after the same other.
                names = options.contenders
                for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
                    for number in options.clients:
                        progress.set_postfix_str(f"{name}, {number} clients")
                        found[name][number].add(bench.measure(name, number), heard)
                        progress.update()
    show(Results(others_cpu, tried, floor, same, found), best, options, heard)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=ROOT / "model_repo", metavar="DIR")
    add("--model", default="spoken-numbers", help="one that hears whole recordings")
    add("--out", type=Path, default=ROOT / "runs/bench-speech", metavar="DIR")
    names = list(CONTENDERS)
    add("--contenders", nargs="+", choices=names, default=names, help="all")
    add("--clients", nargs="+", type=int, default=[1, 8, 32], help="1 8 32")
    add("--rounds", type=int, default=3, help="turns that each contender gets (3)")
    add("--seconds", type=float, default=8.0, help="that each measurement takes (8)")
    add("--warmup-s", type=float, default=2.0, help="before each, not measured (2)")
    add("--search-s", type=float, default=2.0, help="for each way of the bare loop (2)")
    add("--recordings", type=int, default=256, help="that are sent again and again (256)")
    add("--seed", type=int, default=1, help="of the recordings (1)")
    add("--min-same", type=float, default=0.95, help="of texts, as in the bare graph (0.95)")
    return parser.parse_args()


class Bench:
    """Servers that are all started, of which only the one that is measured runs."""

    def __init__(self, options: argparse.Namespace, heard: Sequence[Clip]):
        self.floor = (options.model_repository, options.model, heard)
        self._options = options
        self._heard = heard
        self._servers: dict[str, Server] = {}

    def start(self, stack: ExitStack) -> None:
        wanted = dict.fromkeys(CONTENDERS[name].server for name in self._options.contenders)
        self._servers = start_held(wanted, self._command, self._options.out, stack)

    def compare(self, expected: Sequence[tuple[str, str]]) -> dict[str, float]:
        """The share of answers that are those of the bare graph. Ends the run if too small."""
        same = {}
        for name in self._options.contenders:
            contender = CONTENDERS[name]
            if contender.server != "slipway":
                continue
            result = self._load(name, len(expected), self._heard[: len(expected)], seconds=0.0)
            given = {outcome.number: outcome for outcome in result.outcomes}
            right = 0
            for number, (path, text) in enumerate(expected):
                wanted = path if contender.wire == "waveform" else text
                right += given[number].status == 200 and given[number].answer == wanted
            same[name] = right / len(expected)
            if same[name] < self._options.min_same:
                raise SystemExit(
                    f"only {100 * same[name]:.1f} % of {name}'s answers are those of the bare"
                    f" graph, so there is nothing to compare: {given[0]}, expected {expected[0]}"
                )
        return same

    def measure(self, name: str, clients: int) -> Result:
        return self._load(name, clients, self._heard, self._options.seconds)

    def _command(self, server: str, port: int) -> list[str]:
        options = self._options
        repository = options.model_repository.resolve()
        if server == "slipway":
            return slipway(repository, options.model, port)
        return [
            *(str(environment(options.out / "venv")), str(HERE / "servers/sherpa_server.py")),
            *("--graph", str(repository / options.model), "--model", options.model),
            *("--port", str(port), "--out", str(options.out)),
        ]

    def _load(self, name: str, clients: int, heard: Sequence[Clip], seconds: float) -> Result:
        contender = CONTENDERS[name]
        server = self._servers[contender.server]
        files = [f"{clip.stem}.{contender.suffix}" for clip in heard]
        plan = Plan(
            port=server.port,
            wire=contender.wire,
            model=self._options.model,
            server_pid=server.pid,
            groups=[Group("mixed", clients, files)],
            warmup_s=self._options.warmup_s,
            seconds=seconds,
        )
        return run_load_on(server, plan)


def show(results: Results, best: Way, options: argparse.Namespace, heard: Sequence[Clip]) -> None:
    lengths = [clip.seconds for clip in heard]
    about = (
        f"Recordings of {min(lengths):.1f} to {max(lengths):.1f} s, half of them up to"
        f" {statistics.median(lengths):.1f} s; {machine(*PACKAGES)['cpu']}, {os.cpu_count()} cores,"
        f" of which other processes took {100 * max(results.others_cpu):.0f} %."
        f" The best of the bare loop: {best.layout}, batches of {best.batch}."
    )
    text = f"{about}\n\n{_tried_table(results)}\n\n{_table(results)}"
    print(f"\n{text}\n\nin {options.out}: table.md, results.json")
    (options.out / "table.md").write_text(text + "\n")
    document = {
        "machine": machine(*PACKAGES),
        "options": {name: str(value) for name, value in vars(options).items()},
        "recording_seconds": lengths,
        **asdict(results),
    }
    (options.out / "results.json").write_text(json.dumps(document) + "\n")


def _tried_table(results: Results) -> str:
    rates = {(way.layout, way.batch): rate.audio_s_per_s for way, rate in results.tried}
    batches = sorted({batch for _, batch in rates})
    rows = [
        [layout, *(f"{rates[layout, batch]:,.0f}" for batch in batches)]
        for layout in speech_floor.LAYOUTS
    ]
    return table(["bare loop, s of audio in a second", *map(str, batches)], rows)


def _table(results: Results) -> str:
    floor = [rate.audio_s_per_s for rate in results.floor]
    bare = statistics.median(floor)
    cores = statistics.median(rate.cores for rate in results.floor)
    rows = [[FLOOR, "", *_rates(floor), "1.00", f"{1 / bare:.5f}", "", "", f"{cores:.2f}", "", ""]]
    for name, by_clients in results.heard.items():
        for clients, each in by_clients.items():
            rate = statistics.median(each.audio_s_per_s)
            rows.append(
                [
                    CONTENDERS[name].label,
                    str(clients),
                    *_rates(each.audio_s_per_s),
                    f"{rate / bare:.2f}",
                    f"{np.median(each.real_time_factors):.5f}",
                    *(f"{1000 * percentile(each.latencies_s, q):,.1f}" for q in (50, 99)),
                    f"{statistics.median(each.server_cores):.2f}",
                    f"{100 * statistics.median(each.load_cores):.0f} %",
                    str(each.failed),
                ]
            )
    header = [
        "contender",
        "clients",
        "s of audio in a second",
        "of the rounds",
        "of the bare loop",
        "real-time factor",
        "p50 ms",
        "p99 ms",
        "cores used",
        "load generator's core",
        "failed",
    ]
    return table(header, rows)


def _rates(rates: Sequence[float]) -> tuple[str, str]:
    return f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}–{max(rates):,.0f}"


if __name__ == "__main__":
    main()
