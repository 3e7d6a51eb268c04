"""Dictation as the loop sees it: windows of utterances, the next token, words that are right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import jiwer
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from training.checkpoint import EpochRecord, Weights, last_of_the_best
from training.errors import DataError
from training.graphs.proof import without_warnings
from training.recognizers.log_mel import LogMel
from training.runs import RunDirectory
from training.split import Indices
from training.tasks.dictation import network as networks
from training.tasks.dictation import vocabulary
from training.tasks.dictation.evaluate import to_windows, write
from training.tasks.dictation.hints import hint
from training.tasks.dictation.network import Learned, Learner
from training.tasks.dictation.recipe import DictationRecipe
from training.tasks.dictation.report import report
from training.tasks.dictation.vocabulary import Vocabulary, Written
from training.tasks.dictation.windows import compose
from training.tasks.speech_recognition.acoustics import hear
from training.tasks.speech_recognition.corpus import RATE_HZ, Corpus, hash_corpus, split_corpus
from training.tasks.speech_recognition.evaluate import heard_batches, places
from training.tasks.speech_recognition.network import SpecAugment
from training.tasks.speech_recognition.report import SpeechReport
from training.workload import Totals

VALIDATED_IN = "noise at 10 dB"
_IGNORED = -100


class DictationWorkload:
    loss_unit = "nats"

    def __init__(self, recipe: DictationRecipe, corpus: Corpus):
        """Raises `DataError` for recordings that are longer than a window."""
        self.recipe = recipe
        self.corpus = corpus
        self.split = split_corpus(corpus)
        self.data_hash = hash_corpus(corpus)
        longest = float(corpus.lengths.max()) / RATE_HZ
        if longest > recipe.model.seconds:
            raise DataError(
                f"a recording has {longest:.1f} s, and model.seconds is {recipe.model.seconds}:"
                " raise it, or lower data.longest_seconds"
            )

    @property
    def samples(self) -> int:
        """Of a window."""
        return self.recipe.model.seconds * RATE_HZ

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Made of the training part alone."""
        texts = (self.corpus.texts[index] for index in self.split.train)
        model = self.recipe.model
        return vocabulary.train(texts, model.vocabulary, model.seconds)

    @cached_property
    def features(self) -> LogMel:
        return LogMel(networks.extractor(self.recipe.model))

    @cached_property
    def _masks(self) -> SpecAugment:
        return SpecAugment(self.recipe.masks)

    @property
    def steps(self) -> int:
        return -(-len(self.split.train) // self.recipe.batch_size)

    def build(self) -> Learner:
        sounds = self.corpus.sounds
        whisper = networks.build(self.recipe.model, self.vocabulary)
        return Learner(whisper, len(sounds.names) if sounds else 0)

    def batches(self, chance: np.random.Generator) -> list[Indices]:
        size = self.recipe.batch_size
        order = chance.permutation(self.split.train)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def loss(
        self, network: nn.Module, batch: Indices, generator: torch.Generator
    ) -> tuple[Tensor, Totals]:
        recipe = self.recipe
        windows = compose(
            self.corpus,
            batch,
            self.split.train,
            recipe.windows,
            recipe.acoustics.playback,
            recipe.model.seconds,
            generator,
        )
        # Pauses, with the noise that is in them, and speeds are the windows' own.
        acoustics = recipe.acoustics.model_copy(
            update={"silence_seconds": (0.0, 0.0), "playback": (1.0, 1.0)}
        )
        heard = hear([window.samples for window in windows], acoustics, generator)
        timed = torch.rand(len(windows), generator=generator, device=generator.device)
        written = [
            self.vocabulary.write(window.said, timed=number < recipe.windows.timed)
            for window, number in zip(windows, timed.tolist(), strict=True)
        ]
        features = self._masks(self.features.to(generator.device)(to_windows(heard, self.samples)))
        inputs, labels = self._tokens(written, features.device)
        learned: Learned = network(features, inputs)
        tokens = self._next_tokens(learned.tokens, labels)
        loss = tokens[0] / tokens[1] + hint(learned, windows, written, recipe.hints)
        return loss, {"loss": tokens.detach()}

    def score(self, model: nn.Module, examples: Indices, device: torch.device) -> Totals:
        """The accuracy is one minus the rate of word errors, or 0 if there are more than words."""
        assert isinstance(model, Learner)
        place = places(self.recipe.acoustics)[VALIDATED_IN]
        features = self.features.to(device)
        totals = torch.zeros(2, device=device)
        words, wrong = 0, 0
        for batch, waveforms in heard_batches(self.corpus, examples, place, device):
            said = [self.corpus.texts[index] for index in batch]
            heard = features(to_windows(waveforms, self.samples))
            written = [self.vocabulary.write([(text, 0.0, 0.0)], timed=False) for text in said]
            inputs, labels = self._tokens(written, device)
            totals = totals + self._next_tokens(model(heard, inputs).tokens, labels)
            with without_warnings():
                compared = jiwer.process_words(said, write(model.whisper, heard, self.vocabulary))
            words += compared.hits + compared.substitutions + compared.deletions
            wrong += compared.substitutions + compared.deletions + compared.insertions
        right = torch.tensor([max(0, words - wrong), words], dtype=torch.float32, device=device)
        return {"loss": totals, "accuracy": right}

    def choose(self, history: Sequence[EpochRecord]) -> EpochRecord:
        words = sum(len(self.corpus.texts[index].split()) for index in self.split.validation)
        return last_of_the_best(history, words)

    def save(self, run: RunDirectory, weights: Weights) -> None:
        model = self.build()
        # The nearest weights that 16 bits hold, so that a graph stores them in half the bytes.
        model.load_state_dict({name: tensor.half().float() for name, tensor in weights.items()})
        networks.save(run.checkpoint, model.whisper, self.vocabulary, self.recipe.model)

    def report(self, run: RunDirectory, history: Sequence[EpochRecord]) -> SpeechReport:
        with without_warnings():
            return report(run, self.corpus, self.split, self.recipe, self.choose(history))

    def _tokens(self, written: Sequence[Written], device: torch.device) -> tuple[Tensor, Tensor]:
        """[window, token]: what the decoder is told, and what it shall say next."""
        longest = self.recipe.model.tokens
        rows = [torch.tensor(one.tokens[: longest + 1]) for one in written]
        inputs = pad_sequence(
            [row[:-1] for row in rows], batch_first=True, padding_value=self.vocabulary.end
        )
        labels = pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=_IGNORED)
        return inputs.to(device), labels.to(device)

    def _next_tokens(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The summed loss, and the number of tokens."""
        loss = functional.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            ignore_index=_IGNORED,
            reduction="sum",
            label_smoothing=self.recipe.optimizer.label_smoothing,
        )
        return torch.stack([loss, (labels != _IGNORED).sum().float()])
