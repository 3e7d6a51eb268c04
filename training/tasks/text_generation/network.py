"""The GPT-2 architecture, and its checkpoint in the Hugging Face layout."""

from __future__ import annotations

import shutil
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from training import durable
from training.graphs.checkpoint import load_checkpoint, quiet
from training.tasks.text_generation import vocabulary
from training.tasks.text_generation.recipe import Model
from training.tasks.text_generation.vocabulary import END_ID

NEW_TOKENS = 64


def build(settings: Model, tokens: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=tokens,
        n_positions=settings.context,
        n_embd=settings.width,
        n_head=settings.heads,
        n_layer=settings.layers,
        resid_pdrop=settings.dropout,
        embd_pdrop=settings.dropout,
        attn_pdrop=settings.dropout,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
    )
    model = GPT2LMHeadModel(config)
    # `transformers` does not annotate it.
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=new_tokens(settings),
        do_sample=False,
        num_beams=1,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )
    return model


def new_tokens(settings: Model) -> int:
    """Of a generated text at most, unless its caller wants another length."""
    return min(NEW_TOKENS, settings.context // 2)


def save(directory: Path, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
    with durable.staged_directory(directory.parent) as staged:
        with quiet():
            model.save_pretrained(staged)
        vocabulary.save(staged, tokenizer, model.config.n_positions)
        shutil.rmtree(directory, ignore_errors=True)
        durable.move_into_place(staged, directory)


def load(directory: Path) -> tuple[GPT2LMHeadModel, Tokenizer]:
    """In evaluation mode."""
    model = load_checkpoint(directory)
    assert isinstance(model, GPT2LMHeadModel)
    return model, vocabulary.load(directory)
