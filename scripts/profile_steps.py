"""Where the time of a step goes, inside a server that is kept busy.

Serves one model that answers in steps, keeps --clients requests running over HTTP, and notes when
each part of an iteration begins and ends. What is printed are means over the iterations that
stepped nearly as many rows as there are clients; for a request that runs, an iteration is the time
between two of its tokens. Overhead is all in which the engine does not compute: what lies between
the end of one run of the step graph and the beginning of the next.

  python scripts/profile_steps.py --model-repository model_repo --model translator
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "loadtests/bench"
sys.path.append(str(BENCH))

from load import Group, Plan  # noqa: E402
from texts import Writer  # noqa: E402

from serving.app import run  # noqa: E402
from serving.repository import Repositories  # noqa: E402
from serving.scheduling.iterations import Iterations  # noqa: E402
from serving.scheduling.step_policy import StepPolicy  # noqa: E402
from serving.settings import Settings  # noqa: E402
from serving.steppers.crew import Crew  # noqa: E402
from serving.steppers.generation import GenerationStepper  # noqa: E402
from serving.steppers.rows import Rows  # noqa: E402
from serving.text import load_tokenizer  # noqa: E402

ENGINE = "engine"
PARTS = {
    ENGINE: "the runs of the step graph",
    "wait": "for the lock, or because there is nothing to do",
    "decide": "the policy: who leaves, begins, steps",
    "end": "rows given back",
    "begin": "of requests: off to their thread, and after it keys and values put in place",
    "prepare": "rows moved, lengths, positions, which rows run where",
    "choose": "what each row goes on with",
    "advance": "each request's own bookkeeping",
    "tell": "the event loop, of what came of it",
    "iteration": "the rest of the thread's work",
}
NEARLY = 0.85
"""Of the clients' requests, without which an iteration is not one of a busy server."""


@dataclass
class Profile:
    rows: int
    begins: int
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


