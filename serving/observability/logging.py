"""Log events with key-values: readable on a terminal, one JSON object a line elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

from serving.errors import InvalidRequest, OperatorError, Unsupported, shown
from serving.observability import request_log

FORMATS = ("default", "ISO8601")
MAX_VERBOSE_LEVEL = 2**32 - 1
"""What the protocol's messages can carry."""


class LogSettings:
    """The protocol's logging extension: what is logged, and how, changeable while it serves.

    `log_format` is how times are written: "default" as the field of an event and to the
    microsecond, "ISO8601" to the second with a "Z". Raises `OperatorError` if `log_file` cannot be
    written.
    """

    def __init__(
        self,
        *,
        log_info: bool = True,
        log_warning: bool = True,
        log_error: bool = True,
        log_verbose_level: int = 0,
        log_format: str = "default",
        log_file: str = "",
    ):
        self._values: dict[str, bool | int | str] = {
            "log_file": log_file,
            "log_info": log_info,
            "log_warning": log_warning,
            "log_error": log_error,
            "log_verbose_level": log_verbose_level,
            "log_format": log_format,
        }
        _configure(self._stamp, self._is_wanted, _open(log_file))
        self._apply_level()

    def get(self) -> dict[str, bool | int | str]:
        """The settings by the protocol's names."""
        return dict(self._values)

    def update(self, changes: Mapping[str, object]) -> None:
        """Change some settings, all or none.

        Raises `InvalidRequest` for a name or value that does not exist, `Unsupported` for the file.
        """
        for name, value in changes.items():
            self._check(name, value)
        self._values.update(changes)  # type: ignore[arg-type]
        self._apply_level()

    def _check(self, name: str, value: object) -> None:
        present = self._values.get(name)
        if present is None:
            raise InvalidRequest(
                f"log setting {shown(name)} is unknown; expected one of {', '.join(self._values)}"
            )
        if name == "log_file":
            raise Unsupported("log settings do not support changing 'log_file'")
        if type(value) is not type(present):
            kind = {bool: "true or false", int: "an integer", str: "a string"}[type(present)]
            raise InvalidRequest(f"log setting {name!r} must be {kind}, got {shown(value)}")
        if isinstance(value, int) and not 0 <= value <= MAX_VERBOSE_LEVEL:
            raise InvalidRequest(
                f"log setting {name!r} must be from 0 to {MAX_VERBOSE_LEVEL}, got {shown(value)}"
            )
        if name == "log_format" and value not in FORMATS:
            raise InvalidRequest(
                f"log setting 'log_format' must be one of {', '.join(FORMATS)}, got {shown(value)}"
            )

    def _apply_level(self) -> None:
        verbose = bool(self._values["log_verbose_level"])
        logging.getLogger("serving").setLevel(logging.DEBUG if verbose else logging.INFO)

    def _is_wanted(self, level: int) -> bool:
        if level >= logging.ERROR:
            return bool(self._values["log_error"])
        if level >= logging.WARNING:
            return bool(self._values["log_warning"])
        return level < logging.INFO or bool(self._values["log_info"])

    def _stamp(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        short = self._values["log_format"] == "ISO8601"
        return (_TO_THE_SECOND if short else _PRECISE)(logger, method, event)


_PRECISE = structlog.processors.TimeStamper(fmt="iso", utc=True)
_TO_THE_SECOND = structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True)


def _configure(
    stamp: structlog.typing.Processor, is_wanted: Callable[[int], bool], stream: TextIO
) -> None:
    """Send our events, and the warnings of libraries, to one stream."""
    on_terminal = stream.isatty()
    # What a function was given when it failed is nobody's to read in a log, so plain tracebacks.
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if on_terminal
        else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        stamp,
    ]
    if not on_terminal:
        shared.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.addFilter(lambda record: is_wanted(record.levelno))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared)
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    request_log.write_to(structlog.get_logger() if on_terminal else _lines(stream, stamp))


def _lines(stream: TextIO, stamp: structlog.typing.Processor) -> Any:
    """Logs an event a line, without the detour by Python's own logging, which takes twice as
    long: too long for something that is logged of every request."""
    return structlog.wrap_logger(
        structlog.BytesLogger(stream.buffer),
        processors=[
            structlog.processors.add_log_level,
            stamp,
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        cache_logger_on_first_use=True,
    )


def _open(log_file: str) -> TextIO:
    if not log_file:
        return sys.stderr
    try:
        return open(log_file, "a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise OperatorError(
            f"--log-file {log_file}: cannot be written: {error.strerror}"
        ) from error
