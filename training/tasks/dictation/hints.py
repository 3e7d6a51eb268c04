"""What the network is told beside the next tokens: which sounds it hears, and where to look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from training.tasks.dictation.network import Learned
from training.tasks.dictation.recipe import Hints
from training.tasks.dictation.vocabulary import Written
from training.tasks.dictation.windows import SAMPLES_PER_FRAME, Window
from training.tasks.speech_recognition.corpus import RATE_HZ

_NEVER = -1.0


def hint(
    learned: Learned, windows: Sequence[Window], written: Sequence[Written], settings: Hints
) -> Tensor:
    """What is added to the loss of a batch of windows and of what is written down of each."""
    loss = settings.attention * _astray(learned.attended, written, settings.attention_seconds)
    if learned.sounds is not None:
        made = np.stack([window.sounds for window in windows if window.sounds is not None])
        kinds = torch.from_numpy(made).to(learned.sounds.device)
        sounds = functional.cross_entropy(learned.sounds.flatten(0, 1), kinds.flatten())
        loss = loss + settings.sounds * sounds
    return loss


def _astray(attended: Tensor, written: Sequence[Written], deviation_s: float) -> Tensor:
    """The share of attention, [window, head, token, frame], that is far from what is said next.

    Guided attention, after H. Tachibana and others, Efficiently trainable text-to-speech system
    based on deep convolutional networks with guided attention, 2017; along each utterance here,
    as it is known when those begin and end.
    """
    tokens, frames = attended.shape[2:]
    rows = [torch.tensor(one.seconds[1 : tokens + 1]) for one in written]
    said = pad_sequence(rows, batch_first=True, padding_value=_NEVER).to(attended.device)
    middles = (torch.arange(frames, device=attended.device) + 0.5) * SAMPLES_PER_FRAME / RATE_HZ
    distances = (middles - said[:, :, None]) / deviation_s
    far = 1.0 - torch.exp(-0.5 * distances.square())
    there = said != _NEVER
    share = (attended * far[:, None]).sum(dim=3).mean(dim=1)
    return share[there].mean()
