"""A real training that goes on for as long as a test looks at it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def endless_training(run: Path, port: int) -> Iterator[None]:
    """A tiny one, whose metrics are at this port. It takes what others leave of the processor."""
    command = ["nice", sys.executable, "-m", "serving", "train", "digits", "--tiny"]
    options = ["--run-dir", str(run), "--metrics-port", str(port), "--set", "epochs=100000"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()
