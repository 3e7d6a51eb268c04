"""All that is proven of exported graphs before they may be published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path

from transformers.utils import logging

from training.graphs.checkpoint import Model
from training.graphs.parity import verify_generation
from training.graphs.served import verify_served
from training.parity import ParityReport


def prove(directory: Path, model: Model, prompts: Sequence[Sequence[int]]) -> ParityReport:
    """That the graphs compute what the checkpoint does, and that they are served so.

    `prompts` are real inputs, as tokens.
    """
    with without_warnings():
        parity = verify_generation(directory, model, prompts)
        if not parity.passed:
            return parity
        served = verify_served(directory, model, prompts)
    return parity.model_copy(update={"checks": (*parity.checks, *served)})


@contextmanager
def without_warnings() -> Iterator[None]:
    """transformers has one for every text, on settings that are meant to be as they are."""
    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
