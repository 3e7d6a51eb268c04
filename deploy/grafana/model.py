"""One model: who asks, how it answers, and what holds it up."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.models import units

from deploy.grafana import requests
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

ONE = 'model="$model", version=~"$version", instance=~"$instance"'
NV = f'job="slipway", {ONE}'
"""For Triton's names, which a Triton that is scraped as well has, too."""


def build() -> Dashboard:
    found = (
        slipway_dashboard("model", "Slipway: one model", "One model, its versions and replicas.")
        .with_variable(variable("model", "Model", "slipway_requests_total", several=False))
        .with_variable(variable("version", "Version", 'slipway_requests_total{model="$model"}'))
        .with_variable(variable("instance", "Replica", "slipway_build_info"))
    )
    return _repository(_batches(_latency(_traffic(_numbers(found)))))


def _numbers(found: Dashboard) -> Dashboard:
    return (
        found.with_panel(
            number(
                "Replicas that serve it",
                "Versions that are ready, over all replicas.",
                f'count(slipway_model_state{{{ONE}, state="READY"}} == 1)',
            )
        )
        .with_panel(requests.per_second(ONE))
        .with_panel(requests.not_answered(ONE))
        .with_panel(
            number(
                "Median",
                "Half of the answered requests took less.",
                quantile(0.5, requests.DURATION, ONE),
                unit=units.Seconds,
            )
        )
        .with_panel(requests.slowest(ONE))
        .with_panel(
            number(
                "Waiting",
                "Requests in the queue.",
                f"sum(nv_inference_pending_request_count{{{NV}}})",
            )
        )
    )


def _traffic(found: Dashboard) -> Dashboard:
    return (
        found.with_row(Row("Traffic"))
        .with_panel(requests.by_outcome(ONE, width=6))
        .with_panel(requests.by_front(ONE, width=6))
        .with_panel(
            lines(
                "Refusals",
                "Requests that got no answer, by the reason that the caller was told.",
                (rate("slipway_refusals_total", ONE, by="reason"), "{{reason}}"),
                unit=units.RequestsPerSecond,
                width=6,
            )
        )
        .with_panel(
            lines(
                "Error budget burn",
                "Over an hour and over six. 14.4 in an hour, or 6 in six, pages somebody.",
                ('model_slo:slipway_burn_rate:1h{model="$model"}', "{{slo}}, 1 h"),
                ('model_slo:slipway_burn_rate:6h{model="$model"}', "{{slo}}, 6 h"),
                warn_above=14.4,
                width=6,
            )
        )
    )


def _latency(found: Dashboard) -> Dashboard:
    stage = "slipway_stage_duration_seconds"
    computed = rate(f"{stage}_count", f'{ONE}, stage="compute"', by="front")
    return (
        found.with_row(Row("Latency of answered requests"))
        .with_panel(
            lines(
                "Answered within",
                "From received to outputs ready, by this share of the requests. Dots are single"
                " requests, with their traces.",
                *quantiles(requests.DURATION, ONE),
                unit=units.Seconds,
                exemplars=True,
                width=6,
            )
        )
        .with_panel(requests.spread(ONE, width=6))
        .with_panel(
            lines(
                "Where the time goes",
                "Mean of each stage, one upon the other.",
                (mean(stage, ONE, by="stage"), "{{stage}}"),
                unit=units.Seconds,
                stacked=True,
                width=6,
            )
        )
        .with_panel(
            lines(
                "Slowest percent of each stage",
                "99 % of the requests spent less in it. They do not add up.",
                (quantile(0.99, stage, ONE, by="stage"), "{{stage}}"),
                unit=units.Seconds,
                width=6,
            )
        )
        .with_panel(
            lines(
                "Mean by front",
                "From received to handed to the transport: all stages together.",
                (
                    f"{rate(f'{stage}_sum', ONE, by='front')} / {computed}",
                    "{{front}}",
                ),
                unit=units.Seconds,
                width=6,
            )
        )
        .with_panel(
            lines(
                "In the queue",
                "From queued to taken into a batch, by this share of the requests.",
                *quantiles("slipway_queue_duration_seconds", ONE),
                unit=units.Seconds,
                width=6,
            )
        )
        .with_panel(
            lines(
                "In the engine",
                "The run that a request was part of, by this share of the requests.",
                *quantiles("slipway_compute_duration_seconds", ONE),
                unit=units.Seconds,
                width=6,
            )
        )
        .with_panel(
            lines(
                "Queue",
                "Requests that wait, and how many may; no line where there is no bound.",
                (f"sum by (instance) (nv_inference_pending_request_count{{{NV}}})", "waiting"),
                (f"sum by (instance) (slipway_queue_capacity{{{ONE}}})", "may wait"),
                width=6,
            )
        )
    )


def _batches(found: Dashboard) -> Dashboard:
    padding, all_of_it = (
        rate("slipway_padding_total", f"{ONE}{kind}") for kind in (', kind="padding"', "")
    )
    return (
        found.with_row(Row("Batches"))
        .with_panel(
            heat(
                "Rows of a run",
                "How many rows the engine computed at once.",
                "slipway_batch_rows",
                ONE,
                unit="none",
                width=6,
            )
        )
        .with_panel(
            lines(
                "Mean rows of a run",
                "1 means that nobody shares: no load, or no dynamic_batching.",
                (mean("slipway_batch_rows", ONE), "rows"),
                width=6,
            )
        )
        .with_panel(
            lines(
                "Rows and runs per second",
                "What the engine gets done.",
                (rate("nv_inference_count", NV), "rows"),
                (rate("nv_inference_exec_count", NV), "runs"),
                width=6,
            )
        )
        .with_panel(
            lines(
                "Padding",
                "Share of what is computed that only makes inputs equally long.",
                (f"{padding} / {all_of_it}", "padding"),
                unit=units.PercentUnit,
                highest=1,
                width=6,
            )
        )
    )


def _repository(found: Dashboard) -> Dashboard:
    return (
        found.with_row(Row("Repository and cache"))
        .with_panel(
            lines(
                "Loads",
                "Loads of the last hour, by result.",
                (
                    "sum by (result) (increase("
                    'slipway_model_loads_total{model="$model", instance=~"$instance"}[1h]))',
                    "{{result}}",
                ),
                width=8,
            )
        )
        .with_panel(
            lines(
                "What the last load took",
                "Warm-up included.",
                (f"nv_model_load_duration_secs{{{NV}}}", "version {{version}}, {{instance}}"),
                unit=units.Seconds,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Response cache",
                "Requests that it answered, and those that it had no answer for.",
                (rate("nv_cache_num_hits_per_model", NV), "hits"),
                (rate("nv_cache_num_misses_per_model", NV), "misses"),
                unit=units.RequestsPerSecond,
                width=8,
            )
        )
    )