@dataclass
class Clock:
    """Seconds of the parts of the iteration that is on its way, and of those before it."""

    parts: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    iterations: list[Profile] = field(default_factory=list)
    rows: int = 0
    """That were stepped in the iteration that is on its way."""

    def timed(self, part: str, around: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time is a part, and no longer that of the part around it."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - started
                self.parts[part] += seconds
                self.parts[around] -= seconds

        return wrapper


def main() -> None:
    options = parse()
    port = free_port()
    plan = make_plan(options, port)
    clock = Clock()
    instrument(clock)
    threading.Thread(target=drive, args=(plan, clock), daemon=True).start()
    run(
        Settings(
            model_repositories=(options.model_repository,),
            control_mode="explicit",
            load_models=(options.model,),
            http_port=port,
            grpc_port=0,
            metrics_port=0,
            log_info=False,
        )
    )
    busy = [each for each in clock.iterations if each.rows >= NEARLY * options.clients]
    if not busy:
        raise SystemExit("no iteration stepped nearly as many rows as there are clients")
    show(busy, [each for each in busy if not each.begins])
    if options.json:
        document = [asdict(each) for each in clock.iterations]
        options.json.write_text(json.dumps(document) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=ROOT / "model_repo", metavar="DIR")
    add("--model", default="translator", help="one with a stepper (translator)")
    add("--clients", type=int, default=32, help="requests that run at the same time (32)")
    add("--seconds", type=float, default=10.0, help="(10)")
    add("--max-new-tokens", type=int, default=160, help="of any answer (160)")
    add("--json", type=Path, metavar="FILE", help="where to write every iteration's parts")
    return parser.parse_args()


def make_plan(options: argparse.Namespace, port: int) -> Plan:
    """The load of loadtests/bench/translation.py."""
    [version] = Repositories([options.model_repository]).read(options.model)
    tokenizer = load_tokenizer(version.directory)
    codes = [f">>{language}<<" for language in tokenizer.languages]
    writer = Writer(lambda text: len(tokenizer.encode(text)), codes)
    texts = [each.text for each in writer.mixed(1000)]
    return Plan(
        port=port,
        wire="v2",
        model=options.model,
        server_pid=os.getpid(),
        groups=[Group("mixed", options.clients, texts)],
        max_new_tokens=options.max_new_tokens,
        seconds=options.seconds,
    )


def drive(plan: Plan, clock: Clock) -> None:
    """Loads the server from another process, and lets this one end."""
    try:
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{plan.port}/v2/health/ready").close()
                break
            time.sleep(0.1)
        # The first iterations of all enlarge the cache.
        threading.Timer(plan.warmup_s, clock.iterations.clear).start()
        finished = subprocess.run(
            [sys.executable, str(BENCH / "load.py")],
            input=json.dumps(asdict(plan)).encode(),
            stdout=subprocess.PIPE,
            check=True,
        )
        outcomes = json.loads(finished.stdout)["outcomes"]
        answered = sum(outcome["status"] == 200 for outcome in outcomes)
        print(f"{answered} of {len(outcomes)} requests were answered in {plan.seconds:g} s")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def instrument(clock: Clock) -> None:
    """Let the classes that make a step note their times, for the life of this process."""
    policy: Any = StepPolicy
    policy.decide = clock.timed("decide", "wait", policy.decide)
    stepper: Any = GenerationStepper
    stepper.end = clock.timed("end", "iteration", stepper.end)
    stepper.begin = clock.timed("begin", "iteration", stepper.begin)
    stepper.step = clock.timed("prepare", "iteration", stepper.step)
    stepper._bear = clock.timed("begin", "prepare", stepper._bear)
    crew: Any = Crew
    crew.run = clock.timed(ENGINE, "prepare", crew.run)
    stepper._advance = clock.timed("advance", "prepare", stepper._advance)
    rows: Any = Rows
    rows.choose = clock.timed("choose", "advance", rows.choose)
    iterations: Any = Iterations
    iterations._next = clock.timed("wait", "between", iterations._next)
    iterations._flush = clock.timed("tell", "iteration", iterations._flush)
    advance, iterate = stepper._advance, iterations._iterate

    def advanced(self: Any, best: Any, logits: Any) -> Any:
        clock.rows = len(best)
        return advance(self, best, logits)

    stepper._advance = advanced

    def iterated(self: Any, decision: Any) -> None:
        started = time.perf_counter()
        iterate(self, decision)
        clock.parts["iteration"] += time.perf_counter() - started
        # What the warm-up took is nobody's.
        parts = {part: clock.parts[part] for part in PARTS}
        clock.iterations.append(Profile(clock.rows, len(decision.begin), parts))
        clock.parts.clear()
        clock.rows = 0

    iterations._iterate = iterated


def show(busy: Sequence[Profile], only_steps: Sequence[Profile]) -> None:
    columns = [("all", busy), ("only steps", only_steps)]
    columns = [(name, found) for name, found in columns if found]
    print(f"\n{'microseconds of an iteration':30}", *(f"{name:>18}" for name, _ in columns))
    for part, meaning in PARTS.items():
        cells = []
        for _, iterations in columns:
            seconds = mean([each.parts[part] for each in iterations])
            share = seconds / mean([each.seconds for each in iterations])
            cells.append(f"{1e6 * seconds:9,.0f} {100 * share:6.1f} %")
        print(f"{part:30}", *(f"{cell:>18}" for cell in cells), "", meaning)
    lines: dict[str, Callable[[Sequence[Profile]], str]] = {
        "iteration": lambda found: f"{1e6 * mean([each.seconds for each in found]):,.0f}         ",
        "its 99th percentile": lambda found: (
            f"{1e6 * np.percentile([each.seconds for each in found], 99):,.0f}         "
        ),
        "overhead": lambda found: f"{100 * overhead(found):.1f} %",
        "iterations": lambda found: f"{len(found):,}         ",
        "rows": lambda found: f"{mean([each.rows for each in found]):.1f}         ",
    }
    print()
    for name, line in lines.items():
        print(f"{name:30}", *(f"{line(found):>18}" for _, found in columns))


def overhead(iterations: Sequence[Profile]) -> float:
    """The share of time in which the engine does not compute."""
    computing = sum(each.parts[ENGINE] for each in iterations)
    return 1 - computing / sum(each.seconds for each in iterations)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
