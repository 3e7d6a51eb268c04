"""Calls that only holders of a key may make, and those that nobody may make without one."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from serving.errors import OperatorError, Restricted

GROUPS = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)
"""What Triton calls the parts of the protocol that can be restricted."""


@dataclass(frozen=True)
class Restrictions:
    """Which groups of calls need a header, and the value that it must have.

    With `guard_management`, calls that change the server are refused unless their group has a key.
    """

    flag: str
    keys: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Group -> header and its value."""
    guard_management: bool = False

    def check(
        self, group: str, header: Callable[[str], str | None], *, changes: bool = False
    ) -> None:
        """Let a call pass, or raise `Restricted`. `header` looks a lower-case name up.

        `changes` says that the call changes what the server does for others.
        """
        if group in self.keys:
            name, value = self.keys[group]
            given = header(name.lower()) or ""
            if not hmac.compare_digest(given.encode(), value.encode()):
                raise Restricted(f"This API is restricted, expecting header '{name}'")
        elif changes and self.guard_management:
            raise Restricted(
                "this server can be reached from other machines, so this call needs a key, which"
                f" its operator can set with {self.flag}={group}:<key>=<value>"
            )


def parse(flag: str, values: Iterable[str], header_prefix: str = "") -> Restrictions:
    """Read values of the form `group,group:key=value`. Raises `OperatorError`."""
    keys: dict[str, tuple[str, str]] = {}
    for text in values:
        groups, colon, rest = text.partition(":")
        key, equals, value = (part.strip() for part in rest.partition("="))
        if not (colon and equals and key and value and text.isascii()):
            raise OperatorError(
                f"{flag} expects <group>,<group>:<key>=<value> in ASCII,"
                f" got {groups + colon + key!r}"
            )
        for group in (part.strip() for part in groups.split(",")):
            if group not in GROUPS:
                raise OperatorError(
                    f"{flag}: unknown group {group!r}; expected one of {', '.join(GROUPS)}"
                )
            if group in keys:
                raise OperatorError(f"{flag}: the group {group!r} is restricted twice")
            keys[group] = (header_prefix + key, value)
    return Restrictions(flag, keys)
