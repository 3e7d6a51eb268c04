"""Training runs while they last: `slipway train RECIPE --metrics-port 9105`."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.models import units

from deploy.grafana.panels import lines, number, rate, slipway_dashboard, variable

RUN = 'run=~"$run"'
BY_RUN = "{{run}}"


def build() -> Dashboard:
    found = slipway_dashboard(
        "training", "Slipway: training runs", "Runs of slipway train that have a --metrics-port."
    ).with_variable(variable("run", "Run", "slipway_training_epoch"))
    return _machine(_curves(_numbers(found)))


def _numbers(found: Dashboard) -> Dashboard:
    epoch, epochs = f"slipway_training_epoch{{{RUN}}}", f"slipway_training_epochs{{{RUN}}}"
    return (
        found.with_panel(number("Epoch", "From 1.", epoch, width=6))
        .with_panel(
            number(
                "Done",
                "Epochs that are complete, of those that the recipe asks for.",
                f"({epoch} - 1) / {epochs}",
                unit=units.PercentUnit,
                width=6,
            )
        )
        .with_panel(
            number(
                "Examples per second",
                "Over all devices.",
                rate("slipway_training_examples_total", RUN, by="run"),
                width=6,
            )
        )
        .with_panel(
            number(
                "Validation loss",
                "Of the last whole epoch.",
                _measure("validation", 'measure="loss"'),
                width=6,
            )
        )
    )


def _curves(found: Dashboard) -> Dashboard:
    return (
        found.with_row(Row("Curves"))
        .with_panel(
            lines(
                "Loss",
                "In training the mean of the epoch so far, with augmentation and label smoothing,"
                " which validation goes without.",
                (_measure("train", 'measure="loss"'), "{{run}} training"),
                (_measure("validation", 'measure="loss"'), "{{run}} validation"),
                width=12,
            )
        )
        .with_panel(
            lines(
                "Other measures",
                "Such as accuracy; what there is depends on the task.",
                (_measure("train", 'measure!="loss"'), "{{run}} training {{measure}}"),
                (_measure("validation", 'measure!="loss"'), "{{run}} validation {{measure}}"),
                width=12,
            )
        )
        .with_panel(
            lines(
                "Learning rate",
                "Of the last step.",
                (f"slipway_training_learning_rate{{{RUN}}}", BY_RUN),
                unit=units.ScientificNotation,
                width=12,
            )
        )
        .with_panel(
            lines(
                "Steps per second",
                "Slower or none while it validates.",
                (rate("slipway_training_steps_total", RUN, by="run"), BY_RUN),
                width=12,
            )
        )
    )


def _machine(found: Dashboard) -> Dashboard:
    process = 'and on (instance, job) slipway_training_epoch{run=~"$run"}'
    return (
        found.with_row(Row("Processes"))
        .with_panel(
            lines(
                "Cores in use",
                "By the first process of each run.",
                (f"rate(process_cpu_seconds_total[$__rate_interval]) {process}", "{{instance}}"),
                width=12,
            )
        )
        .with_panel(
            lines(
                "Memory",
                "Resident, of the first process of each run.",
                (f"process_resident_memory_bytes {process}", "{{instance}}"),
                unit=units.BytesIEC,
                width=12,
            )
        )
    )


def _measure(part: str, which: str) -> str:
    return f'slipway_training_measure{{{RUN}, part="{part}", {which}}}'
