"""All that is proven of exported graphs before they may be published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.graphs.checkpoint import Model
from training.graphs.parity import verify_generation
from training.graphs.served import verify_served
from training.parity import ParityReport


def prove(directory: Path, model: Model, prompts: Sequence[Sequence[int]]) -> ParityReport:
    """That the graphs compute what the checkpoint does, and that they are served so.

    `prompts` are real inputs, as tokens.
    """
    parity = verify_generation(directory, model, prompts)
    if not parity.passed:
        return parity
    served = verify_served(directory, model, prompts)
    return parity.model_copy(update={"checks": (*parity.checks, *served)})
