"""From a finished run to what a version directory needs to generate text, and the proof of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training import durable
from training.graphs.checkpoint import load_checkpoint
from training.graphs.export import export_loaded
from training.graphs.proof import prove
from training.parity import ParityReport
from training.runs import FLOAT32, PARITY_FILE, RunDirectory

EXAMPLE_FILE = "example.txt"
ANSWER_FILE = "example.json"


@dataclass(frozen=True)
class Example:
    """One real input that comes with a version, for those who try it and for the demo."""

    text: str
    answer: str
    """The right one."""


def export_run(
    run: RunDirectory,
    example: Example,
    prompts: Sequence[Sequence[int]],
    measure: Callable[[Path], dict[str, float]] = lambda directory: {},
) -> ParityReport:
    """Replace the run's earlier export. `prompts` are real ones for the proof, as tokens; `measure`
    adds figures of what is served from a directory.

    Raises `ParityError` with the first check that failed; the report is written all the same.
    """
    model = load_checkpoint(run.checkpoint)
    destination = run.export(FLOAT32)
    with durable.staged_directory(destination.parent) as staged:
        export_loaded(model, run.checkpoint, staged)
        durable.write(staged / EXAMPLE_FILE, example.text)
        answer = json.dumps({"answer": example.answer}, ensure_ascii=False)
        durable.write(staged / ANSWER_FILE, answer + "\n")
        parity = prove(staged, model, prompts)
        parity = parity.model_copy(update={"measurements": measure(staged)})
        parity.save(staged / PARITY_FILE)
        shutil.rmtree(destination, ignore_errors=True)
        durable.move_into_place(staged, destination)
    parity.require()
    return parity
