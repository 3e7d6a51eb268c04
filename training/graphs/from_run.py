"""From a finished run to what a version directory needs to generate text, and the proof of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

from training import durable
from training.graphs.checkpoint import load_checkpoint
from training.graphs.export import export_loaded
from training.graphs.parity import verify_generation
from training.graphs.tokenizers import read_tokenizer
from training.parity import ParityReport
from training.runs import FLOAT32, PARITY_FILE, RunDirectory

EXAMPLE_FILE = "example.txt"
ANSWER_FILE = "example.json"


def export_run(run: RunDirectory, example: tuple[str, str], texts: Sequence[str]) -> ParityReport:
    """Replace the run's earlier export.

    `example` is a text with the right answer to it, for those who try the model; `texts` are real
    ones for the proof. Raises `ParityError` with the first check that failed; the report is written
    all the same.
    """
    model = load_checkpoint(run.checkpoint)
    encode = read_tokenizer(run.checkpoint, model)
    text, answer = example
    destination = run.export(FLOAT32)
    with durable.staged_directory(destination.parent) as staged:
        export_loaded(model, run.checkpoint, staged)
        durable.write(staged / EXAMPLE_FILE, text)
        durable.write(staged / ANSWER_FILE, json.dumps({"answer": answer}) + "\n")
        parity = verify_generation(staged, model, [encode(text) for text in texts])
        parity.save(staged / PARITY_FILE)
        shutil.rmtree(destination, ignore_errors=True)
        durable.move_into_place(staged, destination)
    parity.require()
    return parity
