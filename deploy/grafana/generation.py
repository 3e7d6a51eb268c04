"""Models that answer in steps: tokens, slots, and how fast a stream is."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.models import units

from deploy.grafana.panels import (
    heat,
    lines,
    mean,
    number,
    quantile,
    quantiles,
    rate,
    slipway_dashboard,
    variable,
)

STEPPED = 'model=~"$model", instance=~"$instance"'
BY_MODEL = "{{model}}"


def build() -> Dashboard:
    found = (
        slipway_dashboard(
            "generation",
            "Slipway: generation",
            "Models that answer in steps: texts by tokens, pictures by denoising.",
        )
        .with_variable(variable("model", "Model", "slipway_slots"))
        .with_variable(variable("instance", "Replica", "slipway_build_info"))
    )
    return _slots(_steps(_streams(_numbers(found))))


def _numbers(found: Dashboard) -> Dashboard:
    active, slots = (
        f"sum({name}{{{STEPPED}}})" for name in ("slipway_active_slots", "slipway_slots")
    )
    return (
        found.with_panel(
            number(
                "Tokens per second",
                "Generated; for other models, what they count in: denoised rows.",
                rate("slipway_tokens_total", f'{STEPPED}, kind="made"'),
            )
        )
        .with_panel(
            number(
                "First event",
                "99 % of the streams had it within.",
                quantile(0.99, "slipway_first_event_seconds", STEPPED),
                unit=units.Seconds,
            )
        )
        .with_panel(
            number(
                "Between events",
                "99 % of the events came within.",
                quantile(0.99, "slipway_between_events_seconds", STEPPED),
                unit=units.Seconds,
            )
        )
        .with_panel(
            number(
                "Slots taken",
                "At 100 % whoever comes waits.",
                f"{active} / {slots}",
                unit=units.PercentUnit,
                thresholds=[(0.9, "orange")],
            )
        )
        .with_panel(
            number(
                "Rows of a step",
                "Mean: how many requests share the price of a step.",
                mean("slipway_step_rows", STEPPED),
                decimals=1,
            )
        )
        .with_panel(
            number(
                "Waiting",
                "Requests that have no slot yet.",
                f'sum(nv_inference_pending_request_count{{job="slipway", {STEPPED}}})',
            )
        )
    )


def _streams(found: Dashboard) -> Dashboard:
    first, between = "slipway_first_event_seconds", "slipway_between_events_seconds"
    return (
        found.with_row(Row("What a caller sees"))
        .with_panel(
            lines(
                "Tokens per second",
                "Generated, by model.",
                (rate("slipway_tokens_total", f'{STEPPED}, kind="made"', by="model"), BY_MODEL),
                stacked=True,
                width=6,
            )
        )
        .with_panel(
            lines(
                "First event within",
                "From a streaming request received to its first event, by this share of the"
                " streams.",
                *quantiles(first, STEPPED),
                unit=units.Seconds,
                width=6,
            )
        )
        .with_panel(
            lines(
                "Next event within",
                "From one event of a stream to its next, by this share of the events.",
                *quantiles(between, STEPPED),
                unit=units.Seconds,
                width=6,
            )
        )
        .with_panel(
            heat(
                "Between events",
                "From one event of a stream to its next.",
                between,
                STEPPED,
                unit="s",
                width=6,
            )
        )
    )


def _steps(found: Dashboard) -> Dashboard:
    return (
        found.with_row(Row("Steps"))
        .with_panel(
            lines(
                "A step takes",
                "One iteration of all that run together, by this share of the iterations.",
                *quantiles("slipway_step_duration_seconds", STEPPED),
                unit=units.Seconds,
                width=6,
            )
        )
        .with_panel(
            heat(
                "Rows of a step",
                "How many rows were stepped together.",
                "slipway_step_rows",
                STEPPED,
                unit="none",
                width=6,
            )
        )
        .with_panel(
            lines(
                "Steps per second",
                "Iterations, by model.",
                (rate("slipway_step_duration_seconds_count", STEPPED, by="model"), BY_MODEL),
                width=6,
            )
        )
        .with_panel(
            lines(
                "What is computed",
                "Tokens generated (made), taken in from requests (taken_in), and padding that only"
                " makes them equally long.",
                (rate("slipway_tokens_total", STEPPED, by="kind"), "{{kind}}"),
                stacked=True,
                width=6,
            )
        )
    )


def _slots(found: Dashboard) -> Dashboard:
    return (
        found.with_row(Row("Room"))
        .with_panel(
            lines(
                "Slots",
                "Taken, and how many there are.",
                (f"sum by (model) (slipway_active_slots{{{STEPPED}}})", "{{model}} taken"),
                (f"sum by (model) (slipway_slots{{{STEPPED}}})", "{{model}} in all"),
                width=6,
            )
        )
        .with_panel(
            lines(
                "Waiting",
                "Requests that have no slot yet.",
                (
                    "sum by (model) (nv_inference_pending_request_count"
                    f'{{job="slipway", {STEPPED}}} and on (model) slipway_slots)',
                    BY_MODEL,
                ),
                width=6,
            )
        )
        .with_panel(
            lines(
                "Made room for others",
                "How often a second a running request was put aside for a more urgent one.",
                (rate("slipway_suspensions_total", STEPPED, by="model"), BY_MODEL),
                width=6,
            )
        )
        .with_panel(
            lines(
                "Memory of running requests",
                "Set aside for keys and values, or samples; bounded by memory_mb.",
                (f"sum by (model) (slipway_step_memory_bytes{{{STEPPED}}})", BY_MODEL),
                unit=units.BytesIEC,
                width=6,
            )
        )
    )
