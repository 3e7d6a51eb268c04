from __future__ import annotations

from collections.abc import Iterator
from time import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from serving.fronts import v2_statistics
from serving.observability import totals
from serving.observability.metrics import Metrics, MetricsConfig
from serving.observability.totals import ModelMetrics, Outcome, Spread
from serving.types import Run, Stamps

NS = 1_000_000_000


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(totals, "monotonic", clock)
    return clock


def answered() -> Stamps:
    return Stamps(
        received=1000, queued=1001, batched=1003, started=1003.25, computed=1004, answered=1004.5
    )


def stats(metrics: ModelMetrics) -> dict[str, Any]:
    return v2_statistics._totals(metrics)


def duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * NS)}


def test_an_answered_request_in_its_stages(clock: Clock) -> None:
    metrics = ModelMetrics()
    metrics.ended(Outcome.ANSWERED, answered())
    metrics.ran(Run(4, 1003, 1003.25, 1004, 1004.5))
    shown = stats(metrics)
    assert shown["inference_count"] == 4
    assert shown["execution_count"] == 1
    assert shown["inference_stats"] == {
        "success": duration(1, 4.5),
        "fail": duration(0, 0),
        "queue": duration(1, 2),
        "compute_input": duration(1, 0.25),
        "compute_infer": duration(1, 0.75),
        "compute_output": duration(1, 0.5),
        "cache_hit": duration(0, 0),
        "cache_miss": duration(0, 0),
    }
    assert [batch["batch_size"] for batch in shown["batch_stats"]] == [4]
    assert shown["response_stats"] == {}


def test_the_last_inference_is_when_a_request_came_in_that_reached_the_queue(clock: Clock) -> None:
    metrics = ModelMetrics()
    clock.now = 1010.0
    metrics.ended(Outcome.INVALID, Stamps())
    metrics.ended(Outcome.INVALID, Stamps(received=1009))
    cached = Stamps(received=1009, looked_up=1009.5, answered=1009.5, cached=True)
    metrics.ended(Outcome.ANSWERED, cached)
    assert stats(metrics)["last_inference"] == 0
    metrics.ended(Outcome.ANSWERED, answered())
    first = stats(metrics)["last_inference"]
    assert abs(first - (time() - 10) * 1e3) < 1000
    metrics.ended(Outcome.EXPIRED, Stamps(received=1005, queued=1005))
    last = stats(metrics)["last_inference"]
    assert 4000 < last - first < 6000
    # One that came in before it but took longer.
    metrics.ended(Outcome.ANSWERED, answered())
    assert stats(metrics)["last_inference"] == last


def streamed(clock: Clock, outcome: Outcome, responses: int = 2) -> ModelMetrics:
    """Each response takes 1 s to compute and 8 s to be read; the end takes 2 s."""
    metrics = ModelMetrics()
    stamps = Stamps(received=990, queued=991, batched=clock.now)
    watch = metrics.responses(stamps)
    for _ in range(responses):
        clock.now += 1
        watch.came()
        clock.now += 8
        watch.asked()
    clock.now += 2
    watch.ended(outcome)
    return metrics


NONE = duration(0, 0)


@pytest.mark.parametrize(
    ("outcome", "last"),
    [
        (
            Outcome.ANSWERED,
            {"compute_infer": duration(1, 2), "empty_response": duration(1, 2)},
        ),
        (Outcome.FAILED, {"compute_infer": duration(1, 2), "fail": duration(1, 2)}),
        (Outcome.EXPIRED, {"compute_infer": duration(1, 2), "fail": duration(1, 2)}),
        (Outcome.CANCELLED, {"cancel": duration(1, 2)}),
    ],
)
def test_responses_are_told_apart_by_their_position(
    clock: Clock, outcome: Outcome, last: dict[str, Any]
) -> None:
    nothing = dict.fromkeys(
        ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel"), NONE
    )
    response = nothing | {
        "compute_infer": duration(1, 1),
        "compute_output": duration(1, 0),
        "success": duration(1, 1),
    }
    shown = stats(streamed(clock, outcome))["response_stats"]
    assert shown == {"0": response, "1": response, "2": nothing | last}


def test_a_stream_without_responses(clock: Clock) -> None:
    shown = stats(streamed(clock, Outcome.ANSWERED, responses=0))["response_stats"]
    assert shown["0"]["empty_response"] == duration(1, 2)


def test_a_stream_whose_turn_never_came_has_no_responses(clock: Clock) -> None:
    metrics = ModelMetrics()
    metrics.responses(Stamps(received=990, queued=991)).ended(Outcome.EXPIRED)
    assert stats(metrics)["response_stats"] == {}


def test_a_stream_that_is_closed_while_it_is_read_took_no_time_to_cancel(clock: Clock) -> None:
    metrics = ModelMetrics()
    watch = metrics.responses(Stamps(received=990, queued=991, batched=clock.now))
    watch.came()
    clock.now += 8
    watch.ended(Outcome.CANCELLED)
    assert stats(metrics)["response_stats"]["1"]["cancel"] == duration(1, 0)


def test_responses_without_end_are_not_memory_without_end(clock: Clock) -> None:
    metrics = streamed(clock, Outcome.ANSWERED, responses=3000)
    assert len(metrics.by_position) == 1001
    assert sum(at.success.count for at in metrics.by_position.values()) == 3000


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_the_first_response_is_a_histogram(clock: Clock) -> None:
    metrics = Metrics(MetricsConfig(histogram_latencies=True))
    watch = metrics.model("m", "1").responses(Stamps(received=999.8, batched=999.9))
    watch.came()
    watch.came()
    name = "nv_inference_first_response_histogram_ms"
    buckets = {
        bound: sample(metrics, f"{name}_bucket", model="m", version="1", le=bound)
        for bound in ("100.0", "500.0", "2000.0", "5000.0", "+Inf")
    }
    assert buckets == {"100.0": 0, "500.0": 1, "2000.0": 1, "5000.0": 1, "+Inf": 1}
    assert sample(metrics, f"{name}_sum", model="m", version="1") == pytest.approx(200)


def test_a_version_that_is_forgotten_is_shown_no_more() -> None:
    metrics = Metrics(MetricsConfig(histogram_latencies=True))
    metrics.model("kept", "1")
    before = len(list(lines(metrics)))
    for number in range(100):
        metrics.model(f"m{number}", "1").ended(Outcome.ANSWERED, answered())
        metrics.loaded(f"m{number}", successfully=True)
        metrics.forget(f"m{number}", ["1"])
    metrics.forget("nobody", ["1"])
    assert len(list(lines(metrics))) == before


def lines(metrics: Metrics) -> Iterator[Any]:
    for family in metrics.registry.collect():
        if family.name.startswith(("nv_inference", "slipway")):
            yield from family.samples


@given(st.lists(st.floats(0, 100)))
def test_a_spread_is_what_prometheus_makes_of_the_same_values(values: list[float]) -> None:
    registry = CollectorRegistry()
    theirs = Histogram("h", "", buckets=(0.5, 1, 2.5, 50), registry=registry)
    ours = Spread((0.5, 1, 2.5, 50))
    for value in values:
        theirs.observe(value)
        ours.add(value)
    assert ours.sum == registry.get_sample_value("h_sum")
    for bound, count, _ in ours.cumulative():
        le = "+Inf" if bound == float("inf") else str(float(bound))
        assert count == registry.get_sample_value("h_bucket", {"le": le})
