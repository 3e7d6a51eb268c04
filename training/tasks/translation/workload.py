"""Translation as the loop sees it: batches of like length, smoothed cross-entropy, exact match."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import MarianMTModel

from training.checkpoint import EpochRecord, Weights, last_of_the_best
from training.runs import RunDirectory
from training.split import Indices
from training.tasks.translation import network as marian
from training.tasks.translation.corpus import Pair, hash_pairs, split_pairs
from training.tasks.translation.recipe import TranslationRecipe
from training.tasks.translation.report import TranslationReport, report
from training.tasks.translation.vocabulary import Vocabulary, train_vocabulary
from training.workload import Totals

SAMPLE = 64
"""Validation sentences that are translated in earnest after each epoch; it takes a second."""

_IGNORED = -100


class TranslationWorkload:
    loss_unit = "nats"

    def __init__(self, recipe: TranslationRecipe, pairs: Sequence[Pair]):
        self.recipe = recipe
        self.pairs = pairs
        self.languages = tuple(dict.fromkeys(pair.language for pair in pairs))
        self.split = split_pairs(pairs)
        self.data_hash = hash_pairs(pairs)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Made of the training part alone."""
        train = [self.pairs[index] for index in self.split.train]
        texts = dict.fromkeys(text for pair in train for text in (pair.source, pair.target))
        return train_vocabulary(tuple(texts), self.languages, self.recipe.data.vocabulary)

    @cached_property
    def _encoded(self) -> tuple[list[list[int]], list[list[int]]]:
        """Sources and targets."""
        encode = self.vocabulary
        return (
            [encode.encode_source(pair.source, pair.language) for pair in self.pairs],
            [encode.encode_target(pair.target) for pair in self.pairs],
        )

    @cached_property
    def _lengths(self) -> tuple[Indices, Indices]:
        sources, targets = self._encoded
        return (
            np.array([len(ids) for ids in sources]),
            np.array([len(ids) for ids in targets]),
        )

    @cached_property
    def _learnable(self) -> Indices:
        """The training part, without what is longer than the network has positions."""
        sources, targets = self._lengths
        train = self.split.train
        longest = np.maximum(sources[train], targets[train])
        return train[longest <= self.recipe.data.longest]

    @cached_property
    def _cuts(self) -> list[int]:
        """Where batches begin in the order of lengths, which is the same in every epoch."""
        sources, targets = self._lengths
        order = self._by_length(np.random.default_rng(0))
        cuts, widest = [0], np.zeros(2, dtype=np.int64)
        for place, index in enumerate(order):
            widest = np.maximum(widest, (sources[index], targets[index]))
            if (place + 1 - cuts[-1]) * widest.sum() > self.recipe.batch_size and place > cuts[-1]:
                cuts.append(place)
                widest = np.array([sources[index], targets[index]])
        return cuts

    def _by_length(self, chance: np.random.Generator) -> Indices:
        """Like beside like; which of the equally long comes first is chance."""
        train = self._learnable
        sources, targets = self._lengths
        return train[np.lexsort((chance.random(len(train)), sources[train], targets[train]))]

    @property
    def steps(self) -> int:
        return len(self._cuts)

    def build(self) -> MarianMTModel:
        return marian.build(self.recipe.model, self.vocabulary, self.recipe.data.longest)

    def batches(self, chance: np.random.Generator) -> list[Indices]:
        batches = np.split(self._by_length(chance), self._cuts[1:])
        return [batches[place] for place in chance.permutation(len(batches))]

    def loss(
        self, network: nn.Module, batch: Indices, generator: torch.Generator
    ) -> tuple[Tensor, Totals]:
        logits, labels = self._predict(network, batch, generator.device)
        loss = functional.cross_entropy(
            logits,
            labels,
            ignore_index=_IGNORED,
            label_smoothing=self.recipe.optimizer.label_smoothing,
        )
        tokens = (labels != _IGNORED).sum()
        return loss, _totals(loss.detach() * tokens, logits.detach(), labels, tokens)

    def score(self, model: nn.Module, examples: Indices, device: torch.device) -> Totals:
        assert isinstance(model, MarianMTModel)
        totals = dict.fromkeys(("loss", "accuracy"), torch.zeros(2, device=device))
        for start in range(0, len(examples), SAMPLE):
            batch = examples[start : start + SAMPLE]
            logits, labels = self._predict(model, batch, device)
            loss = functional.cross_entropy(logits, labels, ignore_index=_IGNORED, reduction="sum")
            measured = _totals(loss, logits, labels, (labels != _IGNORED).sum())
            totals = {name: totals[name] + measured[name] for name in totals}
        return {**totals, "exact_match": self._translate_sample(model, examples, device)}

    def choose(self, history: Sequence[EpochRecord]) -> EpochRecord:
        _, targets = self._lengths
        return last_of_the_best(history, int(targets[self.split.validation].sum()))

    def save(self, run: RunDirectory, weights: Weights) -> None:
        model = self.build()
        model.load_state_dict(marian.halve(weights))
        marian.save(run.checkpoint, model, self.vocabulary, self.recipe.data.longest)

    def report(self, run: RunDirectory, history: Sequence[EpochRecord]) -> TranslationReport:
        return report(run.checkpoint, self.pairs, self.split, self.choose(history))

    def _predict(
        self, network: nn.Module, batch: Indices, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Logits [token, piece] and the right pieces, given the right ones before each."""
        sources, targets = self._encoded
        pad = self.vocabulary.pad
        source = _stack([sources[index] for index in batch], pad, device)
        labels = _stack([targets[index] for index in batch], _IGNORED, device)
        before = _stack([[pad, *targets[index][:-1]] for index in batch], pad, device)
        output = network(
            input_ids=source,
            attention_mask=(source != pad).long(),
            decoder_input_ids=before,
            use_cache=False,
        )
        return output.logits.flatten(0, 1), labels.flatten()

    def _translate_sample(
        self, model: MarianMTModel, examples: Indices, device: torch.device
    ) -> Tensor:
        """How many of a few are right to the letter, and how many they are."""
        sample = examples[:: max(1, len(examples) // SAMPLE)][:SAMPLE]
        if not len(sample):
            return torch.zeros(2, device=device)
        sources, targets = self._encoded
        source = _stack([sources[index] for index in sample], self.vocabulary.pad, device)
        generated = model.generate(
            input_ids=source,
            attention_mask=(source != self.vocabulary.pad).long(),
            max_length=2 + max(len(targets[index]) for index in sample),
        )
        right = sum(
            self.vocabulary.decode(ids) == self.pairs[index].target
            for ids, index in zip(generated.tolist(), sample, strict=True)
        )
        return torch.tensor([right, len(sample)], dtype=torch.float32, device=device)


def _stack(sequences: Sequence[Sequence[int]], padding: int, device: torch.device) -> Tensor:
    rows = [torch.tensor(sequence) for sequence in sequences]
    return pad_sequence(rows, batch_first=True, padding_value=padding).to(device)


def _totals(loss: Tensor, logits: Tensor, labels: Tensor, tokens: Tensor) -> Totals:
    """Of the summed loss and the pieces guessed right."""
    right = (logits.argmax(dim=1) == labels).sum()
    count = tokens.float()
    return {
        "loss": torch.stack([loss, count]),
        "accuracy": torch.stack([right.float(), count]),
    }
