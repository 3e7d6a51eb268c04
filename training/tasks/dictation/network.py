"""Whisper's architecture at a small size, and its checkpoint in the Hugging Face layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

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


class Learner(nn.Module):
    """Whisper, and what its encoder is asked beside while it learns: which sound is made when."""

    def __init__(self, whisper: WhisperForConditionalGeneration, sounds: int):
        super().__init__()
        self.whisper = whisper
        self.sounds = nn.Linear(whisper.config.d_model, sounds) if sounds else None

    def forward(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [window, token, vocabulary] of the next tokens, and [window, frame, sound].

        Features are [window, band, column], of whole windows; the latter logits are there only if
        sounds are known.
        """
        # transformers does not annotate it.
        whisper: Any = self.whisper
        output = whisper(input_features=features, decoder_input_ids=tokens, use_cache=False)
        if self.sounds is None:
            return output.logits, None
        return output.logits, self.sounds(output.encoder_last_hidden_state)


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
