"""The load report: what its loops see, what its page shows, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run as command
from loadreport.calls import calls
from loadreport.compare import compare
from loadreport.expectations import Expectations
from loadreport.loops import Load, alone, closed_loop, open_loop
from loadreport.measure import Target
from loadreport.models import MODELS, Front
from loadreport.results import number
from loadreport.transports import OK, Http
from playwright.sync_api import sync_playwright

from tests.conftest import SHIPPED
from tests.support import RunningServer, serving, write_config

ROOT = Path(__file__).parent.parent
BROWSERS = (str(ROOT / ".venv/opt/chromium/chromium"), "chromium-headless-shell", "chromium")
STALL_S = 2.0

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def shipped() -> Iterator[RunningServer]:
    with serving(SHIPPED) as server:
        yield server


# --- The two loops, on a server that is stopped for two seconds


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Digits, read at once: no request waits for others to share its batch."""
    repository = tmp_path_factory.mktemp("prompt")
    write_digits(repository, delay_us=0)
    with serving(repository) as server:
        yield server


def write_digits(repository: Path, delay_us: int) -> None:
    """The shipped model, which waits so long for a batch of 64."""
    shutil.copytree(SHIPPED / "digits", repository / "digits")
    config = (SHIPPED / "digits/config.pbtxt").read_text()
    wait = f"preferred_batch_size: 64 max_queue_delay_microseconds: {delay_us}"
    changed = config.replace("max_queue_delay_microseconds: 2000", wait)
    assert changed != config
    write_config(repository, "digits", changed)


async def stalled(load: Coroutine[Any, Any, Load], server: RunningServer) -> Load:
    """What a load sees of a server that does nothing for `STALL_S`, begun in its midst."""
    running = asyncio.create_task(load)
    await asyncio.sleep(1.0)
    server.process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(STALL_S)
    finally:
        server.process.send_signal(signal.SIGCONT)
    return await running


def latencies(load: Load) -> list[float]:
    assert all(made.reply.status == OK for made in load.made)
    return [made.reply.ended - made.intended for made in load.made]


async def test_a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one(
    prompt: RunningServer,
) -> None:
    model = MODELS["digits"]
    made = calls(model, "v2_http", model.samples())
    transport = Http("127.0.0.1", prompt.http_port, made)
    try:
        await closed_loop(transport, len(made), 1, 0.2)
        closed = await stalled(closed_loop(transport, len(made), 1, 4.0), prompt)
        opened = await stalled(open_loop(transport, len(made), 100, 4.0), prompt)
    finally:
        await transport.close()
    one, other = (np.quantile(latencies(load), 0.99) for load in (closed, opened))
    longest = max(latencies(closed))
    print(
        f"stall of {STALL_S} s: p99 is {1000 * one:.1f} ms in a closed loop of {len(closed.made)}"
        f" requests, of which one took {longest:.2f} s; and {1000 * other:.1f} ms in an open one"
        f" of {len(opened.made)}"
    )
    # The closed loop's only client was held up once, and its p99 knows nothing of it.
    assert longest > 0.95 * STALL_S
    assert sum(latency > STALL_S / 2 for latency in latencies(closed)) == 1
    assert one < 0.3
    # Half of those who were due in the open one's four seconds were due during the stall.
    assert len(opened.made) == 400
    assert other > 0.8 * STALL_S
    assert sum(latency > STALL_S / 2 for latency in latencies(opened)) > 90


async def test_an_open_loop_keeps_its_schedule(prompt: RunningServer) -> None:
    model = MODELS["digits"]
    made = calls(model, "v2_http", model.samples())
    transport = Http("127.0.0.1", prompt.http_port, made)
    try:
        load = await open_loop(transport, len(made), 200, 1.0, first=100)
    finally:
        await transport.close()
    ordered = sorted(load.made, key=lambda each: each.intended)
    assert np.diff([each.intended for each in ordered]) == pytest.approx(1 / 200)
    assert [each.call for each in ordered] == [(100 + at) % len(made) for at in range(200)]
    assert all(each.reply.sent >= each.intended for each in ordered)
    assert np.median([each.reply.sent - each.intended for each in ordered]) < 0.01


