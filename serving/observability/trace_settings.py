"""The protocol's trace extension: which requests are traced, and who may change that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from serving.errors import InvalidRequest, OperatorError, Unsupported, shown

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
_FLAG_NAMES = {
    "level": "trace_level",
    "rate": "trace_rate",
    "count": "trace_count",
    "log_frequency": "log_frequency",
    "file": "trace_file",
    "mode": "trace_mode",
}

_MODES = ("triton", "opentelemetry")

Values = dict[str, tuple[str, ...]]


@dataclass(slots=True)
class Export:
    """What is set for the mode opentelemetry: where spans go, and in what portions."""

    url: str = "http://localhost:4318/v1/traces"
    resource: dict[str, str] = field(default_factory=dict)
    max_queue_size: int = 2048
    """Spans that may wait; further ones are lost."""
    schedule_delay_ms: int = 5000
    max_export_batch_size: int = 512


class Scope:
    """The requests that share settings: those of one model, or of all that have none of their own.

    `own` are the settings that hold for nobody else, `others` where all further ones come from.
    Requests are counted for a scope, and `trace_count` for whose setting it is, as Triton does.
    """

    def __init__(self, name: str, own: Values, others: Scope | None = None):
        self.name = name
        self.own = own
        self._others = others
        self.seen = 0

    def __getitem__(self, setting: str) -> tuple[str, ...]:
        value = self.own.get(setting)
        if value is None:
            assert self._others is not None
            return self._others[setting]
        return value

    @property
    def is_on(self) -> bool:
        return self["trace_level"] != ("OFF",)

    @property
    def log_frequency(self) -> int:
        return int(self["log_frequency"][0])

    def takes_next(self) -> bool:
        """Whether the request that is next is to be traced; if so it counts as traced."""
        if not self.is_on:
            return False
        self.seen += 1
        rate = int(self["trace_rate"][0])
        return rate > 0 and self.seen % rate == 0 and self._has_count()

    def _has_count(self) -> bool:
        if "trace_count" not in self.own and self._others is not None:
            return self._others._has_count()
        left = int(self.own["trace_count"][0])
        if left > 0:
            self.own["trace_count"] = (str(left - 1),)
        return left != 0


class TraceSettings:
    """Which requests are traced, by model.

    What is not set for a model is as it is for all. `trace_count` is how many traces are still to
    be made, and reads so: it counts down, and setting it starts anew. Without a file to write to
    nothing is traced, unless the mode is opentelemetry, for which `export` is.
    """

    def __init__(
        self, initial: Mapping[str, Sequence[str]] | None = None, export: Export | None = None
    ):
        self._initial: Values = {
            **_DEFAULTS,
            **{name: tuple(value) for name, value in (initial or {}).items()},
        }
        self.export = export
        self._global = Scope("", dict(self._initial))
        self._models: dict[str, Scope] = {}
        self.file = self._initial["trace_file"][0]
        self.anything_is_traced = self._is_on()

    def get(self, model: str = "") -> dict[str, list[str] | str]:
        """The settings that hold for a model, or the global ones, by the protocol's names."""
        scope = self.scope(model)
        return {
            name: list(scope[name]) if name == "trace_level" else scope[name][0]
            for name in _DEFAULTS
        }

    def scope(self, model: str) -> Scope:
        """Whose settings hold for a model."""
        return self._models.get(model, self._global)

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
                _check(name, value, export=self.export is not None)
        own = dict(self._models[model].own if model in self._models else ())
        if not model:
            own = dict(self._global.own)
        for name, value in known.items():
            if value is not None:
                own[name] = tuple(value)
            elif model:
                own.pop(name, None)
            else:
                own[name] = self._initial[name]
        if not model:
            self._global.own = own
            self._global.seen = 0
        elif own:
            self._models[model] = Scope(model, own, self._global)
        else:
            self._models.pop(model, None)
        self.anything_is_traced = self._is_on()

    def forget(self, model: str) -> None:
        """Drop what was set for a model that is served no more."""
        self._models.pop(model, None)
        self.anything_is_traced = self._is_on()

    def _is_on(self) -> bool:
        return bool(self.file or self.export) and any(
            scope.is_on for scope in (self._global, *self._models.values())
        )


