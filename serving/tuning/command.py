"""The command `slipway tune`."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.errors import ConfigError, OperatorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serving.repository import ModelVersion
    from serving.tuning.search import Final
    from serving.tuning.setting import Setting
    from serving.tuning.trial import Trial

MOST_CLIENTS = 1024
_FINAL_STEPS = 4
"""So much longer than in the search are the best settings measured."""


class _Mistake(click.ClickException):
    """What has to be asked otherwise; 1 says that no setting is good enough."""

    exit_code = 2


def _concurrencies(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """Different numbers of clients, the least first."""
    words = value.split(",")
    numbers = sorted({int(word) if _is_number(word) else 0 for word in words})
    if numbers[0] < 1 or numbers[-1] > MOST_CLIENTS:
        raise click.BadParameter(
            f"expected numbers of clients from 1 to {MOST_CLIENTS}, such as 1,8,32, got {value!r}"
        )
    return tuple(numbers)


def _shapes(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Input name -> the sizes of one of its rows."""
    shapes = {}
    for value in values:
        name, _, sizes = value.rpartition(":")
        words = sizes.split(",")
        if not name or not all(_is_number(word) and int(word) for word in words):
            raise click.BadParameter(
                f"expected an input and its sizes, such as x:3,224,224, got {value!r}"
            )
        shapes[name] = tuple(map(int, words))
    return shapes


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) < 10


@click.command(short_help="Measure which settings of a model are best for a latency bound.")
@click.argument("model", metavar="MODEL")
@click.option(
    "--model-repository",
    "repository",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Where MODEL is: DIR/MODEL/config.pbtxt and DIR/MODEL/<version>/.",
)
@click.option(
    "--latency-ms",
    "bound_ms",
    type=click.FloatRange(min=0, min_open=True),
    default=50.0,
    help="99 of 100 requests are to be answered within so many milliseconds.",
)
@click.option(
    "--concurrency",
    "concurrencies",
    callback=_concurrencies,
    default="1,8,32",
    metavar="N,N,…",
    help="Clients that ask at a time, one row each, and ask again when they have their answer.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.02, 600),
    default=2.0,
    help="How long each of the best settings is measured at each concurrency, three times; the"
    " search before gives every setting a quarter of it, once.",
)
@click.option(
    "--shape",
    "shapes",
    callback=_shapes,
    multiple=True,
    metavar="INPUT:N,N,…",
    show_default=False,
    help="The shape of an input, without the batch dimension, as in waveform:16000. Needed where"
    " neither the config, nor its first model_warmup, nor an example beside the graph tells."
    " Repeatable.",
)
@click.option("--write", is_flag=True, help="Change config.pbtxt; otherwise show the change.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/tune"),
    help="Where results.json and a plot of the trade-off are written.",
)
def tune(
    model: str,
    repository: Path,
    bound_ms: float,
    concurrencies: tuple[int, ...],
    seconds: float,
    shapes: dict[str, tuple[int, ...]],
    write: bool,
    out: Path,
) -> None:
    """Measure which settings of MODEL answer most within a latency bound.

    The model is run as the server runs it, without the network, under closed loops of clients.
    Varied are instance_group.count, intra_op_thread_count, and, where the model batches,
    preferred_batch_size and max_queue_delay_microseconds of dynamic_batching, which is only the
    most that a batch waits where no size is preferred. A coarse search
    along each of them is followed by their neighbours; the best three, the best without delay, and
    today's are measured three times more. Chosen is the setting with the most rows a second at the
    largest concurrency whose p99 keeps the bound; of those that are equal within the noise, the
    one with the fewest threads, then with the least delay. Do nothing else on the machine
    meanwhile.

    MODEL must be one graph for ONNX Runtime. With --write its config.pbtxt is changed in place:
    the tuned fields, and nothing else, so that comments stay. Exits with 1 if no setting keeps the
    bound, and with 2 if MODEL cannot be tuned.

    \b
    slipway tune digits --model-repository model_repo --latency-ms 20
    slipway tune digits --model-repository model_repo --latency-ms 20 --write
    """
    try:
        _tune(model, repository, bound_ms, concurrencies, seconds, shapes, write, out)
    except OperatorError as error:
        raise _Mistake(str(error)) from error


