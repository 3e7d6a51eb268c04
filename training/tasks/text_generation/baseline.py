"""What a general compressor makes of the same texts, to see what the model's figure means."""

from __future__ import annotations

import lzma
from collections.abc import Sequence

from training.record import Record

PRESET = 9
"""Finds repetitions within 64 MiB."""


class Baseline(Record):
    alone: float
    """Bits per byte of the held-out texts, compressed as one."""
    after_training_text: float
    """The same, where the compressor has seen the training text before."""


def compress(train: Sequence[str], held_out: Sequence[str]) -> Baseline:
    before, text = "".join(train).encode(), "".join(held_out).encode()
    primed = _size(before + text) - _size(before)
    return Baseline(alone=8 * _size(text) / len(text), after_training_text=8 * primed / len(text))


def _size(content: bytes) -> int:
    return len(lzma.compress(content, preset=PRESET))
