"""The engine seam: how numbers are computed, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from serving.types import Tensors, TensorSpec


class Engine(Protocol):
    """One loaded graph.

    Threads are the engine's private matter: `infer` may be awaited as many times at once as the
    model has instances, and must leave the event loop free while it computes.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    async def infer(self, inputs: Tensors) -> Tensors:
        """Run the graph once; returns every output.

        Raises `InvalidRequest` for values that this engine cannot take; any other exception means
        that the run failed.
        """
        ...

    async def close(self) -> None:
        """Release threads and memory. Nothing runs any more when this is called."""
        ...
