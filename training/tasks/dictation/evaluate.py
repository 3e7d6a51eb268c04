"""What a model writes of recordings that it did not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import WhisperForConditionalGeneration

from training.recognizers.log_mel import LogMel
from training.split import Indices
from training.tasks.dictation.vocabulary import Vocabulary
from training.tasks.speech_recognition.corpus import Corpus
from training.tasks.speech_recognition.evaluate import heard_batches
from training.tasks.speech_recognition.recipe import Acoustics


def to_windows(waveforms: Sequence[Tensor], samples: int) -> Tensor:
    """[waveform, sample], each followed by silence, or cut, to so many samples."""
    return torch.stack(
        [
            functional.pad(waveform[:samples], (0, max(0, samples - len(waveform))))
            for waveform in waveforms
        ]
    )


@torch.no_grad()
def write(
    model: WhisperForConditionalGeneration, features: Tensor, vocabulary: Vocabulary
) -> list[str]:
    """The likeliest text of each window, without times."""
    # transformers does not annotate it.
    generate: Any = model.generate
    sequences = generate(features, return_timestamps=False, do_sample=False, num_beams=1)
    return [vocabulary.read(tokens) for tokens in sequences.tolist()]


@torch.no_grad()
def transcribe(
    model: WhisperForConditionalGeneration,
    features: LogMel,
    samples: int,
    corpus: Corpus,
    examples: Indices,
    place: Acoustics,
    vocabulary: Vocabulary,
) -> dict[int, str]:
    """What the model hears in each example, by its index."""
    texts: dict[int, str] = {}
    for batch, waveforms in heard_batches(corpus, examples, place, model.device):
        heard = features(to_windows(waveforms, samples))
        texts.update(zip(batch.tolist(), write(model, heard, vocabulary), strict=True))
    return texts
