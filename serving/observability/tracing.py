"""Where single requests spent their time, written to a file in Triton's trace format.

The format and the meaning of the settings are those of Triton's "Server Trace" guide.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import structlog

from serving.errors import InvalidRequest, OperatorError, Unsupported, shown
from serving.types import InferRequest, Stamps

log = structlog.get_logger(__name__)

_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    "trace_file": ("",),
    "trace_mode": ("triton",),
}
_LEVELS = ("OFF", "TIMESTAMPS")
# Setting -> the lowest number it may be.
_LOWEST = {"trace_rate": 1, "trace_count": -1, "log_frequency": 0}
_WRITE_EVERY = 100
"""Traces that are written at a time where `log_frequency` does not say."""
_FLAG_NAMES = {
    "level": "trace_level",
    "rate": "trace_rate",
    "count": "trace_count",
    "log_frequency": "log_frequency",
    "file": "trace_file",
    "mode": "trace_mode",
}

# Triton's name of a moment -> ours.
_MOMENTS: tuple[tuple[str, str], ...] = (
    ("REQUEST_START", "received"),
    ("QUEUE_START", "queued"),
    ("COMPUTE_START", "batched"),
    ("COMPUTE_INPUT_END", "started"),
    ("COMPUTE_OUTPUT_START", "computed"),
    ("COMPUTE_END", "answered"),
    ("REQUEST_END", "answered"),
)


class TraceSettings:
    """The protocol's trace extension: which requests are traced.

    A model without settings of its own has the global ones.
    """

    def __init__(self, initial: Mapping[str, Sequence[str]] | None = None):
        self._initial = {**_DEFAULTS, **{k: tuple(v) for k, v in (initial or {}).items()}}
        self._global = dict(self._initial)
        self._models: dict[str, dict[str, tuple[str, ...]]] = {}
        self.anything_is_traced = self._is_on()

    def get(self, model: str = "") -> dict[str, list[str] | str]:
        """The settings that hold for a model, or the global ones, by the protocol's names."""
        values = {**self._global, **self._models.get(model, {})}
        return {
            name: list(value) if name == "trace_level" else value[0]
            for name, value in values.items()
        }

    def update(self, changes: Mapping[str, Sequence[str] | None], model: str = "") -> None:
        """Change some settings, all or none; None takes a setting back.

        Raises `InvalidRequest` for a value that a setting cannot have, and `Unsupported` for the
        file and the mode, which only the operator chooses. Names that do not exist are ignored, as
        Triton does.
        """
        known = {name: value for name, value in changes.items() if name in _DEFAULTS}
        for name, value in known.items():
            if name in ("trace_file", "trace_mode"):
                raise Unsupported(f"{name} can be set on the command line only")
            if value is not None:
                _check(name, value)
        own = self._models.setdefault(model, {}) if model else self._global
        for name, value in known.items():
            if value is not None:
                own[name] = tuple(value)
            elif model:
                own.pop(name, None)
            else:
                own[name] = self._initial[name]
        self.anything_is_traced = self._is_on()

    def forget(self, model: str) -> None:
        """Drop what was set for a model that is served no more."""
        self._models.pop(model, None)

    def _is_on(self) -> bool:
        return any(
            values.get("trace_level", ("OFF",)) != ("OFF",)
            for values in (self._global, *self._models.values())
        )


