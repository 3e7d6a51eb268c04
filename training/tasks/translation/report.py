"""How good a finished translator is, on sentences that it did not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sacrebleu
import torch
from tqdm import tqdm
from transformers import MarianMTModel, MarianTokenizer

from training.checkpoint import EpochRecord
from training.record import Record
from training.split import Split
from training.tasks.translation import network as marian
from training.tasks.translation.corpus import Pair
from training.workload import Report, count_examples

BATCH = 64
MISTAKES = 30
"""Of them, so many are kept to be looked at."""


class LanguageScore(Record):
    language: str
    sentences: int
    exact_match: float
    """Right to the letter."""
    bleu: float
    """sacrebleu, with its defaults."""


class Mistake(Record):
    language: str
    source: str
    expected: str
    translated: str


class TranslationReport(Report):
    """`examples` counts pairs of a sentence and one translation."""

    validation_accuracy: float
    """Of pieces, given the right ones before each."""
    parameters: int
    held_out: tuple[LanguageScore, ...]
    mistakes: tuple[Mistake, ...]

    @property
    def exact_match(self) -> float:
        """Of the language in which it is lowest."""
        return min(score.exact_match for score in self.held_out)

    def summary(self) -> list[str]:
        return [
            f"epoch {self.epoch}: validation token accuracy {self.validation_accuracy:.4f}",
            *(
                f"held-out {score.language}: exact match {score.exact_match:.4f},"
                f" BLEU {score.bleu:.2f}, {score.sentences} sentences"
                for score in self.held_out
            ),
        ]


def report(
    checkpoint: Path, pairs: Sequence[Pair], split: Split, chosen: EpochRecord
) -> TranslationReport:
    """Translate all of the held-out part, with the checkpoint as anybody would load it."""
    model, tokenizer = marian.load(checkpoint)
    held_out = [pairs[index] for index in split.held_out]
    translated = translate(model, tokenizer, held_out)
    scores = []
    for language in dict.fromkeys(pair.language for pair in pairs):
        mine = [
            (pair.target, text)
            for pair, text in zip(held_out, translated, strict=True)
            if pair.language == language
        ]
        if not mine:
            continue
        bleu = sacrebleu.corpus_bleu([text for _, text in mine], [[target for target, _ in mine]])
        scores.append(
            LanguageScore(
                language=language,
                sentences=len(mine),
                exact_match=sum(target == text for target, text in mine) / len(mine),
                bleu=bleu.score,
            )
        )
    mistakes = [
        Mistake(language=pair.language, source=pair.source, expected=pair.target, translated=text)
        for pair, text in zip(held_out, translated, strict=True)
        if pair.target != text
    ]
    return TranslationReport(
        examples=count_examples(split),
        epoch=chosen.epoch,
        validation_accuracy=chosen.validation["accuracy"],
        parameters=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        held_out=tuple(scores),
        mistakes=tuple(mistakes[:MISTAKES]),
    )


@torch.no_grad()
def translate(model: MarianMTModel, tokenizer: MarianTokenizer, pairs: Sequence[Pair]) -> list[str]:
    """Greedily, in batches of like length; in the order of the pairs."""
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index].source))
    translated = [""] * len(pairs)
    for start in tqdm(range(0, len(order), BATCH), "translating", unit="batch", leave=False):
        batch = order[start : start + BATCH]
        texts = [f">>{pairs[index].language}<< {pairs[index].source}" for index in batch]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
        generated = model.generate(**inputs, do_sample=False, num_beams=1)
        for index, ids in zip(batch, generated, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)  # type: ignore[no-untyped-call]
            translated[index] = str(text)
    return translated
