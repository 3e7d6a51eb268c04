"""From a checkpoint to the directory that is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from training import durable
from training.graphs.checkpoint import load_checkpoint
from training.graphs.export import export_generation
from training.graphs.parity import verify_generation
from training.parity import ParityReport
from training.runs import FLOAT32, PARITY_FILE, RunDirectory
from training.tasks.translation import network as marian
from training.tasks.translation.report import translate
from training.tasks.translation.workload import TranslationWorkload

EXAMPLE_FILE = "example.txt"
ANSWER_FILE = "example.json"

_CANDIDATES = 200
"""Held-out sentences among which an example is sought, and with which parity is proven."""


def export(run: RunDirectory, workload: TranslationWorkload) -> ParityReport:
    """Write the graphs with what they need to be served, and the proof that they are the model.

    Raises `ParityError` with the first check that failed; the report is written all the same.
    """
    destination = run.export(FLOAT32)
    pairs = [workload.pairs[index] for index in workload.split.held_out[:_CANDIDATES]]
    with durable.staged_directory(destination.parent) as directory:
        export_generation(run.checkpoint, directory)
        _write_example(directory, run.checkpoint, workload)
        encode = workload.vocabulary.encode_source
        parity = verify_generation(
            directory,
            load_checkpoint(run.checkpoint),
            [encode(pair.source, pair.language) for pair in pairs],
        )
        parity.save(directory / PARITY_FILE)
        shutil.rmtree(destination, ignore_errors=True)
        durable.move_into_place(directory, destination)
    parity.require()
    return parity


def _write_example(directory: Path, checkpoint: Path, workload: TranslationWorkload) -> None:
    """A whole held-out sentence that comes out right if there is one, and its translation."""
    candidates = [workload.pairs[index] for index in workload.split.held_out[:_CANDIDATES]]
    candidates.sort(key=lambda pair: not pair.source.endswith("."))
    translated = translate(*marian.load(checkpoint), candidates)
    right = [pair for pair, text in zip(candidates, translated, strict=True) if text == pair.target]
    chosen, answer = (right[0], right[0].target) if right else (candidates[0], translated[0])
    (directory / EXAMPLE_FILE).write_text(
        f">>{chosen.language}<< {chosen.source}\n", encoding="utf-8"
    )
    text = json.dumps({"answer": answer}, ensure_ascii=False) + "\n"
    (directory / ANSWER_FILE).write_text(text, encoding="utf-8")
