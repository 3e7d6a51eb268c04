"""How much larger than its requests a batch may become when ragged ones are padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from serving.config import ModelConfig
from serving.errors import ModelLoadError

Shape = tuple[int, ...]

MAX_GROWTH = 4
"""A batch may be padded to as many times the elements of its requests, and no more: two requests
that are long in different dimensions would else take the product of both lengths. Sequences of
ordinary text differ by less."""

ALWAYS_FINE = 1 << 18
"""Elements of a batch that may be padding for the greater part: these are copied in less time than
a run takes, and short requests beside a long one gain from a shared run."""

MAX_PADDING = "max_padding"


@dataclass(frozen=True, slots=True)
class PaddingRule:
    """How large a batch may become beside its requests.

    The parameter `max_padding` is the share of a batch that may be padding, such as 0.25, however
    small the batch is. Requests that would exceed it are then passed over in favour of others of
    like length further back in the queue; the oldest is in the next batch in any case.
    """

    max_growth: float = MAX_GROWTH
    always_fine: int = ALWAYS_FINE
    passes_over: bool = False

    @classmethod
    def read(cls, config: ModelConfig) -> PaddingRule:
        """Of a model. Raises `ModelLoadError` for a parameter that makes no sense."""
        text = config.parameters.get(MAX_PADDING)
        if text is None:
            return cls()
        where = f"model {config.name!r}: parameters {MAX_PADDING}"
        if config.sequences is not None or not config.ragged:
            raise ModelLoadError(
                f"{where} needs an input with allow_ragged_batch, and no sequence_batching"
            )
        try:
            share = float(text)
        except ValueError:
            share = -1
        if not 0 <= share < 1:
            raise ModelLoadError(f"{where} must be a share from 0 to below 1, got {text!r}")
        return cls(1 / (1 - share), 0, passes_over=True)


ORDINARY = PaddingRule()


class Padding:
    """The size of a batch that grows request by request."""

    def __init__(self, rule: PaddingRule = ORDINARY):
        self._rule = rule
        self._rows = 0
        self._elements = 0
        self._longest: list[Shape] = []

    def takes(self, rows: int, shapes: Sequence[Shape]) -> bool:
        """Take in a request, unless the batch would be padded too much; the first is taken always.

        `shapes` are those of one row of every input that is padded: the same inputs each time.
        """
        elements = self._elements + rows * sum(map(prod, shapes))
        if self._rows:
            longest = [
                tuple(map(max, longest, shape))
                for longest, shape in zip(self._longest, shapes, strict=True)
            ]
        else:
            longest = list(shapes)
        padded = (self._rows + rows) * sum(map(prod, longest))
        rule = self._rule
        if self._rows and padded > max(rule.always_fine, rule.max_growth * elements):
            return False
        self._rows += rows
        self._elements = elements
        self._longest = longest
        return True
