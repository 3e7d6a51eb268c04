"""Drawing a token: the filters of transformers' sampling, then the inverse of the distribution."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.steppers.ranking import largest

Vector = npt.NDArray[np.float32]

_USUAL_NUCLEUS = 256


def candidates(scores: Vector, top_k: int, top_p: float) -> tuple[npt.NDArray[np.intp], Vector]:
    """The tokens that may be drawn, and numbers in proportion to their probabilities.

    `top_k` 0 and `top_p` 1 leave all, but none that is impossible, and so perhaps none. Of tokens
    as likely as the last of `top_k`, all stay.
    """
    bound = scores[largest(scores, top_k)[-1]] if 0 < top_k < scores.size else -np.inf
    tokens = np.flatnonzero(scores > -np.inf if bound == -np.inf else scores >= bound)
    values = scores[tokens]
    if not tokens.size:
        return tokens, values
    weights: Vector = np.exp(values - values.max())
    if top_p < 1.0:
        kept = _nucleus(weights, top_p)
        return tokens[kept], weights[kept]
    return tokens, weights


def draw(tokens: npt.NDArray[np.intp], weights: Vector, random: np.random.Generator) -> int:
    """One of the tokens, by one random number."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    place = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
    return int(tokens[min(int(place), len(tokens) - 1)])


def _nucleus(weights: Vector, top_p: float) -> npt.NDArray[np.intp]:
    """Indices of the likeliest that together just exceed `top_p`, at least of one."""
    mass = weights.sum(dtype=np.float64) * top_p
    order = largest(weights, _USUAL_NUCLEUS)
    if (before := _sums_before(weights[order]))[-1] >= mass:
        return order[: max(1, int(np.searchsorted(before, mass)))]
    falling = np.sort(weights)[::-1]
    count = int(np.searchsorted(_sums_before(falling), mass))
    above = np.flatnonzero(weights > falling[count - 1])
    equal = np.flatnonzero(weights == falling[count - 1])
    return np.concatenate((above, equal[: count - len(above)]))


def _sums_before(weights: Vector) -> npt.NDArray[np.float64]:
    sums = np.cumsum(weights, dtype=np.float64)
    return np.asarray(sums - weights)
