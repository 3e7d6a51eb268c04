"""Threads that share the work of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait


class Crew:
    """The caller's thread and some helpers."""

    def __init__(self, threads: int):
        self._helpers = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="step-part")

    def run(self, calls: Sequence[Callable[[], None]]) -> None:
        """Run calls at the same time, the first on the caller's thread and the others on helpers.

        Raises what one of them raised, once all have ended.
        """
        first, *others = calls
        helpers = [self._helpers.submit(call) for call in others]
        try:
            first()
        finally:
            wait(helpers)
        for helper in helpers:
            helper.result()

    def close(self) -> None:
        self._helpers.shutdown()


def parts(rows: int, most: int, fewest_rows: int) -> Iterator[tuple[int, int]]:
    """Up to `most` spans of like size that make up the first rows; none, if there are no rows."""
    count = max(min(1, rows), min(most, rows // fewest_rows))
    for part in range(count):
        yield rows * part // count, rows * (part + 1) // count
