"""One load report: how fast a shipped model answers, how many requests it bears, and why.

  python loadtests/run.py --model digits                  starts a server of its own
  python loadtests/run.py --model digits --url http://localhost:8000    loads a running one

It warms the server up and then measures, in this order:

  closed loop  clients that wait for their answer before they ask again, in several numbers. Tells
               how much the server can do. Hides what waiting clients would have met.
  floors       the graph alone in ONNX Runtime at its best batch; the server with an engine that
               computes nothing. Only with a server of its own, between the closed loop's rounds.
  ramp         open loop at higher and higher rates, up to the knee: the most that is answered
               within --p99-bound-ms.
  open loop    requests at even times at 70 % of the knee, whether or not there are answers.
               Latency counts from when a request was due, so stalls show.

Answers are checked: a wrong one is a failure. --out gets report.html, which any browser opens
without a network, and report.json. Give an earlier report.json as --baseline to compare: the open
loop then has the earlier run's rate, and the exit status is 1 if something is worse by more than
--max-regression and by more than rounds differ. Mistakes in the options are status 2.

The load comes from this one process, so it shares the machine with a server of its own; the report
says how many cores each took. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from loadreport import ROOT
from loadreport.compare import Incomparable, check, compare, load_baseline, table
from loadreport.expectations import Unfit
from loadreport.floors import GraphFloor, write_fake
from loadreport.measure import Settings, Target, measure
from loadreport.models import MODELS, ShippedModel
from loadreport.results import FORMAT, Results, comparable, number
from machine import machine
from processes import free_port, slipway, start

REPORT = "report.json"
PACKAGES = ("slipway", "onnxruntime", "numpy", "grpcio", "uvloop")


class Mistake(Exception):
    """The options cannot be followed, and why, in one sentence."""


def main() -> None:
    try:
        worse = run(parse())
    except (Mistake, Incomparable, Unfit) as error:
        print(f"run.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if worse:
        print(f"worse than the earlier run: {'; '.join(worse)}", file=sys.stderr)
        raise SystemExit(1)


def run(options: argparse.Namespace) -> list[str]:
    """Measure and write the report. Returns what is worse than in the earlier run."""
    model = MODELS[options.model]
    front = options.front or model.fronts[0]
    if front not in model.fronts:
        raise Mistake(
            f"--front {front}: expected one of {', '.join(model.fronts)} for {model.name}"
        )
    settings: dict[str, Any] = {
        "duration_s": options.duration,
        "warmup_s": options.warmup,
        "rounds": options.rounds,
        "clients": sorted(set(options.clients)),
        "p99_bound_ms": options.p99_bound_ms or model.bound_ms,
        "server": options.url or f"slipway serve, started for this, on {options.model_repository}",
    }
    known: dict[str, Any] = {
        "model": model.name,
        "front": front,
        "machine": machine(*PACKAGES),
        "settings": settings,
    }
    baseline = None
    if options.baseline is not None:
        if options.baseline.resolve() == (options.out / REPORT).resolve():
            raise Mistake(
                f"--baseline {options.baseline}: this run would write over it; choose another --out"
            )
        baseline = load_baseline(options.baseline)
        check(options.baseline, baseline, known)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        fake = graph = None
        if options.url is None:
            if not (options.model_repository / model.name).is_dir():
                raise Mistake(
                    f"--model-repository {options.model_repository}: there is no {model.name} in it"
                )
            write_fake(options.model_repository, model, scratch / "fake")
            target = stack.enter_context(served(options.model_repository, model, scratch))
            fake = stack.enter_context(served(scratch / "fake", model, scratch, "fake"))
            graph = GraphFloor(options.model_repository, model, model.samples(), options.duration)
        else:
            target = running(options.url, options.grpc_port, model)
        measured = measure(
            model,
            front,
            target,
            Settings(
                options.duration,
                options.warmup,
                options.rounds,
                tuple(settings["clients"]),
                settings["p99_bound_ms"],
                baseline["open"]["rate_per_s"] if baseline and baseline["open"] else None,
            ),
            fake,
            graph,
        )
    results = Results(
        format=FORMAT,
        command=shlex.join(["python", "loadtests/run.py", *sys.argv[1:]]),
        floors=measured.floors,
        closed=measured.closed,
        ramp=measured.ramp,
        knee=measured.knee,
        open=measured.open,
        **known,
    )
    return write(results, baseline, options)


def write(
    results: Results, baseline: dict[str, Any] | None, options: argparse.Namespace
) -> list[str]:
    """The page, the numbers, and on the terminal the gist. Returns what is worse."""
    # Not above: the graph is run in processes that import this file, and need no plots.
    from loadreport.page import render

    numbers = comparable(results)
    options.out.mkdir(parents=True, exist_ok=True)
    document = _finite(asdict(results) | {"comparable": numbers})
    (options.out / REPORT).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    rows = None
    says = ""
    if baseline is not None:
        rows = compare(baseline["comparable"], numbers, options.max_regression)
        says = (
            f"{options.baseline}, of {baseline['machine']['time']}, commit"
            f" {baseline['machine']['commit']}. Worse or better is what differs by more than"
            f" {options.max_regression:.0%} and by more than the rounds of either run do."
        )
        print(table(rows))
    page = options.out / "report.html"
    page.write_text(render(results, rows, says))
    for scenario in [*results.closed, *([results.open] if results.open else [])]:
        print(
            f"{scenario.name:<20} {number(scenario.median('answered_per_s')):>8} requests/s,"
            f" p50 {number(scenario.median('latency.p50'))} ms,"
            f" p99 {number(scenario.median('latency.p99'))} ms"
        )
    print(f"{'knee':<20} {number(results.knee.rate_per_s):>8} requests/s")
    for name, floor in results.floors.items():
        rates = ", ".join(map(number, floor.rounds))
        print(f"floor: {name:<13} {rates} requests/s: {floor.way}")
    print(page)
    return [f"{row.name} {row.change:+.1%}" for row in rows or () if row.verdict == "worse"]


@contextmanager
def served(
    repository: Path, model: ShippedModel, scratch: Path, name: str = "model"
) -> Iterator[Target]:
    """`slipway serve` on free ports."""
    port, grpc_port = free_port(), free_port()
    command = slipway(repository.resolve(), model.name, port, grpc_port)
    server = start(f"slipway-{name}", command, port, scratch)
    try:
        yield Target(f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}")
    finally:
        server.stop()


def running(url: str, grpc_port: int, model: ShippedModel) -> Target:
    """A server that is there already. Raises `Mistake` if it does not serve it."""
    url = url.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise Mistake(f"--url {url}: expected such as http://localhost:8000")
    try:
        with urllib.request.urlopen(f"{url}/v2/models/{model.name}/ready", timeout=10):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise Mistake(
            f"--url {url}: the server does not serve {model.name} (status {error.code})"
        ) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise Mistake(f"--url {url}: no server answers there ({reason})") from None
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10):
            pass
    except OSError as error:
        raise Mistake(
            f"--url {url}: the server does not tell its metrics, which a report needs ({error})"
        ) from None
    return Target(url, f"{parts.hostname}:{grpc_port}")


def _finite(value: Any) -> Any:
    """For JSON, which knows no NaN: what there is no number for is null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, choices=list(MODELS), help="one that this repository ships")
    add("--front", help="v2_http, v2_grpc, task, openai or stream (the model's first)")
    add("--url", help="of a running server; without it one is started")
    add("--grpc-port", type=int, default=8001, help="of the server at --url (8001)")
    add("--model-repository", type=Path, default=ROOT / "model_repo", metavar="DIR")
    add("--duration", type=_positive, default=4.0, metavar="S", help="of every load (4)")
    add("--warmup", type=_positive, default=2.0, metavar="S", help="not measured (2)")
    add("--rounds", type=_whole, default=3, help="of every load, for medians and ranges (3)")
    add("--clients", type=_whole, nargs="+", default=[1, 4, 16], help="closed loops (1 4 16)")
    add("--p99-bound-ms", type=_positive, metavar="MS", help="of the knee (the model's own)")
    add("--baseline", type=Path, metavar="FILE", help="an earlier report.json")
    add("--max-regression", type=_share, default=0.1, metavar="PERCENT", help="(10%%)")
    add("--out", type=Path, default=ROOT / "runs/load", metavar="DIR", help="(runs/load)")
    return parser.parse_args()


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"expected 1 to 1000, got {text}")
    return value


def _share(text: str) -> float:
    return _positive(text.removesuffix("%")) / 100


if __name__ == "__main__":
    main()
