"""The statistics extension: a model's running totals, as the protocol's JSON has them."""

from __future__ import annotations

from typing import Any

from serving.errors import InvalidRequest, NotFound
from serving.observability.totals import ModelMetrics, ResponseTotals, Total
from serving.server import Server


def statistics(server: Server, name: str = "", version: str = "") -> dict[str, Any]:
    """One version's totals, a model's, or every one's. Raises `InvalidRequest`."""
    try:
        found = server.statistics(name, version)
    except NotFound:
        raise InvalidRequest(_absent(server, name, version)) from None
    return {
        "model_stats": [
            {"name": model.config.name, "version": model.version, **_totals(metrics)}
            for model, metrics in found
        ]
    }


def _absent(server: Server, name: str, version: str) -> str:
    try:
        server.statistics(name)
    except NotFound:
        return f"requested model '{name}' is not available"
    return f"requested model version is not available for model '{name}'"


def _totals(metrics: ModelMetrics) -> dict[str, Any]:
    metrics.settle()
    return {
        "last_inference": metrics.last_inference_ms,
        "inference_count": metrics.rows,
        "execution_count": metrics.runs,
        "inference_stats": {
            "success": _duration(metrics.success),
            "fail": _duration(metrics.fail),
            "queue": _duration(metrics.queue),
            "compute_input": _duration(metrics.compute_input),
            "compute_infer": _duration(metrics.compute_infer),
            "compute_output": _duration(metrics.compute_output),
            "cache_hit": _duration(metrics.cache_hit),
            "cache_miss": _duration(metrics.cache_miss),
        },
        "response_stats": {
            str(position): _response(totals)
            for position, totals in sorted(metrics.by_position.items())
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(totals.compute_input),
                "compute_infer": _duration(totals.compute_infer),
                "compute_output": _duration(totals.compute_output),
            }
            for rows, totals in sorted(metrics.by_rows.items())
        ],
        "memory_usage": [],
    }


def _response(totals: ResponseTotals) -> dict[str, Any]:
    success, fail, empty = totals.success, totals.fail, totals.empty
    computed = Total(
        success.count + fail.count + empty.count, success.seconds + fail.seconds + empty.seconds
    )
    return {
        # What a response took is all the model's; it is handed on as it is.
        "compute_infer": _duration(computed),
        "compute_output": _duration(Total(success.count)),
        "success": _duration(success),
        "fail": _duration(fail),
        "empty_response": _duration(empty),
        "cancel": _duration(totals.cancel),
    }


def _duration(total: Total) -> dict[str, int]:
    return {"count": total.count, "ns": round(total.seconds * 1e9)}
