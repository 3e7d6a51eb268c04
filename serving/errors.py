"""Everything that can go wrong, named once.

SlipwayError
├── RequestError              the caller must change something
│   ├── InvalidRequest        a field is wrong; the message names it
│   │   └── Malformed         not even the protocol's grammar (Triton calls that its own fault)
│   ├── AlreadyExists         the name is taken
│   ├── Restricted            this call needs a key, and it was not given
│   ├── TooLarge              over a size limit
│   ├── NotFound              no such model or version
│   └── Unsupported           the protocol has it, this server or model does not
├── Unserved                  a good request got no answer; it may be sent again
│   ├── Overloaded            refused: the queue is full
│   ├── Expired               its time ran out while it waited
│   ├── Cancelled             the caller went away
│   └── Unavailable           the model or the server is not ready
├── InferenceFailed           the model failed while it computed
├── LoadFailed                a model that was asked for cannot be loaded; the message says why
│   └── NotInRepository       nothing loadable is there under that name
└── OperatorError             the person who runs the server must change something
    ├── ConfigError           config.pbtxt: file, line, field
    └── ModelLoadError        a model version that cannot be loaded

Codes are ours. Each front owns one table from code to its own status.
"""

from __future__ import annotations

from typing import ClassVar


def shown(value: object) -> str:
    """How a message quotes a value that a caller sent: briefly, whatever it is."""
    if isinstance(value, str | int | float | bool | None):
        text = repr(value[:40] if isinstance(value, str) else value)
        return text if len(text) <= 60 else text[:60] + "…"
    if isinstance(value, dict):
        return "an object"
    return "an array" if isinstance(value, list) else type(value).__name__


class SlipwayError(Exception):
    """Base of all; `code` is what fronts map and metrics count."""

    code: ClassVar[str] = "internal"


class RequestError(SlipwayError):
    code = "invalid_argument"
    field: str | None = None
    """The field of the request that is meant, where a front has a place to say so."""


class InvalidRequest(RequestError):
    code = "invalid_argument"


class Malformed(InvalidRequest):
    code = "malformed"


class AlreadyExists(RequestError):
    code = "already_exists"


class Restricted(RequestError):
    code = "restricted"


class TooLarge(RequestError):
    code = "too_large"


class NotFound(RequestError):
    code = "not_found"


class Unsupported(RequestError):
    code = "unsupported"


class Unserved(SlipwayError):
    code = "unavailable"


class Overloaded(Unserved):
    code = "overloaded"


class Expired(Unserved):
    code = "expired"


class Cancelled(Unserved):
    code = "cancelled"


class Unavailable(Unserved):
    code = "unavailable"


class InferenceFailed(SlipwayError):
    """The message is an engine's, so it is logged and not told; `where` may be told."""

    code = "internal"

    def __init__(self, message: str, *, where: str = ""):
        super().__init__(message)
        self.where = where


class LoadFailed(SlipwayError):
    code = "load_failed"


class NotInRepository(LoadFailed):
    code = "not_in_repository"


class OperatorError(SlipwayError):
    code = "internal"


class ConfigError(OperatorError):
    pass


class ModelLoadError(OperatorError):
    pass