class Tracer:
    """Writes the traces of the requests that the settings choose.

    With `log_frequency` N every N traces make a file of their own, `trace_file`.0, .1 and so on;
    with 0 all go into `trace_file`, which is a whole JSON array only once the tracer is closed.
    """

    def __init__(self, settings: TraceSettings):
        self.settings = settings
        self._numbers = itertools.count(1)
        self._seen: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._unwritten: list[dict[str, Any]] = []
        self._files = 0
        self._writer: asyncio.Task[None] | None = None

    def record(self, request: InferRequest, version: str) -> None:
        """Trace a request that has its outcome, if its turn has come."""
        if not self.settings.anything_is_traced:
            return
        model = request.model_name
        settings = self.settings.get(model)
        if settings["trace_level"] == ["OFF"]:
            return
        self._seen[model] += 1
        limit = int(str(settings["trace_count"]))
        if self._seen[model] % int(str(settings["trace_rate"])) or 0 <= limit <= self._taken[model]:
            return
        self._taken[model] += 1
        self._unwritten.append(
            {
                "id": next(self._numbers),
                "model_name": model,
                "model_version": int(version),
                "request_id": request.id,
                "timestamps": _timestamps(request.stamps),
            }
        )
        if len(self._unwritten) >= (int(str(settings["log_frequency"])) or _WRITE_EVERY):
            self._write()

    async def close(self) -> None:
        """Write what is not written yet."""
        if self._unwritten:
            self._write()
        if self._writer is not None:
            await self._writer
        path = self._path()
        if path and self._files and not self._makes_files():
            await asyncio.to_thread(_append, path, b"]")

    def _path(self) -> str:
        return str(self.settings.get()["trace_file"])

    def _makes_files(self) -> bool:
        return self.settings.get()["log_frequency"] != "0"

    def _write(self) -> None:
        traces, self._unwritten = self._unwritten, []
        path, number = self._path(), self._files
        self._files += 1
        if path:
            text = orjson.dumps(traces)
            if self._makes_files():
                path = f"{path}.{number}"
            else:
                text = (b"," if number else b"[") + text[1:-1]
            self._writer = asyncio.create_task(self._write_next(self._writer, path, text))

    async def _write_next(self, before: asyncio.Task[None] | None, path: str, text: bytes) -> None:
        if before is not None:
            await before
        try:
            await asyncio.to_thread(_append, path, text)
        except OSError as error:
            log.error("traces cannot be written", file=path, reason=error.strerror)


def parse_trace_config(values: Sequence[str]) -> TraceSettings:
    """From Triton's `--trace-config`: `[<mode>,]<setting>=<value>`. Raises `OperatorError`."""
    initial: dict[str, list[str]] = {}
    for value in values:
        mode, comma, setting = value.rpartition(",")
        name, equals, chosen = setting.partition("=")
        key = _FLAG_NAMES.get(name.replace("-", "_"))
        if (comma and mode != "triton") or (key == "trace_mode" and chosen != "triton"):
            raise OperatorError(f"--trace-config {value}: the only mode is triton")
        if key is None or not equals:
            raise OperatorError(
                f"--trace-config {value}: expected {', '.join(_FLAG_NAMES)}, then = and a value"
            )
        try:
            _check(key, [chosen])
        except InvalidRequest as error:
            raise OperatorError(f"--trace-config {value}: {error}") from error
        if key == "trace_file":
            try:
                Path(chosen).open("w").close()
            except OSError as error:
                raise OperatorError(
                    f"--trace-config {value}: cannot be written: {error.strerror}"
                ) from error
        initial[key] = [chosen]
    return TraceSettings(initial)


def _append(path: str, text: bytes) -> None:
    with open(path, "ab") as file:
        file.write(text)


def _check(name: str, value: object) -> None:
    """Raises `InvalidRequest` unless it is a list of texts that the setting may have."""
    if not (isinstance(value, Sequence) and not isinstance(value, str)) or not all(
        isinstance(item, str) for item in value
    ):
        raise InvalidRequest(f"trace setting {name!r} must be a string, got {shown(value)}")
    if name == "trace_level":
        for item in value:
            if item not in _LEVELS:
                raise InvalidRequest(
                    f"trace setting 'trace_level' must be one of {', '.join(_LEVELS)},"
                    f" got {shown(item)}"
                )
        if not value or (len(value) > 1 and "OFF" in value):
            raise InvalidRequest("trace setting 'trace_level' must be OFF, or levels without OFF")
    elif len(value) != 1:
        raise InvalidRequest(f"trace setting {name!r} must be one value, got {len(value)}")
    elif name in _LOWEST:
        lowest = _LOWEST[name]
        if not re.fullmatch(r"-?\d{1,18}", value[0], re.ASCII) or int(value[0]) < lowest:
            raise InvalidRequest(
                f"trace setting {name!r} must be an integer of {lowest} or more,"
                f" got {shown(value[0])}"
            )


def _timestamps(stamps: Stamps) -> list[dict[str, Any]]:
    """The moments that were reached, in nanoseconds of the monotonic clock."""
    moments = [(name, getattr(stamps, ours)) for name, ours in _MOMENTS]
    return [{"name": name, "ns": round(at * 1e9)} for name, at in moments if at]
