"""All cases of both protocols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.triton import grpc_cases, http_cases
from tests.triton.wire import Step

EQUAL_DOCUMENTS = (
    "health",
    "metadata",
    "index",
    "shared memory",
    "trace",
    "logging",
    "generate",
)


@dataclass(frozen=True)
class Case:
    name: str
    steps: tuple[Step, ...]
    equal_documents: bool = False
    """What the answers say must be equal, not only which keys they have."""


def _cases(
    protocol: str, topics: Mapping[str, Mapping[str, Step | tuple[Step, ...]]]
) -> list[Case]:
    return [
        Case(
            f"{protocol}/{topic}/{name}",
            steps if isinstance(steps, tuple) else (steps,),
            topic in EQUAL_DOCUMENTS,
        )
        for topic, cases in topics.items()
        for name, steps in cases.items()
    ]


CASES = sorted(
    _cases("http", http_cases.TOPICS) + _cases("grpc", grpc_cases.TOPICS),
    # Last, because Triton takes its time to unload a model, and until then is not ready.
    key=lambda case: "/repository/" in case.name,
)
