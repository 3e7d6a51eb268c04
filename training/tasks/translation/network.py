"""The Marian architecture, and its checkpoint in the Hugging Face layout."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch
from transformers import GenerationConfig, MarianConfig, MarianMTModel, MarianTokenizer

from training import durable
from training.checkpoint import Weights
from training.graphs.checkpoint import quiet
from training.tasks.translation.recipe import Model
from training.tasks.translation.vocabulary import Vocabulary


def build(settings: Model, vocabulary: Vocabulary, longest: int) -> MarianMTModel:
    config = MarianConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=longest,
        d_model=settings.width,
        encoder_layers=settings.encoder_layers,
        decoder_layers=settings.decoder_layers,
        encoder_attention_heads=settings.heads,
        decoder_attention_heads=settings.heads,
        encoder_ffn_dim=settings.feed_forward,
        decoder_ffn_dim=settings.feed_forward,
        dropout=settings.dropout,
        activation_function="relu",
        # Embeddings serve as the output layer, too; scaled, they suit both.
        scale_embedding=True,
        pad_token_id=vocabulary.pad,
        eos_token_id=vocabulary.end,
        decoder_start_token_id=vocabulary.pad,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config)
    # For short sentences on a CPU, faster than the fused kernel.
    model.set_attn_implementation("eager")
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_length=longest,
        num_beams=1,
        do_sample=False,
        pad_token_id=vocabulary.pad,
        eos_token_id=vocabulary.end,
        decoder_start_token_id=vocabulary.pad,
        bad_words_ids=[[vocabulary.pad]],
    )
    return model


def halve(weights: Weights) -> Weights:
    """The nearest weights that 16 bits hold, so that a graph may store them in half the bytes.

    Positions are left as they are: they are computed, not stored.
    """
    return {
        name: tensor.half().float() if "embed_positions" not in name else tensor
        for name, tensor in weights.items()
    }


def save(directory: Path, model: MarianMTModel, vocabulary: Vocabulary, longest: int) -> None:
    with durable.staged_directory(directory.parent) as staged:
        with quiet():
            model.save_pretrained(staged)
        vocabulary.save(staged, longest)
        shutil.rmtree(directory, ignore_errors=True)
        durable.move_into_place(staged, directory)


def load(directory: Path) -> tuple[MarianMTModel, MarianTokenizer]:
    """In evaluation mode."""
    with quiet(), warnings.catch_warnings():
        # Its normalisation of punctuation is one that this model never saw.
        warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
        tokenizer = MarianTokenizer.from_pretrained(directory)
        model = MarianMTModel.from_pretrained(directory, dtype=torch.float32)
    return model.train(False), tokenizer