async def test_calls_go_by_grpc_and_streams_tell_when_events_come(shipped: RunningServer) -> None:
    target = Target(f"http://{shipped.http}", shipped.grpc)
    ways: tuple[tuple[str, Front, int], ...] = (
        ("digits", "v2_grpc", 0),
        ("translator", "stream", 2),
    )
    for name, front, least_events in ways:
        model = MODELS[name]
        made = calls(model, front, model.samples()[:8])
        transport = target.transport(front, made)
        try:
            known = [reply.answer for reply in await alone(transport, len(made))]
            expectations = Expectations.learn(model, front, made, known)
            load = await open_loop(transport, len(made), 20, 0.8)
        finally:
            await transport.close()
        assert len(load.made) == 16
        for each in load.made:
            assert expectations.problem(each.call, each.reply.answer) is None
            times = [each.reply.sent, *each.reply.events, each.reply.ended]
            assert len(times) >= 2 + least_events
            assert times == sorted(times)
        # An answer to another call is not what is expected.
        assert expectations.problem(0, known[1]) is not None


# --- The report of a whole run


@dataclass(frozen=True)
class Report:
    directory: Path
    printed: str

    @property
    def numbers(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.directory / "report.json").read_text())
        return document


def measure(*options: str | Path) -> subprocess.CompletedProcess[str]:
    # The bound is one that a busy machine keeps.
    short = ("--duration", "0.4", "--warmup", "0.3", "--clients", "1", "4", "--p99-bound-ms", "400")
    return subprocess.run(
        [sys.executable, "loadtests/run.py", "--model", "digits", *short, *map(str, options)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """On digits that waits for its batches, so that a busy machine tells little of its rates."""
    directory = tmp_path_factory.mktemp("report")
    repository = tmp_path_factory.mktemp("patient")
    write_digits(repository, delay_us=2_000)
    finished = measure("--rounds", "2", "--model-repository", repository, "--out", directory)
    assert finished.returncode == 0, finished.stderr
    print(finished.stdout)
    return Report(directory, finished.stdout)


def test_loads_are_answered_and_counted_on_both_sides(report: Report) -> None:
    found = report.numbers
    assert [load["clients"] for load in found["closed"]] == [1, 4]
    for load in [*found["closed"], found["open"]]:
        assert len(load["rounds"]) == 2
        for each in load["rounds"]:
            assert each["failed"] == 0
            assert 0 < each["latency"]["p50"] <= each["latency"]["p99"] <= each["latency"]["max"]
            assert 0 < each["client_cores"] < 1.5
            assert each["unfinished"] <= load["clients"]
            served = each["served"]["stages"]["queue"]["count"]
            assert served == each["requests"] + each["unfinished"]
            assert each["latency"]["mean"] > each["served"]["stages"]["compute"]["mean_ms"]
    assert found["open"]["rate_per_s"] == pytest.approx(0.7 * found["knee"]["rate_per_s"])
    assert found["open"]["rounds"][0]["requests"] == pytest.approx(
        found["open"]["rate_per_s"] * 0.4, abs=1
    )


def test_the_knee_is_the_last_rate_that_is_borne(report: Report) -> None:
    found = report.numbers
    knee, bound = found["knee"]["rate_per_s"], found["settings"]["p99_bound_ms"]
    assert knee < found["knee"]["next_per_s"]
    for step in found["ramp"]:
        last = step["rounds"][-1]
        keeps_up = last["answered_per_s"] >= 0.95 * step["rate_per_s"]
        is_borne = keeps_up and last["latency"]["p99"] <= bound and not last["failed"]
        assert is_borne == (step["rate_per_s"] <= knee)


def test_floors_are_above_what_is_served(report: Report) -> None:
    found = report.numbers
    best = max(max(r["answered_per_s"] for r in load["rounds"]) for load in found["closed"])
    for name in ("graph", "fake"):
        assert len(found["floors"][name]["rounds"]) == 2
        assert max(found["floors"][name]["rounds"]) > best
        assert found["floors"][name]["way"] in report.printed


@dataclass
class Seen:
    """What a browser has of a page of 1280 pixels' width."""

    title: str = ""
    text: str = ""
    width: int = 0
    plots: list[tuple[float, float, int]] = field(default_factory=list)
    """Width and height on the screen, and how many lines are drawn."""
    cells: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    """Rows of the ramp's table."""
    problems: list[str] = field(default_factory=list)
    """What the console says, and every address that is asked for besides the page itself."""


@pytest.fixture(scope="module")
def seen(report: Report) -> Seen:
    """The report in a real browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        missing = "there is no browser; scripts/chromium gets one where there is apt"
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    seen = Seen()
    address = (report.directory / "report.html").as_uri()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: seen.problems.append(message.text))
        page.on("pageerror", lambda error: seen.problems.append(str(error)))
        page.on("request", lambda request: seen.problems.append(request.url))
        page.goto(address, wait_until="networkidle")
        page.screenshot(path=report.directory / "report.png", full_page=True)
        seen.problems.remove(address)
        seen.title, seen.text = page.title(), page.inner_text("main")
        seen.width = page.evaluate("document.documentElement.scrollWidth")
        for plot in page.locator("figure svg").all():
            box = plot.bounding_box()
            assert box is not None
            assert plot.is_visible()
            lines = plot.locator("path").count()
            seen.plots.append((box["width"], box["height"], lines))
        for cell in page.locator("td[data-value]").all():
            seen.cells[cell.get_attribute("data-value") or ""] = cell.inner_text()
        seen.steps = page.locator("#ramp tbody tr").count()
        chromium.close()
    return seen


def test_the_page_needs_nothing_else(seen: Seen, report: Report) -> None:
    assert seen.problems == []
    assert seen.title == "Load report: digits"
    # Nor is anything fetched later, on a click or another screen.
    text = (report.directory / "report.html").read_text()
    fetched = re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"|url\((?!#)[^)]*\)|<script", text)
    assert fetched == []


def test_the_plots_can_be_seen(seen: Seen) -> None:
    assert len(seen.plots) == 5
    for width, height, lines in seen.plots:
        assert width > 450
        assert height > 250
        assert lines > 20, "axes, ticks and what they are for"
    assert seen.width == 1280, "nothing is wider than the window"


def test_the_tables_say_what_the_numbers_are(seen: Seen, report: Report) -> None:
    found = report.numbers
    for load in [*found["closed"], found["open"]]:
        for name in ("answered_per_s", "latency.p50", "latency.p99"):
            low, high = sorted(_field(each, name) for each in load["rounds"])
            shown = f"{number((low + high) / 2)}\n{number(low)}–{number(high)}"
            assert seen.cells[f"{load['name']}: {name}"] == shown
    assert seen.steps == len(found["ramp"])
    assert f"{number(found['knee']['rate_per_s'])} requests/s" in seen.text
    assert found["command"] in seen.text
    assert found["machine"]["packages"]["onnxruntime"] in seen.text


def _field(round: dict[str, Any], name: str) -> float:
    value: Any = round
    for part in name.split("."):
        value = value[part]
    return float(value)


# --- Beside an earlier run


def test_a_slower_model_is_a_regression(report: Report, tmp_path: Path) -> None:
    write_digits(tmp_path, delay_us=12_000)
    earlier = report.directory / "report.json"
    with serving(tmp_path) as server:
        finished = measure(
            *("--rounds", "1", "--url", f"http://{server.http}", "--baseline", earlier),
            *("--max-regression", "30%", "--out", tmp_path / "out"),
        )
    print(finished.stdout, finished.stderr)
    assert finished.returncode == 1, finished.stderr
    [summary] = finished.stderr.strip().splitlines()[-1:]
    for worse in ("closed, 1 client: throughput -", "closed, 1 client: p50 +"):
        assert worse in summary
    now = json.loads((tmp_path / "out/report.json").read_text())
    assert now["open"]["rate_per_s"] == report.numbers["open"]["rate_per_s"]
    assert "Beside the earlier run" in (tmp_path / "out/report.html").read_text()


def measured(value: float, least: float, most: float, unit: str = "ms") -> dict[str, Any]:
    more = unit == "requests/s"
    return {
        "value": value,
        "least": least,
        "most": most,
        "unit": unit,
        "more_is_better": more,
    }


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (measured(10, 9, 11), measured(10.9, 10.8, 11), "same"),
        (measured(10, 9, 11), measured(12, 11.8, 12.2), "worse"),
        (measured(10, 9, 13), measured(12, 11.8, 12.2), "within noise"),
        (measured(10, 9, 11), measured(12, 9.5, 12.2), "within noise"),
        (measured(10, 9, 11), measured(8, 7.8, 8.2), "better"),
        (measured(10, 9, 11, "requests/s"), measured(8, 7, 8.5, "requests/s"), "worse"),
        (measured(10, 9, 11, "requests/s"), measured(12, 12, 13, "requests/s"), "better"),
        (measured(0, 0, 0, "share"), measured(0.0005, 0, 0.01, "share"), "same"),
        (measured(0, 0, 0, "share"), measured(0.02, 0, 0.03, "share"), "worse"),
    ],
)
def test_verdicts(old: dict[str, Any], new: dict[str, Any], verdict: str) -> None:
    row, gone = compare({"load": old, "gone": old}, {"load": new, "added": new}, 0.1)
    assert (gone.name, gone.verdict) == ("gone", "worse")
    assert (row.name, row.verdict) == ("load", verdict)


# --- Mistakes


def mistaken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str | Path
) -> str:
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, options)])
    with pytest.raises(SystemExit) as raised:
        command.main()
    assert raised.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_mistakes_are_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: RunningServer,
    tmp_path: Path,
) -> None:
    def told(*options: str | Path) -> str:
        return mistaken(monkeypatch, capsys, *options)

    assert "--model: invalid choice: 'letters'" in told("--model", "letters")
    url = f"http://{server.http}"
    assert told("--model", "translator", "--url", url).endswith(
        "the server does not serve translator (status 400)"
    )
    nowhere = told("--model", "digits", "--url", "http://127.0.0.1:9")
    assert "--url http://127.0.0.1:9: no server answers there" in nowhere
    assert "expected such as http://localhost:8000" in told("--model", "digits", "--url", "digits")
    assert "--front openai: expected one of v2_http, v2_grpc, task for digits" in told(
        "--model", "digits", "--front", "openai"
    )
    assert "there is no digits in it" in told("--model", "digits", "--model-repository", tmp_path)
    assert "No such file or directory" in told("--model", "digits", "--baseline", tmp_path / "no")
    (tmp_path / "other.json").write_text('{"format": 0}')
    assert "expected a report.json of format 1" in told(
        "--model", "digits", "--baseline", tmp_path / "other.json"
    )


def test_only_like_is_compared_with_like(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    report: Report,
    tmp_path: Path,
) -> None:
    def told(model: str, **changes: Any) -> str:
        (tmp_path / "old.json").write_text(json.dumps(report.numbers | changes))
        options = (
            "--clients",
            "1",
            "4",
            "--p99-bound-ms",
            "400",
            "--baseline",
            tmp_path / "old.json",
        )
        return mistaken(monkeypatch, capsys, "--model", model, *options)

    assert "its model is 'digits', expected 'translator'" in told("translator")
    assert "its front is 'task', expected 'v2_http'" in told("digits", front="task")
    machine = report.numbers["machine"]
    assert "its cpu is 'Z80'" in told("digits", machine=machine | {"cpu": "Z80"})


def test_a_model_that_answers_wrongly_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It has the tensors of digits, and knows nothing."""
    config = (SHIPPED / "digits/config.pbtxt").read_text()
    fake = config.replace('"onnxruntime"', '"fake"').replace("dims: [ 10 ]", "dims: [ 1, 8, 8 ]")
    fake = re.sub(r"\n  label_filename.*|parameters \{(.|\n)*", "", fake)
    write_config(tmp_path, "digits", fake)
    (tmp_path / "digits/1").mkdir()
    with serving(tmp_path) as server:
        told = mistaken(monkeypatch, capsys, "--model", "digits", "--url", f"http://{server.http}")
    assert re.search(r"digits is right about \d+ of 128 inputs whose answer is known", told)


# --- Locust's users

USERS = """
import json, sys
sys.argv = ["locust"]
import locust, users  # In this order: locust changes how Python waits.
from locust.env import Environment

http_port, grpc_port = {http_port}, {grpc_port}
environment = Environment(host=f"http://127.0.0.1:{{http_port}}")
environment.parsed_options = type("Options", (), {{"grpc_port": grpc_port}})
users.MixedUser.host = environment.host
environment.create_local_runner()
user = users.MixedUser(environment)
user.on_start()
for task in user.tasks:
    task(user)
user.on_stop()
stats = environment.stats
rows = [[*key, row.num_requests, row.num_failures] for key, row in stats.entries.items()]
print(json.dumps([rows, [error.error for error in stats.errors.values()]], default=str))
"""
"""A user of locust that does each of its tasks once."""


def run_users(server: RunningServer) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Requests and failures by row, and what failed."""
    script = USERS.format(http_port=server.http_port, grpc_port=server.grpc_port)
    finished = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'loadtests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    rows, errors = json.loads(finished.stdout.splitlines()[-1])
    return {name: (requests, failures) for name, _, requests, failures in rows}, errors


def test_users_ask_every_model_through_every_front(shipped: RunningServer) -> None:
    rows, errors = run_users(shipped)
    assert errors == []
    fronts = {f"{model.name} {front}" for model in MODELS.values() for front in model.fronts}
    fronts.add("spoken-numbers-live realtime")
    streams = {"translator stream", "digits-diffusion stream", "spoken-numbers-live realtime"}
    parts = {f"{name}: {part}" for name in streams for part in ("first event", "between events")}
    assert set(rows) == fronts | parts
    for name in fronts:
        assert rows[name] == (1, 0)
    # Of a picture's twenty steps each is an event.
    assert rows["digits-diffusion stream: between events"] == (19, 0)