def _tune(
    name: str,
    repository: Path,
    bound_ms: float,
    concurrencies: tuple[int, ...],
    seconds: float,
    shapes: dict[str, tuple[int, ...]],
    write: bool,
    out: Path,
) -> None:
    import difflib

    from serving.pbtxt import CONFIG_FILE, read_text
    from serving.repository import Repositories, versions
    from serving.tuning import report, search
    from serving.tuning.files import make_directory, read_text_file, replace_text_file
    from serving.tuning.setting import check_tunable, cores, parse, setting_of, written

    if isnan(bound_ms):
        raise OperatorError("--latency-ms: expected a number above 0, got nan")
    repositories = Repositories([repository])
    repositories.check()
    directory = repositories.find(name)
    path = directory / CONFIG_FILE
    text = read_text_file(path)
    config = read_text(text, directory)
    check_tunable(config)
    version = versions(directory, config)[-1]
    make_directory(out)
    today = setting_of(parse(text))

    explored, finals = _measure(
        version,
        text,
        today,
        bound_ms=bound_ms,
        concurrencies=concurrencies,
        seconds=seconds,
        shapes=shapes,
    )
    best = search.choose(finals, today, bound_ms, cores())
    chosen = best.median.setting if best else None
    trials = report.ordered(explored, finals, today, bound_ms)
    click.echo(report.table(trials, finals, today, chosen))
    circumstances = {"model": name, "latency_ms": bound_ms, "seconds": seconds, "cores": cores()}
    results = out / report.RESULTS_FILE
    report.write_results(results, trials, finals, today, chosen, **circumstances)
    if report.can_plot():
        title = f"{name}: throughput and latency of each setting"
        report.plot(out / report.PLOT_FILE, title, trials, finals, today, chosen, bound_ms)
        click.echo(f"\n{results} has every number, {out / report.PLOT_FILE} shows the trade-off.")
    else:
        click.echo(f"\n{results} has every number; for a plot of the trade-off install matplotlib.")

    if chosen is None:
        raise click.ClickException(_too_slow(finals, bound_ms))
    if chosen == today:
        click.echo(f"Today's setting is the best: {today}. Nothing is to be changed.")
        return
    new = written(text, chosen, directory)
    if write:
        replace_text_file(path, text, new)
        click.echo(f"Written to {path}: {chosen}.")
        return
    click.echo(f"Best is: {chosen}. To put it into {path} use --write, or:\n")
    before, after = text.splitlines(), new.splitlines()
    for line in difflib.unified_diff(before, after, "today", "best", n=1, lineterm=""):
        click.echo(line)


def _measure(
    version: ModelVersion,
    text: str,
    today: Setting,
    *,
    bound_ms: float,
    concurrencies: tuple[int, ...],
    seconds: float,
    shapes: dict[str, tuple[int, ...]],
) -> tuple[list[Trial], list[Final]]:
    """All that was tried, the best first, and what was measured again; under a progress bar."""
    import asyncio
    import sys
    from dataclasses import replace

    import uvloop

    from serving.pbtxt import read_text
    from serving.tuning import search
    from serving.tuning.setting import Axes, cores, written
    from serving.tuning.trial import as_served, measure

    directory = version.directory.parent
    axes = Axes.of(
        today,
        cores=cores(),
        max_batch_size=version.config.max_batch_size,
        concurrency=concurrencies[-1],
        bound_ms=bound_ms,
    )
    with (
        as_served(),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        click.progressbar(
            length=axes.expected_trials + search.ROUNDS * (search.FINALISTS + 2) * _FINAL_STEPS,
            label=f"tuning {version.config.name}",
            file=sys.stderr,
            item_show_func=_shown,
        ) as bar,
    ):

        def trials(settings: Sequence[Setting], for_s: float, steps: int) -> list[Trial]:
            found = []
            for setting in settings:
                bar.update(steps, setting)
                try:
                    candidate = read_text(written(text, setting, directory), directory)
                except ConfigError:  # such as several instances where the order is to be preserved
                    if setting == today:
                        raise
                    continue
                trial = measure(
                    replace(version, config=candidate),
                    setting,
                    concurrencies=concurrencies,
                    seconds=for_s,
                    shapes=shapes,
                )
                found.append(runner.run(trial))
            return found

        explored = search.explore(
            today, axes, bound_ms, lambda some: trials(some, seconds / _FINAL_STEPS, 1)
        )
        finalists = search.finalists(explored, today)
        bar.length = bar.pos + search.ROUNDS * len(finalists) * _FINAL_STEPS
        rounds = [trials(finalists, seconds, _FINAL_STEPS) for _ in range(search.ROUNDS)]
    return explored, [search.summarize(each) for each in zip(*rounds, strict=True)]


def _shown(setting: Setting | None) -> str:
    return "" if setting is None else str(setting)


def _too_slow(finals: Sequence[Final], bound_ms: float) -> str:
    fastest = min((final.median for final in finals), key=lambda trial: trial.fastest.p99_ms)
    return (
        f"no setting keeps p99 within {bound_ms:g} ms; the lowest found is"
        f" {fastest.fastest.p99_ms:.3g} ms, at concurrency {fastest.fastest.concurrency}, with"
        f" {fastest.setting}; nothing is written to the config"
    )
