"""How a model goes on with a text, by torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from training.tasks.text_generation.vocabulary import beginning


def prompts(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> list[str]:
    """Beginnings of texts that leave room for what follows them."""
    return [beginning(tokenizer, text, context // 4) for text in texts]


@torch.no_grad()
def continue_text(model: GPT2LMHeadModel, tokenizer: Tokenizer, prompt: str) -> str:
    """With the checkpoint's own settings."""
    tokens = torch.tensor([tokenizer.encode(prompt).ids])
    generated = model.generate(tokens, attention_mask=torch.ones_like(tokens))
    return tokenizer.decode(generated[0, tokens.shape[1] :].tolist())
