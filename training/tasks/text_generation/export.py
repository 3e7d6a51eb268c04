"""From a finished run to what is served."""

from __future__ import annotations

from training.graphs.from_run import Example, export_run
from training.parity import ParityReport
from training.runs import RunDirectory
from training.tasks.text_generation import network as gpt2
from training.tasks.text_generation.generate import continue_text, prompts
from training.tasks.text_generation.workload import TextWorkload

_TEXTS = 20
"""Held-out ones that the proof is made with, at most."""


def export(run: RunDirectory, workload: TextWorkload) -> ParityReport:
    """Raises `ParityError` with the first check that failed."""
    model, tokenizer = gpt2.load(run.checkpoint)
    held_out = [workload.corpus.texts[index] for index in workload.split.held_out[:_TEXTS]]
    texts = prompts(tokenizer, held_out, model.config.n_positions)
    example = Example(texts[0], continue_text(model, tokenizer, texts[0]))
    return export_run(run, example, [tokenizer.encode(text).ids for text in texts])
