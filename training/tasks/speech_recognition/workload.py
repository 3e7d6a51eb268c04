"""Speech recognition as the loop sees it: random hearings, CTC, words that are right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import jiwer
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoint import EpochRecord, Weights, last_of_the_best
from training.runs import RunDirectory
from training.split import Indices
from training.tasks.speech_recognition.acoustics import hear
from training.tasks.speech_recognition.corpus import Corpus, hash_corpus, split_corpus
from training.tasks.speech_recognition.evaluate import heard_batches, pad, places, read_off
from training.tasks.speech_recognition.features import CONTEXT, HOP, LogMel
from training.tasks.speech_recognition.network import (
    BLANK,
    Recognizer,
    RecognizerConfig,
    halve,
    load_model,
    save_model,
)
from training.tasks.speech_recognition.recipe import SpeechRecipe
from training.tasks.speech_recognition.report import SpeechReport, report
from training.workload import Totals

STATISTICS_FROM = 256
"""Recordings from which the mean and deviation of each band are taken."""
VALIDATED_IN = "noise at 10 dB"
"""Where mistakes are many enough to tell one epoch from another."""


class SpeechWorkload:
    loss_unit = "nats"

    def __init__(self, recipe: SpeechRecipe, corpus: Corpus):
        self.recipe = recipe
        self.corpus = corpus
        self.split = split_corpus(corpus)
        self.data_hash = hash_corpus(corpus)
        self.vocabulary = ("", *corpus.characters)

    @cached_property
    def _classes(self) -> list[Tensor]:
        """Each text's classes."""
        classes = {character: number for number, character in enumerate(self.vocabulary)}
        return [torch.tensor([classes[letter] for letter in text]) for text in self.corpus.texts]

    @property
    def steps(self) -> int:
        return -(-len(self.split.train) // self.recipe.batch_size)

    @cached_property
    def config(self) -> RecognizerConfig:
        """The network that fits these data; mean and deviation are those of the training part."""
        model = self.recipe.model
        mean, std = self._statistics(model.mels)
        return RecognizerConfig(
            vocabulary=self.vocabulary,
            words=self._words,
            mean=mean,
            std=std,
            **model.model_dump(exclude={"mels"}),
        )

    @property
    def _words(self) -> tuple[str, ...]:
        if not self.recipe.data.closed_vocabulary:
            return ()
        texts = (self.corpus.texts[index] for index in self.split.train)
        return tuple(sorted({word for text in texts for word in text.split()}))

    def _statistics(self, mels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        train = self.split.train
        some = train[:: -(-len(train) // STATISTICS_FROM)]
        generator = torch.Generator().manual_seed(self.recipe.seed)
        heard = torch.cat(hear(self.corpus.read(some), self.recipe.acoustics, generator))
        columns = (len(heard) - CONTEXT) // HOP
        plain = LogMel([0.0] * mels, [1.0] * mels)
        [features] = plain(heard[None, : CONTEXT + columns * HOP])
        return tuple(features.mean(dim=1).tolist()), tuple(features.std(dim=1).tolist())

    def build(self) -> Recognizer:
        return Recognizer(self.config, self.recipe.masks)

    def batches(self, chance: np.random.Generator) -> list[Indices]:
        """Of like length, so that little is padding: sorted by lengths that chance has blurred."""
        train = self.split.train
        blurred = self.corpus.lengths[train] * chance.uniform(0.9, 1.1, len(train))
        order = train[np.argsort(blurred)]
        size = self.recipe.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        return [batches[place] for place in chance.permutation(len(batches))]

    def loss(
        self, network: nn.Module, batch: Indices, generator: torch.Generator
    ) -> tuple[Tensor, Totals]:
        recordings = self.corpus.read(batch)
        heard = hear(recordings, self.recipe.acoustics, generator)
        logits, frames = network(pad(heard))
        loss, characters = self._ctc(logits, frames, batch)
        return loss / characters, {"loss": torch.stack([loss.detach(), characters])}

    def score(self, model: nn.Module, examples: Indices, device: torch.device) -> Totals:
        """The accuracy is one minus the rate of word errors, or 0 if there are more than words."""
        totals = torch.zeros(2, device=device)
        words, wrong = 0, 0
        place = places(self.recipe.acoustics)[VALIDATED_IN]
        for batch, waveforms in heard_batches(self.corpus, examples, place, device):
            logits, frames = model(pad(waveforms))
            totals = totals + torch.stack(self._ctc(logits, frames, batch))
            compared = jiwer.process_words(
                [self.corpus.texts[index] for index in batch],
                read_off(logits, frames, self.vocabulary),
            )
            words += compared.hits + compared.substitutions + compared.deletions
            wrong += compared.substitutions + compared.deletions + compared.insertions
        right = torch.tensor([max(0, words - wrong), words], dtype=torch.float32, device=device)
        return {"loss": totals, "accuracy": right}

    def choose(self, history: Sequence[EpochRecord]) -> EpochRecord:
        words = sum(len(self.corpus.texts[index].split()) for index in self.split.validation)
        return last_of_the_best(history, words)

    def save(self, run: RunDirectory, weights: Weights) -> None:
        save_model(run.checkpoint, self.config, halve(weights))

    def report(self, run: RunDirectory, history: Sequence[EpochRecord]) -> SpeechReport:
        return report(
            load_model(run.checkpoint),
            self.corpus,
            self.split,
            self.recipe.acoustics,
            self.choose(history),
        )

    def _ctc(self, logits: Tensor, frames: Tensor, batch: Indices) -> tuple[Tensor, Tensor]:
        """The summed loss and the number of characters, where the logits are.

        Computed on the CPU, because CUDA's kernel is not deterministic; it is a small part.
        """
        targets = [self._classes[index] for index in batch]
        lengths = torch.tensor([len(target) for target in targets])
        loss = functional.ctc_loss(
            logits.transpose(0, 1).cpu(),
            torch.cat(targets),
            frames.flatten().cpu(),
            lengths,
            blank=BLANK,
            reduction="sum",
            # Of a recording that is too short for its text nothing can be learned.
            zero_infinity=True,
        )
        return loss.to(logits.device), lengths.sum().float().to(logits.device)
