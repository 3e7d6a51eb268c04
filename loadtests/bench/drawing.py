"""Drawing: Slipway against the bare ONNX Runtime loop and diffusers, in one run.

The contenders take turns in several rounds, so that whatever else the machine does hits all of
them, and stand still while another is measured. Before anything is measured, all must draw the same
pictures.

  mixed  pictures of 10 to 50 steps from clients that each wait for theirs before they ask again
  short  p99 of pictures of 10 steps alone, and while others want 50 steps without a pause

The bare loop runs the same network on rows of noise, in its best batch and thread layout of those
that are tried beforehand; a picture is as many rows as its steps, twice that if it is guided.
diffusers has the checkpoint that the model was exported from, behind LitServe.

  python loadtests/bench/drawing.py runs/digits-diffusion/checkpoint --model-repository model_repo

Nothing else should run meanwhile: what other processes take of the CPU is told with the results.
What Slipway is compared with is installed into an environment below --out when it is first needed.
Results are tables on the terminal, and table.md and results.json in --out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import drawing_floor
import numpy as np
import psutil
from drawing_floor import Way
from load import Group, Outcome, Plan, Result
from machine import machine
from processes import HERE, ROOT, Server, alone, environment, run_load_on, slipway, start_held
from report import table
from scenarios import Short, percentile
from tqdm import tqdm
from wire import Wire

from serving.diffusion.settings import DIFFUSION_FILE, DiffusionSettings
from serving.repository import Repositories

PACKAGES = ("onnxruntime", "torch", "diffusers", "numpy")
STEPS = (10, 20, 30, 40, 50)
SHORT, LONG = 10, 50
SAMPLE, WISHES = 16, 500
CLOSE = 2
"""Levels of 255 by which a pixel may differ: torch and ONNX Runtime sum in different orders."""


@dataclass(frozen=True)
class Contender:
    label: str
    server: str
    wire: Wire


CONTENDERS: Mapping[str, Contender] = {
    "slipway": Contender("Slipway, POST /models, PNG", "slipway", "picture"),
    "slipway-v2": Contender("Slipway, protocol v2, binary", "slipway", "pixels"),
    "diffusers": Contender("diffusers, LitServe, PNG", "diffusers", "picture"),
}


@dataclass
class Drawn:
    """Of one contender: an entry for each round, and the latencies of all."""

    images_per_s: list[float] = field(default_factory=list)
    steps_per_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    server_cores: list[float] = field(default_factory=list)
    load_cores: list[float] = field(default_factory=list)
    failed: int = 0

    def add(self, result: Result, wishes: Sequence[str]) -> None:
        answered = _answered(result.outcomes)
        self.images_per_s.append(len(answered) / result.seconds)
        self.steps_per_s.append(sum(_steps(wishes[o.number]) for o in answered) / result.seconds)
        self.latencies_s += [outcome.latency_s for outcome in answered]
        self.server_cores.append(result.server_cpu_s / result.seconds)
        self.load_cores.append(result.load_cpu_s / result.seconds)
        self.failed += len(result.outcomes) - len(answered)


@dataclass
class Results:
    others_cpu: list[float]
    """The share of the CPU that others took while all servers stood still, at each round."""
    tried: list[tuple[Way, float]]
    """The bare loop, before the rounds."""
    floor: list[float]
    """Its best way, at each round, in rows in a second."""
    rows_of_a_step: int
    same: dict[str, float]
    mixed: dict[str, Drawn]
    short: dict[str, Short]


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    tried = alone(drawing_floor.search, *bench.floor, options.search_s)
    best, _ = max(tried, key=lambda pair: pair[1])
    names = list(options.contenders)
    mixed = {name: Drawn() for name in names}
    short = {name: Short() for name in names}
    with ExitStack() as stack:
        bench.start(stack)
        same = bench.compare()
        floor: list[float] = []
        others_cpu = []
        with tqdm(total=options.rounds * (1 + 2 * len(names)), desc="measuring") as progress:
            for turn in range(options.rounds):
                others_cpu.append(psutil.cpu_percent(1.0) / 100)
                floor.append(alone(drawing_floor.measure, *bench.floor, best, options.seconds))
                progress.update()
                # Nobody always comes after the same other.
                for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
                    progress.set_postfix_str(f"mixed, {name}")
                    bench.mixed(name, mixed[name])
                    progress.update()
                    progress.set_postfix_str(f"short, {name}")
                    bench.short(name, short[name])
                    progress.update()
    rows = 2 if bench.is_guided else 1
    show(Results(others_cpu, tried, floor, rows, same, mixed, short), best, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="with a network of pixels, as diffusers saves it")
    add("--model-repository", type=Path, default=ROOT / "model_repo", metavar="DIR")
    add("--model", default="digits-diffusion", help="its name there, with classes and guidance")
    add("--out", type=Path, default=ROOT / "runs/bench-drawing", metavar="DIR")
    contenders = list(CONTENDERS)
    add("--contenders", nargs="+", choices=contenders, default=contenders, help="all")
    add("--rounds", type=int, default=3, help="turns that each contender gets (3)")
    add("--seconds", type=float, default=10.0, help="that each measurement takes (10)")
    add("--warmup-s", type=float, default=3.0, help="before each, not measured (3)")
    add("--search-s", type=float, default=1.0, help="for each way of the bare loop (1)")
    add("--clients", type=int, default=16, help="of mixed pictures (16)")
    add("--short-clients", type=int, default=8, help="of 10 steps (8)")
    add("--long-clients", type=int, default=8, help="of 50 steps (8)")
    add("--seed", type=int, default=1, help="of the wishes (1)")
    return parser.parse_args()


class Bench:
    """Servers that are all started, of which only the one that is measured runs."""

    def __init__(self, options: argparse.Namespace):
        repository = options.model_repository.resolve()
        self.floor = (repository, options.model)
        [version] = Repositories([repository]).read(options.model)
        settings = DiffusionSettings.load(version.directory)
        if not settings.classes:
            raise SystemExit(f"{version.directory}: expected a model with classes")
        self.is_guided = settings.can_guide and settings.defaults.guidance_scale > 1
        self._options = options
        self._settings_file = version.directory / DIFFUSION_FILE
        self._servers: dict[str, Server] = {}
        chance = Random(options.seed)
        names = [each[0] for each in settings.classes]

        def wishes(steps: Sequence[int]) -> list[str]:
            return [
                json.dumps(
                    {
                        "inputs": chance.choice(names),
                        "parameters": {
                            "num_inference_steps": chance.choice(steps),
                            "seed": chance.randrange(1 << 30),
                            "scheduler": "ddim",
                        },
                    }
                )
                for _ in range(WISHES)
            ]

        self._mixed, self._short, self._long = wishes(STEPS), wishes([SHORT]), wishes([LONG])

    def start(self, stack: ExitStack) -> None:
        wanted = dict.fromkeys(CONTENDERS[name].server for name in self._options.contenders)
        self._servers = start_held(wanted, self._command, self._options.out, stack)

    def compare(self) -> dict[str, float]:
        """The share of pixels that are those of the first contender. Ends the run if not all are
        close to them."""
        same: dict[str, float] = {}
        expected = None
        for name in self._options.contenders:
            result = self._load(name, [Group("sample", SAMPLE, self._mixed[:SAMPLE])], seconds=0.0)
            answers = {each.number: each for each in _answered(result.outcomes)}
            if len(answers) < SAMPLE:
                raise SystemExit(f"{name} fails: {result.outcomes[0]}")
            pixels = np.array([list(b64decode(answers[number].answer)) for number in range(SAMPLE)])
            expected = pixels if expected is None else expected
            same[name] = float((pixels == expected).mean())
            if np.abs(pixels - expected).max() > CLOSE:
                raise SystemExit(f"{name} draws other pictures, so there is nothing to compare")
        return same

    def mixed(self, name: str, found: Drawn) -> None:
        found.add(
            self._load(name, [Group("mixed", self._options.clients, self._mixed)]), self._mixed
        )

    def short(self, name: str, found: Short) -> None:
        group = Group("short", self._options.short_clients, self._short)
        others = Group("long", self._options.long_clients, self._long)
        found.alone_s += [each.latency_s for each in _answered(self._load(name, [group]).outcomes)]
        beside = self._load(name, [group, others])
        answered = _answered(beside.outcomes)
        found.beside_s += [each.latency_s for each in answered if each.group == "short"]
        found.long_per_s.append(sum(each.group == "long" for each in answered) / beside.seconds)

    def _command(self, server: str, port: int) -> list[str]:
        options = self._options
        if server == "slipway":
            return slipway(self.floor[0], options.model, port)
        return [
            *(str(environment(options.out / "venv")), str(HERE / "servers/diffusers_server.py")),
            *("--checkpoint", str(options.checkpoint.resolve()), "--model", options.model),
            *("--settings", str(self._settings_file), "--port", str(port)),
        ]

    def _load(self, name: str, groups: Sequence[Group], seconds: float | None = None) -> Result:
        contender = CONTENDERS[name]
        server = self._servers[contender.server]
        plan = Plan(
            port=server.port,
            wire=contender.wire,
            model=self._options.model,
            server_pid=server.pid,
            groups=list(groups),
            warmup_s=self._options.warmup_s,
            seconds=self._options.seconds if seconds is None else seconds,
        )
        return run_load_on(server, plan)


def show(results: Results, best: Way, options: argparse.Namespace) -> None:
    about = (
        f"Pictures of {STEPS[0]} to {STEPS[-1]} steps from {options.clients} clients;"
        f" {machine(*PACKAGES)['cpu']}, {os.cpu_count()} cores, of which other processes took"
        f" {100 * max(results.others_cpu):.0f} %. The best of the bare loop: {best.layout},"
        f" batches of {best.batch}."
    )
    text = "\n\n".join([about, _tried_table(results), _table(results), _short_table(results)])
    print(f"\n{text}\n\nin {options.out}: table.md, results.json")
    (options.out / "table.md").write_text(text + "\n")
    document = {
        "machine": machine(*PACKAGES),
        "options": {name: str(value) for name, value in vars(options).items()},
        **asdict(results),
    }
    (options.out / "results.json").write_text(json.dumps(document) + "\n")


def _tried_table(results: Results) -> str:
    rates = {(way.layout, way.batch): rate for way, rate in results.tried}
    batches = sorted({batch for _, batch in rates})
    rows = [
        [layout, *(f"{rates[layout, batch]:,.0f}" for batch in batches)]
        for layout in drawing_floor.LAYOUTS
    ]
    return table(["bare loop, rows in a second", *map(str, batches)], rows)


def _table(results: Results) -> str:
    bare = statistics.median(results.floor) / results.rows_of_a_step
    spread = [rate / results.rows_of_a_step for rate in results.floor]
    rows = [["bare loop", "", f"{bare:,.0f}", _spread(spread), "1.00", *[""] * 6]]
    for name, each in results.mixed.items():
        rate = statistics.median(each.steps_per_s)
        rows.append(
            [
                CONTENDERS[name].label,
                f"{statistics.median(each.images_per_s):.1f}",
                f"{rate:,.0f}",
                _spread(each.steps_per_s),
                f"{rate / bare:.2f}",
                *(f"{1000 * percentile(each.latencies_s, q):,.0f}" for q in (50, 99)),
                f"{statistics.median(each.server_cores):.2f}",
                f"{100 * statistics.median(each.load_cores):.0f} %",
                f"{100 * results.same[name]:.1f} %",
                str(each.failed),
            ]
        )
    header = [
        "contender",
        "images/s",
        "steps/s",
        "of the rounds",
        "of the bare loop",
        "p50 ms",
        "p99 ms",
        "cores used",
        "load generator's core",
        "same pixels",
        "failed",
    ]
    return table(header, rows)


def _short_table(results: Results) -> str:
    rows = [
        [
            CONTENDERS[name].label,
            *(f"{1000 * percentile(each.alone_s, q):,.0f}" for q in (50, 99)),
            *(f"{1000 * percentile(each.beside_s, q):,.0f}" for q in (50, 99)),
            f"{each.ratio:.2f}",
            f"{statistics.median(each.long_per_s):.1f}",
        ]
        for name, each in results.short.items()
    ]
    header = [
        "pictures of 10 steps",
        "alone p50 ms",
        "alone p99 ms",
        "beside 50 steps p50 ms",
        "beside p99 ms",
        "p99 ratio",
        "long ones/s",
    ]
    return table(header, rows)


def _spread(rates: Sequence[float]) -> str:
    return f"{min(rates):,.0f}–{max(rates):,.0f}"


def _steps(wish: str) -> int:
    steps: int = json.loads(wish)["parameters"]["num_inference_steps"]
    return steps


def _answered(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.status == 200]


if __name__ == "__main__":
    main()
