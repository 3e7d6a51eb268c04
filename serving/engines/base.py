"""The engine seam: how numbers are computed, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Protocol

from serving.types import Array, Parameter, Tensors, TensorSpec


class Engine(Protocol):
    """One loaded graph.

    Threads are the engine's private matter: `infer` may be awaited as many times at once as the
    model has instances, and must leave the event loop free while it computes. `infer_at_once` is
    asked before it where the loop may compute, and counts as one of these.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    def infer_at_once(self, inputs: Tensors) -> Tensors | None:
        """What `infer` returns and raises, if it takes no longer than the event loop may be kept.

        None for what `infer` must be awaited for; nothing has been done of it then.
        """
        return None

    async def infer(self, inputs: Tensors) -> Tensors:
        """Run the graph once; returns every output. Inputs whose spec is optional may be missing.

        Raises `InvalidRequest` for values that this engine cannot take; any other exception means
        that the run failed.
        """
        ...

    async def close(self) -> None:
        """Release threads and memory. Nothing runs any more when this is called."""
        ...


class StreamingEngine(Engine, Protocol):
    """An engine that can answer one request any number of times (a decoupled model)."""

    def stream(
        self, inputs: Tensors, parameters: Mapping[str, Parameter]
    ) -> AsyncGenerator[Tensors, None]:
        """The responses to one request, as they come; there may be none.

        The work goes no further than the responses that are asked for, and `aclose` ends it at
        once. Errors are those of `infer`; after one, the stream is over.
        """
        ...


class Graph(Protocol):
    """A graph that computes on the thread of whoever calls it."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    def run(self, inputs: Tensors) -> Tensors:
        """Every output, in memory of its own."""
        ...

    def bind(self, arrays: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        """A run that reads inputs from these arrays and writes outputs into those, every time.

        They must be contiguous. An array may be both, where the graph can change it in place.
        """
        ...
