"""The protocol's trace extension: which requests are traced, and who may change that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

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

Values = dict[str, tuple[str, ...]]


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
        return self.seen % int(self["trace_rate"][0]) == 0 and self._has_count()

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
    nothing is traced.
    """

    def __init__(self, initial: Mapping[str, Sequence[str]] | None = None):
        self._initial: Values = {
            **_DEFAULTS,
            **{name: tuple(value) for name, value in (initial or {}).items()},
        }
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
                _check(name, value)
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
        return bool(self.file) and any(
            scope.is_on for scope in (self._global, *self._models.values())
        )


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