def parse_trace_config(values: Sequence[str]) -> TraceSettings:
    """From Triton's `--trace-config`: `[<mode>,]<setting>=<value>`. Raises `OperatorError`.

    What is set for a mode that is not chosen has no effect.
    """
    initial: dict[str, list[str]] = {}
    export = Export()
    is_export = any(value.removeprefix("opentelemetry,") == _EXPORTS for value in values)
    for value in values:
        mode, comma, setting = value.partition(",")
        if not comma:
            mode, setting = "", value
        name, equals, chosen = setting.partition("=")
        try:
            if comma and mode not in _MODES:
                raise OperatorError(f"expected the mode {' or '.join(_MODES)}")
            if mode == "opentelemetry" and setting != _EXPORTS:
                _set_export(export, name, chosen)
                continue
            key = _FLAG_NAMES.get(name.replace("-", "_"))
            if key is None or not equals:
                raise OperatorError(f"expected {', '.join(_FLAG_NAMES)}, then = and a value")
            _check(key, [chosen], export=is_export)
            if key == "trace_mode" and chosen not in _MODES:
                raise OperatorError(f"expected the mode {' or '.join(_MODES)}")
            if key == "trace_file":
                Path(chosen).open("w").close()
        except OSError as error:
            raise OperatorError(
                f"--trace-config {value}: cannot be written: {error.strerror}"
            ) from error
        except (InvalidRequest, OperatorError) as error:
            raise OperatorError(f"--trace-config {value}: {error}") from error
        initial[key] = [chosen]
    if export.max_export_batch_size > export.max_queue_size:
        raise OperatorError(
            "--trace-config opentelemetry: bsp_max_export_batch_size is above bsp_max_queue_size"
        )
    return TraceSettings(initial, export if is_export else None)


_EXPORTS = "mode=opentelemetry"
# Triton's name -> ours.
_PORTIONS = {
    "bsp_max_queue_size": "max_queue_size",
    "bsp_schedule_delay": "schedule_delay_ms",
    "bsp_max_export_batch_size": "max_export_batch_size",
}


def _set_export(export: Export, name: str, chosen: str) -> None:
    """Raises `OperatorError` for a setting of the mode opentelemetry that cannot be."""
    if name == "url":
        export.url = chosen if "://" in chosen else f"http://{chosen}"
        if urlsplit(export.url).scheme not in ("http", "https") or not urlsplit(export.url).netloc:
            raise OperatorError("expected a URL such as http://localhost:4318/v1/traces")
    elif name == "resource":
        attribute, equals, value = chosen.partition("=")
        if not (attribute and equals):
            raise OperatorError("expected resource=KEY=VALUE, such as service.name=mine")
        export.resource[attribute] = value
    elif name in _PORTIONS:
        if not re.fullmatch(r"[1-9]\d{0,8}", chosen, re.ASCII):
            raise OperatorError(f"expected a number above 0, got {shown(chosen)}")
        setattr(export, _PORTIONS[name], int(chosen))
    else:
        raise OperatorError(f"expected url, resource, {', '.join(_PORTIONS)}, then = and a value")


def _check(name: str, value: object, *, export: bool) -> None:
    """Raises `InvalidRequest` unless it is a list of texts that the setting may have.

    Where spans are exported a rate of 0 traces only the calls whose callers trace them.
    """
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
        lowest = 0 if export and name == "trace_rate" else _LOWEST[name]
        if not re.fullmatch(r"-?\d{1,18}", value[0], re.ASCII) or int(value[0]) < lowest:
            note = "; 0 needs mode=opentelemetry" if (name, value) == ("trace_rate", ["0"]) else ""
            raise InvalidRequest(
                f"trace setting {name!r} must be an integer of {lowest} or more,"
                f" got {shown(value[0])}{note}"
            )
