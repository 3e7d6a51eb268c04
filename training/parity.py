"""What was measured of an export, the limits it had to keep, and the files this is said of."""

from __future__ import annotations

from pathlib import Path

from training.errors import ParityError
from training.record import Record
from training.runs import PARITY_FILE
from training.split import sha256_hex


class Check(Record):
    """One thing measured, and the limit it had to keep."""

    name: str
    measured: float | str
    limit: float | str
    """The most, if it is a number; exactly this, if it is text."""
    passed: bool


class ParityReport(Record):
    precision: str
    checks: tuple[Check, ...]
    measurements: dict[str, float]
    """What is recorded and has no limit."""
    files: dict[str, str]
    """File name -> sha256 of what was checked."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def require(self) -> None:
        """Raises `ParityError` with the first check that failed."""
        for check in self.checks:
            if not check.passed:
                raise ParityError(
                    f"the {self.precision} graph fails the check {check.name!r}:"
                    f" measured {check.measured}, the limit is {check.limit}"
                )


def hash_files(directory: Path) -> dict[str, str]:
    """sha256 of every file but the report itself, which cannot hold its own."""
    return {
        path.name: sha256_hex(path.read_bytes())
        for path in sorted(directory.iterdir())
        if path.name != PARITY_FILE
    }


def equal(name: str, measured: str, limit: str) -> Check:
    return Check(name=name, measured=measured, limit=limit, passed=measured == limit)


def at_most(name: str, measured: float, limit: float) -> Check:
    # Written so that a measurement which is not a number fails.
    return Check(name=name, measured=measured, limit=limit, passed=measured <= limit)
