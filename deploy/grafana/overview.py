"""Is all well, and if not, where? All models together."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.models import units

from deploy.grafana import requests
from deploy.grafana.panels import (
    lines,
    mean,
    number,
    quantile,
    rate,
    rows,
    slipway_dashboard,
    variable,
)

HERE = 'instance=~"$instance"'

TO_MODEL = "/d/slipway-model?var-model=${__field.labels.model}&${__url_time_range}"


def build() -> Dashboard:
    found = slipway_dashboard("overview", "Slipway", "All models of all replicas.")
    found = found.with_variable(variable("instance", "Replica", "slipway_build_info"))
    return _processes(_load(_latency(_traffic(_numbers(found)))))


def _numbers(found: Dashboard) -> Dashboard:
    return (
        found.with_panel(
            number(
                "Replicas up",
                "Processes that answer Prometheus.",
                'sum(up{job="slipway", instance=~"$instance"})',
            )
        )
        .with_panel(
            number(
                "Models ready",
                "Versions that serve, over all replicas.",
                f'count(slipway_model_state{{{HERE}, state="READY"}} == 1)',
            )
        )
        .with_panel(requests.per_second(HERE))
        .with_panel(requests.not_answered(HERE))
        .with_panel(requests.slowest(HERE))
        .with_panel(
            number(
                "In flight",
                "Requests that have come in and not been answered yet.",
                f"sum(slipway_in_flight_requests{{{HERE}}})",
            )
        )
    )


def _traffic(found: Dashboard) -> Dashboard:
    return (
        found.with_row(Row("Objectives and traffic"))
        .with_panel(
            lines(
                "Error budget burn, last hour",
                "1 spends the budget of 30 days in 30 days, 14.4 in two days; 14.4 pages somebody."
                " Objectives: deploy/prometheus/rules/slo.yml.",
                ("model_slo:slipway_burn_rate:1h", "{{model}} {{slo}}"),
                warn_above=14.4,
                link=TO_MODEL,
            )
        )
        .with_panel(
            lines(
                "Requests by model",
                "With every outcome.",
                (rate(requests.REQUESTS, HERE, by="model"), "{{model}}"),
                unit=units.RequestsPerSecond,
                stacked=True,
                link=TO_MODEL,
            )
        )
        .with_panel(requests.by_outcome(HERE))
        .with_panel(requests.by_front(HERE))
        .with_panel(
            lines(
                "Refusals",
                "Requests that got no answer, by the reason that the caller was told, and those for"
                " a model that is not served.",
                (rate("slipway_refusals_total", HERE, by="reason"), "{{reason}}"),
                (rate("slipway_unresolved_requests_total", HERE), "no such model"),
                unit=units.RequestsPerSecond,
            )
        )
        .with_panel(
            rows(
                "Models",
                "What the repositories hold, and in which state it is.",
                f"max by (instance, model, version, state) (slipway_model_state{{{HERE}}} == 1)",
                ["model", "version", "state", "instance"],
            )
        )
    )


def _latency(found: Dashboard) -> Dashboard:
    return (
        found.with_row(Row("Latency"))
        .with_panel(
            lines(
                "99 % of requests are answered within",
                "From the request received to its outputs ready. Dots are single requests, with"
                " their traces.",
                (quantile(0.99, requests.DURATION, HERE, by="model"), "{{model}}"),
                unit=units.Seconds,
                logarithmic=True,
                exemplars=True,
                link=TO_MODEL,
            )
        )
        .with_panel(requests.spread(HERE))
        .with_panel(
            lines(
                "Where the time goes",
                "Mean of each stage, one upon the other: parse until queued, queue until a batch"
                " takes it, gather the batch, compute, scatter the outputs, send.",
                (mean("slipway_stage_duration_seconds", HERE, by="stage"), "{{stage}}"),
                unit=units.Seconds,
                stacked=True,
            )
        )
    )


def _load(found: Dashboard) -> Dashboard:
    waiting = 'nv_inference_pending_request_count{job="slipway", instance=~"$instance"}'
    padding, all_of_it = (
        rate("slipway_padding_total", f"{HERE}{kind}", by="model")
        for kind in (', kind="padding"', "")
    )
    return (
        found.with_row(Row("Load"))
        .with_panel(
            lines(
                "Waiting",
                "Requests in the queues.",
                (f"sum by (model) ({waiting})", "{{model}}"),
                link=TO_MODEL,
            )
        )
        .with_panel(
            lines(
                "Rows that share a run",
                "Mean of each engine's runs; for models that answer in steps, of their steps.",
                (mean("slipway_batch_rows", HERE, by="model"), "{{model}}"),
                (mean("slipway_step_rows", HERE, by="model"), "{{model}}, steps"),
                link=TO_MODEL,
            )
        )
        .with_panel(
            lines(
                "Padding",
                "Share of what is computed that only makes inputs equally long.",
                (f"{padding} / {all_of_it}", "{{model}}"),
                unit=units.PercentUnit,
                highest=1,
                link=TO_MODEL,
            )
        )
    )


def _processes(found: Dashboard) -> Dashboard:
    lag = "slipway_event_loop_lag_seconds"
    return (
        found.with_row(Row("Processes"))
        .with_panel(
            lines(
                "Cores in use",
                "By each replica.",
                (rate("process_cpu_seconds_total", HERE, by="instance"), "{{instance}}"),
            )
        )
        .with_panel(
            lines(
                "Memory",
                "Resident, by each replica.",
                (f"process_resident_memory_bytes{{{HERE}}}", "{{instance}}"),
                unit=units.BytesIEC,
            )
        )
        .with_panel(
            lines(
                "Event loop lag",
                "How late the loop is with what it was to do, 99 % of the time at most. What holds"
                " it up delays every request.",
                (quantile(0.99, lag, HERE, by="instance"), "{{instance}}"),
                unit=units.Seconds,
                warn_above=0.1,
            )
        )
    )
