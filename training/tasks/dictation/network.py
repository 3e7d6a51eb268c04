"""Whisper's architecture at a small size, and its checkpoint in the Hugging Face layout."""

from __future__ import annotations

import shutil
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from training import durable
from training.graphs.checkpoint import load_model, quiet
from training.tasks.dictation import vocabulary as vocabularies
from training.tasks.dictation.recipe import Model
from training.tasks.dictation.vocabulary import Vocabulary


class Learned(NamedTuple):
    tokens: Tensor
    """Logits of the next ones, [window, token, vocabulary]."""
    sounds: Tensor | None
    """Logits of the sound that is made in each frame, [window, frame, sound]."""
    attended: Tensor
    """How much of each frame the decoder attends to, by the heads that are guided, [window, head,
    token, frame]."""


class Learner(nn.Module):
    """Whisper, and what it is asked beside the next tokens while it learns."""

    def __init__(self, whisper: WhisperForConditionalGeneration, sounds: int):
        super().__init__()
        self.whisper = whisper
        self.sounds = nn.Linear(whisper.config.d_model, sounds) if sounds else None
        self._attended: list[Tensor] = []
        for layer in whisper.model.decoder.layers:
            layer.encoder_attn.config = _telling(whisper.config)
            layer.encoder_attn.register_forward_hook(self._note)

    def forward(self, features: Tensor, tokens: Tensor) -> Learned:
        """Features are [window, band, column], of whole windows."""
        # transformers does not annotate it.
        whisper: Any = self.whisper
        output = whisper(input_features=features, decoder_input_ids=tokens, use_cache=False)
        attended, self._attended = self._attended, []
        return Learned(
            output.logits,
            self.sounds(output.encoder_last_hidden_state) if self.sounds else None,
            torch.cat(attended, dim=1) if attended else output.logits.new_zeros(0),
        )

    def _note(self, module: nn.Module, inputs: object, output: tuple[Tensor, Tensor]) -> None:
        """The first half of a layer's heads is guided; the others look where they like.

        An only one is guided.
        """
        if self.training:
            weights = output[1]
            self._attended.append(weights[:, : (weights.shape[1] + 1) // 2])


def _telling(config: WhisperConfig) -> WhisperConfig:
    """For an attention that returns its weights, too."""
    telling = copy(config)
    telling._attn_implementation = "eager"
    return telling


def build(settings: Model, vocabulary: Vocabulary) -> WhisperForConditionalGeneration:
    ends: dict[str, Any] = {
        "decoder_start_token_id": vocabulary.start,
        "bos_token_id": vocabulary.end,
        "eos_token_id": vocabulary.end,
        "pad_token_id": vocabulary.end,
    }
    config = WhisperConfig(
        vocab_size=vocabulary.size,
        num_mel_bins=settings.mels,
        d_model=settings.width,
        encoder_layers=settings.encoder_layers,
        decoder_layers=settings.decoder_layers,
        encoder_attention_heads=settings.heads,
        decoder_attention_heads=settings.heads,
        encoder_ffn_dim=settings.hidden,
        decoder_ffn_dim=settings.hidden,
        max_source_positions=50 * settings.seconds,
        max_target_positions=settings.tokens,
        dropout=settings.dropout,
        begin_suppress_tokens=None,
        **ends,
    )
    model = WhisperForConditionalGeneration(config)
    generation: Any = GenerationConfig
    model.generation_config = generation(
        max_length=settings.tokens,
        suppress_tokens=[vocabulary.start],
        no_timestamps_token_id=vocabulary.no_times,
        is_multilingual=False,
        **ends,
    )
    return model


def extractor(settings: Model) -> WhisperFeatureExtractor:
    # transformers does not annotate it.
    make: Any = WhisperFeatureExtractor
    made: WhisperFeatureExtractor = make(feature_size=settings.mels, chunk_length=settings.seconds)
    return made


def save(
    directory: Path,
    model: WhisperForConditionalGeneration,
    vocabulary: Vocabulary,
    settings: Model,
) -> None:
    with durable.staged_directory(directory.parent) as staged:
        with quiet():
            model.save_pretrained(staged)
            extractor(settings).save_pretrained(staged)
        vocabularies.save(staged, vocabulary)
        shutil.rmtree(directory, ignore_errors=True)
        durable.move_into_place(staged, directory)


def load(directory: Path) -> tuple[WhisperForConditionalGeneration, Vocabulary]:
    """In evaluation mode."""
    model = load_model(directory)
    assert isinstance(model, WhisperForConditionalGeneration)
    return model, vocabularies.load(directory)
