"""The commands that make a model: train, export, quantize, publish."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from training.parity import ParityReport
    from training.runs import RunDirectory
    from training.tasks import Task
    from training.workload import Workload

# torch, scikit-learn and matplotlib take seconds to import, so each command imports what it needs
# when it runs, and --help answers at once.

RUN_DIR = click.argument("run_dir", type=click.Path(path_type=Path))
DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Where the run's own data are now, if they moved.",
)


@click.command(short_help="Train a model and report how good it is.")
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where everything is written.  [default: runs/ and the recipe's name]",
)
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir where it stopped.")
@click.option("--tiny", is_flag=True, help="Seconds instead of minutes, to see that it works.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Your own data, in the form that the recipe takes.",
)
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="GPUs, or processes on the CPU, that share each batch.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Tell Prometheus there how the run is going, for as long as it trains.",
)
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="The address of that port.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace one setting of the recipe; may be repeated.",
)
def train(
    recipe: str,
    run_dir: Path | None,
    resume: bool,
    tiny: bool,
    data: Path | None,
    devices: int,
    metrics_port: int | None,
    metrics_host: str,
    settings: tuple[str, ...],
) -> None:
    """Train the model that RECIPE describes.

    \b
    digits           tells pictures apart: handwritten digits, or --data with a folder for each
                     class
    digits-diffusion draws digits, or --data with a folder for each class
    spoken-numbers   writes down what is said: numbers, dates and commands, or --data with a CSV
                     file of the columns path, text and, if there is one, voice
    translator       translates phrases: English to German, French and Spanish, or --data with a
                     file of tab-separated columns source, target, language
    writer           goes on with a text: Python code, or --data with a folder of .txt files

    The settings are printed before training starts; each can be replaced with --set. A run that
    was stopped, however roughly, continues with --resume and ends with the same weights.

    \b
    Examples:
      slipway train digits
      slipway train digits --set optimizer.learning_rate=0.002 --set epochs=80
      slipway train digits --data flowers/ --run-dir runs/flowers --set data.height=64 \\
          --set data.width=64
      slipway train digits-diffusion --data leaves/ --run-dir runs/leaves --set data.mode=L
      slipway train spoken-numbers --set model.architecture=live --run-dir runs/live
      slipway train translator --data corpus.tsv --run-dir runs/corpus --set epochs=20
      slipway train writer --data letters/ --run-dir runs/letters
    """
    from training.recipe import override
    from training.recipes import find_recipe

    chosen = override(find_recipe(recipe)(tiny=tiny, own_data=data is not None), settings)
    click.echo(chosen.text() + "\n")

    from training.metrics import Endpoint
    from training.runs import Origin, RunDirectory
    from training.tasks import find_task
    from training.trainer import fit

    run = RunDirectory(run_dir or Path("runs", recipe))
    workload = find_task(chosen.task).open(chosen, data)
    origin = Origin(
        command=_train_command(recipe, run.path, tiny, data, devices, settings),
        directory=str(data.resolve()) if data else None,
        data_hash=workload.data_hash,
        split_hash=workload.split.hash,
    )
    run.begin(chosen, origin, resume=resume)
    scraped = Endpoint(metrics_host, metrics_port, run.path.name) if metrics_port else None
    state = fit(workload, run, devices, scraped)
    report = workload.report(run, state.history)
    report.save(run.report)

    click.echo("\n" + "\n".join(report.summary()))
    click.echo(f"made {run.path}: recipe, metrics, curves, checkpoint, report")
    click.echo(f"next: slipway export {run.path}")


@click.command(short_help="Turn a trained model into a graph, and prove them equal.")
@RUN_DIR
@DATA
def export(run_dir: Path, data: Path | None) -> None:
    """Export the model in RUN_DIR to ONNX and compare the two, as served.

    Writes RUN_DIR/export/float32 with the graph and its parity report. Fails, naming the check,
    if the graph is not the model.

    \b
    Example:
      slipway export runs/digits
    """
    from training.runs import RunDirectory

    run = RunDirectory(run_dir)
    task, workload = _reopen(run, data)
    parity = task.export(run, workload)
    _tell(parity)
    click.echo(f"made {run.export(parity.precision)}")
    click.echo(f"next: slipway publish {run.path} --model-repository model_repo")


@click.command(short_help="Make the exported graph smaller, with eight-bit integers.")
@RUN_DIR
@DATA
def quantize(run_dir: Path, data: Path | None) -> None:
    """Quantise the float32 export in RUN_DIR to int8, and measure what it costs and gains.

    Calibrated on training pictures. Writes RUN_DIR/export/int8 with a parity report of its own.
    Fails if more held-out accuracy is lost than the recipe accepts.

    \b
    Example:
      slipway quantize runs/digits
    """
    from training.runs import RunDirectory

    run = RunDirectory(run_dir)
    task, workload = _reopen(run, data)
    parity = task.quantize(run, workload)
    _tell(parity)
    click.echo(f"made {run.export(parity.precision)}")
    click.echo(f"next: slipway publish {run.path} --model-repository model_repo --precision int8")


@click.command(short_help="Put an exported model into a model repository.")
@RUN_DIR
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Made if it is not there.",
)
@click.option("--name", help="The model's name.  [default: the recipe's]")
@click.option(
    "--precision", type=click.Choice(["float32", "int8"]), default="float32", show_default=True
)
def publish(run_dir: Path, model_repository: Path, name: str | None, precision: str) -> None:
    """Publish the export in RUN_DIR as the model's next version.

    Refused without a passing parity report, and when the model's config.pbtxt promises other
    inputs, outputs or labels than this version has.

    \b
    Example:
      slipway publish runs/digits --model-repository model_repo
    """
    from training.publish import publish as publish_run
    from training.runs import RunDirectory

    version = publish_run(RunDirectory(run_dir), model_repository, name, precision)
    click.echo(f"made {version}")
    click.echo(f"next: slipway serve --model-repository {model_repository}")


def _reopen(run: RunDirectory, data: Path | None) -> tuple[Task, Workload]:
    """A finished run's task, and its recipe with the data that it was trained on."""
    from training.errors import RunError
    from training.tasks import find_task

    recipe, origin = run.load()
    task = find_task(recipe.task)
    directory = data or (Path(origin.directory) if origin.directory else None)
    workload = task.open(recipe, directory)
    if workload.data_hash != origin.data_hash:
        raise RunError(
            f"the data{f' in {directory}' if directory else ''} are not those that {run.path}"
            " was trained on; restore them, or say where they are with --data"
        )
    return task, workload


def _tell(parity: ParityReport) -> None:
    for check in parity.checks:
        if isinstance(check.measured, str):
            click.echo(f"passed  {check.name}")
        else:
            limit = _short(check.limit)
            click.echo(f"passed  {check.name}: {_short(check.measured)}, limit {limit}")
    for name, value in parity.measurements.items():
        click.echo(f"        {name}: {_short(value)}")


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _train_command(
    recipe: str,
    run_dir: Path,
    tiny: bool,
    data: Path | None,
    devices: int,
    settings: tuple[str, ...],
) -> str:
    """The command line that makes this run, as its card shows it."""
    from training.runs import shown

    words = ["slipway", "train", recipe, "--run-dir", shown(run_dir)]
    words += ["--tiny"] if tiny else []
    words += ["--data", shown(data)] if data else []
    words += ["--devices", str(devices)] if devices > 1 else []
    words += [word for setting in settings for word in ("--set", setting)]
    return shlex.join(words)
