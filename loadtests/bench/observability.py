"""What it costs to be seen: a server with metrics, logs and traces beside one without.

The model is the smallest that there is, which echoes four numbers, so that hardly anything but the
server itself is measured, and its front is the fastest. Servers are held still while others are
measured, in many short rounds and in turn, so that whatever else the machine does meets all alike.

  python loadtests/bench/observability.py --rounds 20

What a round tells is its throughput, and the processor time that the server took for a request,
which other processes disturb less. Ratios are of neighbouring rounds, and the median is told.
Results are a table on the terminal, and results.json in --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from load import Group, Plan
from machine import machine
from processes import run_load_on, slipway, start_held
from report import table
from tqdm import tqdm

MODEL = "tiny"
CONFIG = """
backend: "fake"
max_batch_size: 64
input [ { name: "x" data_type: TYPE_FP32 dims: [4] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [4] } ]
dynamic_batching { }
"""
OFF = "off"
_SPANS = ("--trace-config", "mode=opentelemetry", "--trace-config", "level=TIMESTAMPS")
# Name -> what it is, and the flags of its server.
CONTENDERS: Mapping[str, tuple[str, Sequence[str]]] = {
    OFF: (
        "nothing",
        ("--allow-metrics", "false", "--log-info", "false", "--log-warning", "false"),
    ),
    "default": ("metrics and the log, no traces", ()),
    "sampled": ("and a trace of every 1000th request", (*_SPANS, "--trace-config", "rate=1000")),
    "traced": ("and a trace of every request", (*_SPANS, "--trace-config", "rate=1")),
    "verbose": ("and a line in the log for every request", ("--log-verbose", "1")),
}


@dataclass
class Found:
    """By the round."""

    requests_per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    """Of the server, for a request."""
    load_cores: list[float] = field(default_factory=list)
    failed: int = 0


def main() -> None:
    arguments = _arguments()
    names = [OFF, *(name for name in arguments.contenders if name != OFF)]
    found = {name: Found() for name in names}
    with ExitStack() as stack, TemporaryDirectory() as directory:
        repository = Path(directory) / "models"
        (repository / MODEL / "1").mkdir(parents=True)
        (repository / MODEL / "config.pbtxt").write_text(CONFIG)

        def command(name: str, port: int) -> list[str]:
            flags = CONTENDERS[name.removeprefix("slipway-")][1]
            return [*slipway(repository, MODEL, port), *flags]

        servers = start_held([f"slipway-{name}" for name in names], command, Path(directory), stack)
        inputs = [f"{number} 0.5 0.25 {-number}" for number in range(32)]
        for number in tqdm(range(arguments.rounds), "rounds"):
            for name in names if number % 2 else reversed(names):
                server = servers[f"slipway-{name}"]
                groups = [Group("all", arguments.clients, inputs)]
                plan = Plan(
                    server.port,
                    "numbers",
                    MODEL,
                    server.pid,
                    groups,
                    warmup_s=arguments.warmup_s,
                    seconds=arguments.seconds,
                )
                result = run_load_on(server, plan)
                answered = [o for o in result.outcomes if o.answer == inputs[o.number]]
                each = found[name]
                each.failed += len(result.outcomes) - len(answered)
                each.requests_per_s.append(len(answered) / result.seconds)
                each.cpu_us.append(1e6 * result.server_cpu_s / max(1, len(answered)))
                each.load_cores.append(result.load_cpu_s / result.seconds)
    print(_table(found))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        results = {name: asdict(each) for name, each in found.items()}
        document = {"machine": machine("uvicorn", "prometheus-client"), "found": results}
        (arguments.out / "results.json").write_text(json.dumps(document, indent=2))


def _table(found: Mapping[str, Found]) -> str:
    off = found[OFF]
    rows = []
    for name, each in found.items():
        speed = _ratios(each.requests_per_s, off.requests_per_s)
        cpu = _ratios(each.cpu_us, off.cpu_us)
        rows.append(
            [
                CONTENDERS[name][0],
                f"{statistics.median(each.requests_per_s):,.0f}",
                f"{speed:.3f}",
                f"{statistics.median(each.cpu_us):.1f}",
                f"{cpu:.3f}",
                f"{statistics.median(each.load_cores):.2f}",
                str(each.failed),
            ]
        )
    header = ["what is on", "requests/s", "of off", "CPU µs", "of off", "load's cores", "failed"]
    return table(header, rows)


def _ratios(values: Sequence[float], off: Sequence[float]) -> float:
    """The median of those of each round."""
    pairs = zip(values, off, strict=True)
    return statistics.median(value / other if other else 0.0 for value, other in pairs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--warmup-s", type=float, default=0.3)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[OFF, "default"])
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
