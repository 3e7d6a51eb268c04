"""From a checkpoint to the directory that is served."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from training.graphs.from_run import Example, export_run
from training.graphs.served import generate_served
from training.parity import ParityReport
from training.runs import RunDirectory
from training.tasks.translation import network as marian
from training.tasks.translation.corpus import Pair
from training.tasks.translation.report import translate
from training.tasks.translation.workload import TranslationWorkload

_CANDIDATES = 200
"""Held-out sentences among which an example is sought, and with which parity is proven."""


def export(run: RunDirectory, workload: TranslationWorkload) -> ParityReport:
    """Write the graphs with what they need to be served, and the proof that they are the model.

    Raises `ParityError` with the first check that failed; the report is written all the same.
    """
    pairs = [workload.pairs[index] for index in workload.split.held_out[:_CANDIDATES]]
    encode = workload.vocabulary.encode_source
    held_out = [workload.pairs[index] for index in workload.split.held_out]
    return export_run(
        run,
        _example(run, pairs),
        [encode(pair.source, pair.language) for pair in pairs],
        lambda directory: _exact_match(directory, held_out),
    )


def _exact_match(directory: Path, pairs: Sequence[Pair]) -> dict[str, float]:
    """Share of the translations, as served, that are right to the letter, by language."""
    texts = [f">>{pair.language}<< {pair.source}" for pair in pairs]
    right = defaultdict[str, list[bool]](list)
    for pair, text in zip(pairs, generate_served(directory, texts, {}), strict=True):
        right[pair.language].append(text == pair.target)
    return {
        f"held-out exact match as served, {language}": sum(found) / len(found)
        for language, found in sorted(right.items())
    }


def _example(run: RunDirectory, pairs: Sequence[Pair]) -> Example:
    """A whole held-out sentence that comes out right if there is one, and its translation."""
    candidates = sorted(pairs, key=lambda pair: not pair.source.endswith("."))
    translated = translate(*marian.load(run.checkpoint), candidates)
    right = [pair for pair, text in zip(candidates, translated, strict=True) if text == pair.target]
    chosen, answer = (right[0], right[0].target) if right else (candidates[0], translated[0])
    return Example(f">>{chosen.language}<< {chosen.source}\n", answer)
