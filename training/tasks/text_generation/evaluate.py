"""How well a model foretells texts that it did not learn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2LMHeadModel

from training.tasks.text_generation.vocabulary import Tokens
from training.workload import Totals

BATCH = 16
_IGNORED = -100


@torch.no_grad()
def evaluate(
    model: GPT2LMHeadModel, texts: Sequence[Tokens], context: int, device: torch.device
) -> Totals:
    """Loss in nats and accuracy, a token each; of every token but a text's first.

    A window begins where the one before it ended, so that every token is foretold once.
    """
    windows = [
        text[start : start + context + 1]
        for text in texts
        for start in range(0, len(text) - 1, context)
    ]
    # Like beside like, for less padding.
    windows.sort(key=len)
    totals = dict.fromkeys(("loss", "accuracy"), torch.zeros(2, device=device))
    for first in range(0, len(windows), BATCH):
        rows = [torch.from_numpy(window) for window in windows[first : first + BATCH]]
        before = pad_sequence([row[:-1] for row in rows], batch_first=True).to(device)
        labels = pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=_IGNORED)
        labels = labels.flatten().to(device)
        logits = model(input_ids=before, use_cache=False).logits.flatten(0, 1)
        loss = functional.cross_entropy(logits, labels, ignore_index=_IGNORED, reduction="sum")
        measured = count(loss, logits, labels)
        totals = {name: totals[name] + measured[name] for name in totals}
    return totals


def count(loss: Tensor, logits: Tensor, labels: Tensor) -> Totals:
    """Of the summed loss and the tokens foretold right."""
    tokens = (labels != _IGNORED).sum().float()
    right = (logits.argmax(dim=1) == labels).sum().float()
    return {"loss": torch.stack([loss, tokens]), "accuracy": torch.stack([right, tokens])}
