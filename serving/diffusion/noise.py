"""The random numbers of torch, so that a seed means the same here as where a model was trained."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

FEWEST = 16
"""Torch draws fewer numbers than these in another way."""


class TorchNoise:
    """What `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` gives on a CPU, call
    after call, but for the last bits.

    Mersenne Twister (Matsumoto and Nishimura, 1998) and the transform of Box and Muller (1958), on
    blocks of sixteen uniform numbers of 24 bits.
    """

    def __init__(self, seed: int):
        # Both libraries seed the generator with the low 32 bits, in the manner of its authors.
        legacy = np.random.RandomState(seed & 0xFFFFFFFF)
        self._bits = np.random.MT19937()
        state: Any = legacy.get_state(legacy=False)
        self._bits.state = state

    def normal(self, shape: Sequence[int]) -> Floats:
        """Standard normal numbers; at least `FEWEST` of them."""
        size = prod(shape)
        assert size >= FEWEST, "fewer numbers are drawn otherwise. This is a bug."
        uniform = self._uniform(size)
        normal = np.empty(size, np.float32)
        whole = size - size % FEWEST
        normal[:whole] = _to_normal(uniform[:whole])
        if whole < size:
            # The last block is whole, too, and is drawn once more.
            normal[-FEWEST:] = _to_normal(self._uniform(FEWEST))
        return normal.reshape(shape)

    def _uniform(self, size: int) -> Floats:
        """Numbers from 0 up to, but not, 1."""
        bits = self._bits.random_raw(size) & 0xFFFFFF
        return bits.astype(np.float32) * np.float32(2.0**-24)


def _to_normal(uniform: Floats) -> Floats:
    """Of each block, the first half holds radii and the second half angles."""
    radii, angles = uniform.reshape(-1, 2, FEWEST // 2).swapaxes(0, 1)
    radii = np.sqrt(-2 * np.log(1 - radii))
    angles = np.float32(2 * np.pi) * angles
    normal: Floats = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1).ravel()
    return normal
