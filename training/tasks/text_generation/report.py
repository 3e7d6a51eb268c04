"""How good a finished language model is, and what a compressor makes of the same texts."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from training.checkpoint import EpochRecord
from training.record import Record
from training.split import Split
from training.tasks.text_generation import network as gpt2
from training.tasks.text_generation import vocabulary
from training.tasks.text_generation.baseline import Baseline, compress
from training.tasks.text_generation.corpus import Corpus
from training.tasks.text_generation.evaluate import evaluate
from training.tasks.text_generation.generate import continue_text, prompts
from training.workload import Report, count_examples

SAMPLES = 3


class HeldOut(Record):
    files: int
    bytes: int
    tokens: int
    loss: float
    """Nats per token."""
    accuracy: float
    """Of tokens, given the right ones before each."""
    bits_per_byte: float
    """What an ideal coder would need that knows the model; the ends of the texts are in it."""

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


class Sample(Record):
    prompt: str
    continuation: str


class TextReport(Report):
    """`examples` counts files."""

    release: str | None
    """Which Python's standard library was learned from; None for the user's own text."""
    training_bytes: int
    vocabulary: int
    parameters: int
    validation_loss: float
    validation_accuracy: float
    held_out: HeldOut
    baseline: Baseline
    samples: tuple[Sample, ...]
    """Of texts that were held out."""

    def summary(self) -> list[str]:
        return [
            f"epoch {self.epoch}: validation loss {self.validation_loss:.4f},"
            f" perplexity {math.exp(self.validation_loss):.2f},"
            f" token accuracy {self.validation_accuracy:.4f}",
            f"held-out: {self.held_out.bits_per_byte:.3f} bits per byte,"
            f" perplexity {self.held_out.perplexity:.2f},"
            f" token accuracy {self.held_out.accuracy:.4f}, {self.held_out.files} files",
            f"held-out: {self.baseline.alone:.3f} bits per byte by lzma,"
            f" {self.baseline.after_training_text:.3f} after the training text",
        ]


def report(checkpoint: Path, corpus: Corpus, split: Split, chosen: EpochRecord) -> TextReport:
    """Judge the checkpoint, as anybody would load it."""
    model, tokenizer = gpt2.load(checkpoint)
    train = [corpus.texts[index] for index in split.train]
    judged = [corpus.texts[index] for index in split.held_out]
    size = sum(len(text.encode()) for text in judged)
    totals = evaluate(
        model,
        vocabulary.encode(tokenizer, judged),
        model.config.n_positions,
        torch.device("cpu"),
    )
    loss, tokens = totals["loss"].tolist()
    right, _ = totals["accuracy"].tolist()
    return TextReport(
        examples=count_examples(split),
        epoch=chosen.epoch,
        release=corpus.release,
        training_bytes=sum(len(text.encode()) for text in train),
        vocabulary=model.config.vocab_size,
        parameters=sum(weight.numel() for weight in model.parameters()),
        validation_loss=chosen.validation["loss"],
        validation_accuracy=chosen.validation["accuracy"],
        held_out=HeldOut(
            files=len(judged),
            bytes=size,
            tokens=int(tokens),
            loss=loss / tokens,
            accuracy=right / tokens,
            bits_per_byte=loss / math.log(2) / size,
        ),
        baseline=compress(train, judged),
        samples=tuple(
            Sample(prompt=prompt, continuation=continue_text(model, tokenizer, prompt))
            for prompt in prompts(tokenizer, judged[:SAMPLES], model.config.n_positions)
        ),
    )
