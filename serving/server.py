"""Everything that a front may ask: predictions, and the models that make them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING

from serving.calls import Call
from serving.catalog import Catalog, Loaded, ModelState
from serving.control import ModelControl
from serving.errors import NotFound, RequestError, Unsupported
from serving.ledger import Asked, Held, Ledger, outcome_of
from serving.model import Model
from serving.observability.logging import LogSettings
from serving.observability.metrics import Metrics
from serving.observability.totals import ModelMetrics, Outcome
from serving.observability.tracing import Tracer
from serving.shared_memory import SharedMemory
from serving.types import InferRequest, InferResponse, Stamps

if TYPE_CHECKING:
    # Needs an extra.
    from serving.observability.spans import SpanTracer

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""What the protocol's metadata says of this server: only what is there."""


class Server:
    """The same data plane under every front.

    `name` is what the protocol's metadata reports. With `strict_readiness` one model that could
    not be loaded makes the whole server not ready.
    """

    def __init__(
        self,
        catalog: Catalog,
        control: ModelControl,
        metrics: Metrics,
        *,
        name: str = "slipway",
        strict_readiness: bool = True,
        shared_memory: SharedMemory,
        tracer: Tracer,
        spans: SpanTracer | None = None,
        log_settings: LogSettings,
    ):
        self.name = name
        self.control = control
        self._catalog = catalog
        self.metrics = metrics
        self.shared_memory = shared_memory
        self.tracer = tracer
        self._spans = spans
        self.log_settings = log_settings
        self._strict_readiness = strict_readiness
        self._ledger = Ledger(metrics, tracer, spans)

    @property
    def draining(self) -> bool:
        """Whether it is about to end."""
        return self._ledger.draining

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return not self.draining and not (self._strict_readiness and self._catalog.has_failures)

    def model_ready(self, name: str, version: str = "") -> bool:
        try:
            model = self.model(name, version)
        except NotFound:
            return False
        members = model.config.steps
        return not self.draining and all(
            self.model_ready(step.model_name, step.model_version) for step in members
        )

    def model(self, name: str, version: str = "") -> Model:
        """One loaded version; no version means the highest. Raises `NotFound`."""
        return self._catalog.find(name, version).model

    def loaded(self, name: str, version: str = "") -> Loaded:
        """As `model`, for `ask`."""
        return self._catalog.find(name, version)

    def versions(self, name: str) -> list[str]:
        """The versions of a model that are served, lowest first. Raises `NotFound`."""
        return list(self._catalog.versions(name))

    async def index(self, *, ready_only: bool = False) -> list[ModelState]:
        """Every model of the repositories with its state, and the reason if it is not served."""
        states = await self.control.index()
        return [state for state in states if state.state == "READY" or not ready_only]

    def statistics(self, name: str = "", version: str = "") -> list[tuple[Model, ModelMetrics]]:
        """The running totals of one version, of a model's versions, or of every one.

        Raises `NotFound`.
        """
        found: Iterable[Loaded]
        if not name:
            found = self._catalog.serving()
        elif version:
            found = [self._catalog.find(name, version)]
        else:
            found = self._catalog.versions(name).values()
        return [(loaded.model, loaded.metrics) for loaded in found]

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request, and count its outcome whatever that is.

        Raises any of `serving.errors` but `OperatorError`; cancelling the call is safe at any time.
        """
        loaded = self._found(request)
        with Held(self._ledger, request, loaded):
            model = loaded.model
            if not model.answers_once:
                raise Unsupported(
                    f"model {request.model_name!r} is decoupled: it may have any number of"
                    " responses, and only ModelStreamInfer or generate_stream can carry them"
                )
            return await model.infer(request, model.rows(request))

    def ask(self, asked: Asked, loaded: Loaded) -> None:
        """As `infer` of a model that has a `queue`, for who is told and need not be woken.

        `loaded` is what was found for the request; a sequence goes on where it began.
        Raises what keeps the request from being queued.
        """
        if asked.request.sequence is not None:
            loaded = self._found(asked.request)
        else:
            self._ledger.came(asked.request)
        asked.hold(self._ledger, loaded)
        asked.submit()

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse]:
        """Answer one request with all its responses: one, unless the model is decoupled.

        Raises as `infer` does; closing the iterator early cancels the request.
        """
        loaded = self._found(request)
        with Held(self._ledger, request, loaded):
            model = loaded.model
            if not model.config.decoupled:
                yield await model.infer(request, model.rows(request))
                return
            timing, trace = loaded.metrics.responses(request.stamps), request.trace
            outcome = Outcome.ANSWERED
            try:
                async with aclosing(model.stream(request, model.rows(request))) as responses:
                    async for response in responses:
                        timing.came()
                        if trace is not None:
                            trace.came(monotonic())
                        yield response
                        timing.asked()
            except BaseException as error:
                outcome = outcome_of(error, request)
                raise
            finally:
                timing.ended(outcome)

    def note_invalid(self, error: RequestError, call: Call, name: str, version: str = "") -> None:
        """Count a request for which a front found no form that could be inferred."""
        stamps = Stamps(received=call.received)
        request = InferRequest(name, {}, stamps=stamps, call=call)
        self._ledger.came(request)
        try:
            loaded = self._catalog.find(name, version)
        except NotFound:
            self._ledger.not_found(request)
        else:
            self._ledger.invalid(request, loaded, error)

    def sent(self, call: Call) -> None:
        """A front is done with a call: its answer is sent, or nobody is there to take it."""
        self._ledger.sent(call)

    async def drain(self, grace_s: float) -> None:
        """Turn not ready, and wait until what is in flight now has its outcome."""
        await self._ledger.drain(grace_s)

    def give_up(self) -> None:
        """Fail what still waits, so that its callers hear of it before the fronts close."""
        for loaded in (*self._catalog.serving(), *self._catalog.retiring()):
            loaded.model.give_up()

    async def close(self) -> None:
        """Unload every model, when what runs has ended."""
        self._ledger.draining = True
        self.metrics.loop_lag.stop()
        await self.control.stop()
        await self._catalog.close()
        await self.tracer.close()
        if self._spans is not None:
            await self._spans.close()
        self.shared_memory.close()

    def _found(self, request: InferRequest) -> Loaded:
        """What answers a request, which has come. Raises `NotFound`, counted."""
        self._ledger.came(request)
        try:
            return self._catalog.find_for(
                request.model_name, request.model_version, request.sequence
            )
        except NotFound:
            self._ledger.not_found(request)
            raise
