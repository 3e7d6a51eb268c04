"""Language modelling as the loop sees it: windows of the training text, and the next token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2LMHeadModel

from training.checkpoint import EpochRecord, Weights
from training.errors import DataError
from training.runs import RunDirectory
from training.split import Indices
from training.tasks.text_generation import network as gpt2
from training.tasks.text_generation import vocabulary
from training.tasks.text_generation.corpus import Corpus, hash_corpus, split_corpus
from training.tasks.text_generation.evaluate import count, evaluate
from training.tasks.text_generation.recipe import TextRecipe
from training.tasks.text_generation.report import TextReport, report
from training.tasks.text_generation.vocabulary import LONGEST_TOKEN, Tokens
from training.workload import Totals


class TextWorkload:
    """The examples are files; a batch holds places in the training text."""

    loss_unit = "nats"

    def __init__(self, recipe: TextRecipe, corpus: Corpus):
        """Raises `DataError` when there is too little text for one batch."""
        self.recipe = recipe
        self.corpus = corpus
        self.split = split_corpus(corpus)
        self.data_hash = hash_corpus(corpus)
        learnable = sum(len(corpus.texts[index].encode()) for index in self.split.train)
        needed = LONGEST_TOKEN * recipe.model.context * (recipe.batch_size + 1)
        if learnable < needed:
            raise DataError(
                f"there are {learnable} bytes of text to learn from; expected at least {needed},"
                " to fill a batch: add text, or lower batch_size or model.context"
            )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Made of the training part alone."""
        texts = (self.corpus.texts[index] for index in self.split.train)
        return vocabulary.train(texts, self.recipe.data.vocabulary)

    def _encode(self, examples: Indices) -> list[Tokens]:
        return vocabulary.encode(self.tokenizer, [self.corpus.texts[index] for index in examples])

    @cached_property
    def _stream(self) -> Tokens:
        """The training part, one text after another."""
        return np.concatenate([text[:-1] for text in self._encode(self.split.train)])

    @property
    def _windows(self) -> int:
        """How many there are wherever the first begins, within one context."""
        return len(self._stream) // self.recipe.model.context - 1

    @property
    def steps(self) -> int:
        return min(self.recipe.data.steps, self._windows // self.recipe.batch_size)

    def build(self) -> GPT2LMHeadModel:
        return gpt2.build(self.recipe.model, self.tokenizer.get_vocab_size())

    def batches(self, chance: np.random.Generator) -> list[Indices]:
        context, size = self.recipe.model.context, self.recipe.batch_size
        # No token is always the first of its window, which sees nothing before it.
        first = chance.integers(context)
        chosen = chance.permutation(self._windows)[: self.steps * size]
        return np.split(first + chosen * context, self.steps)

    def loss(
        self, network: nn.Module, batch: Indices, generator: torch.Generator
    ) -> tuple[Tensor, Totals]:
        places = batch[:, None] + np.arange(self.recipe.model.context + 1)
        windows = torch.from_numpy(self._stream[places]).to(generator.device)
        logits = network(input_ids=windows[:, :-1], use_cache=False).logits.flatten(0, 1)
        labels = windows[:, 1:].flatten()
        loss = functional.cross_entropy(
            logits, labels, label_smoothing=self.recipe.optimizer.label_smoothing
        )
        return loss, count(loss.detach() * len(labels), logits.detach(), labels)

    def score(self, model: nn.Module, examples: Indices, device: torch.device) -> Totals:
        assert isinstance(model, GPT2LMHeadModel)
        return evaluate(model, self._encode(examples), self.recipe.model.context, device)

    def choose(self, history: Sequence[EpochRecord]) -> EpochRecord:
        return min(history, key=lambda record: record.validation["loss"])

    def save(self, run: RunDirectory, weights: Weights) -> None:
        model = self.build()
        # The nearest weights that 16 bits hold, so that a graph stores them in half the bytes.
        model.load_state_dict({name: tensor.half().float() for name, tensor in weights.items()})
        gpt2.save(run.checkpoint, model, self.tokenizer)

    def report(self, run: RunDirectory, history: Sequence[EpochRecord]) -> TextReport:
        return report(run.checkpoint, self.corpus, self.split, self.choose(history))
