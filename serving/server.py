"""Everything that a front may ask: predictions, and the models that make them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from serving.calls import Call
from serving.catalog import Catalog, Loaded, ModelState
from serving.control import ModelControl
from serving.errors import (
    Cancelled,
    Expired,
    NotFound,
    Overloaded,
    RequestError,
    SlipwayError,
    Unavailable,
    Unsupported,
)
from serving.model import Model
from serving.observability.logging import LogSettings
from serving.observability.metrics import Metrics
from serving.observability.request_log import log_request
from serving.observability.totals import ModelMetrics, Outcome
from serving.observability.tracing import Tracer
from serving.shared_memory import SharedMemory
from serving.types import InferRequest, InferResponse, Stamps, Tensors

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

log = structlog.get_logger(__name__)

_OUTCOMES: tuple[tuple[type[BaseException], Outcome], ...] = (
    (RequestError, Outcome.INVALID),
    (Overloaded, Outcome.REFUSED),
    (Unavailable, Outcome.REFUSED),
    (Expired, Outcome.EXPIRED),
    (Cancelled, Outcome.CANCELLED),
    (asyncio.CancelledError, Outcome.CANCELLED),
    (GeneratorExit, Outcome.CANCELLED),
)

_REASONS = {
    "invalid_argument": "invalid",
    "malformed": "invalid",
    "too_large": "too_large",
    "not_found": "not_found",
    "unsupported": "unsupported",
    "overloaded": "queue_full",
    "expired": "timeout",
    "unavailable": "unavailable",
}
"""Why a request was not served though nothing failed, by the code of its error."""


_Ended = tuple[InferRequest, str, Outcome, str, ModelMetrics | None]
"""A request that has its outcome: the version that it was for, why it was refused, and, if a model
had it, that one's totals."""


class Asker(Protocol):
    """Who has asked for an inference, and is told what it came to. May not raise."""

    def answered(self, response: InferResponse) -> None: ...

    def failed(self, error: Exception) -> None: ...


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
        self.draining = False
        self._strict_readiness = strict_readiness
        self._in_flight: set[_Accepted] = set()
        self._last_ones: set[_Accepted] = set()
        """Of these, those for whose outcome a drained server waits."""
        self._are_done = asyncio.Event()

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
        with _Accepted(self, request) as loaded:
            model = loaded.model
            if not model.answers_once:
                raise Unsupported(
                    f"model {request.model_name!r} is decoupled: it may have any number of"
                    " responses, and only ModelStreamInfer or generate_stream can carry them"
                )
            return await model.infer(request, model.rows(request))

    def ask(self, request: InferRequest, asker: Asker) -> Asked:
        """As `infer` of a model that has a `queue`, for who is told and need not be woken.

        Raises what keeps the request from being queued.
        """
        asked = Asked(self, request, asker)
        asked.begin()
        return asked

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse]:
        """Answer one request with all its responses: one, unless the model is decoupled.

        Raises as `infer` does; closing the iterator early cancels the request.
        """
        with _Accepted(self, request) as loaded:
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
                outcome = _outcome(error, request)
                raise
            finally:
                timing.ended(outcome)

    def note_invalid(self, error: RequestError, call: Call, name: str, version: str = "") -> None:
        """Count a request for which a front found no form that could be inferred."""
        stamps = Stamps(received=call.received or monotonic())
        request = InferRequest(name, {}, stamps=stamps, call=call)
        if self._spans is not None:
            self._spans.begin(request)
        try:
            loaded = self._catalog.find(name, version)
        except NotFound:
            self._not_found(request)
        else:
            reason = self._reason(error)
            loaded.metrics.ended(Outcome.INVALID, stamps, call.front, reason)
            self._ended((request, loaded.model.version, Outcome.INVALID, reason, None))

    def sent(self, call: Call) -> None:
        """A front is done with a call: its answer is sent, or nobody is there to take it."""
        if call.unsent is not None:
            self._tell(*call.unsent)
            call.unsent = None
        if self._spans is not None:
            self._spans.ended(call)

    async def drain(self, grace_s: float) -> None:
        """Turn not ready, and wait until what is in flight now has its outcome."""
        self.draining = True
        self._last_ones = set(self._in_flight)
        if self._last_ones:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._are_done.wait(), grace_s)

    def give_up(self) -> None:
        """Fail what still waits, so that its callers hear of it before the fronts close."""
        for loaded in (*self._catalog.serving(), *self._catalog.retiring()):
            loaded.model.give_up()

    async def close(self) -> None:
        """Unload every model, when what runs has ended."""
        self.draining = True
        self.metrics.loop_lag.stop()
        await self.control.stop()
        await self._catalog.close()
        await self.tracer.close()
        if self._spans is not None:
            await self._spans.close()
        self.shared_memory.close()

    def _leave(self, accepted: _Accepted) -> None:
        self._in_flight.discard(accepted)
        self.metrics.in_flight -= 1
        if accepted in self._last_ones:
            self._last_ones.discard(accepted)
            if not self._last_ones:
                self._are_done.set()

    def _not_found(self, request: InferRequest) -> None:
        self.metrics.unresolved += 1
        self._ended((request, "", Outcome.INVALID, _REASONS[NotFound.code], None))

    def _ended(self, ended: _Ended) -> None:
        """Tell of a request when its answer is sent; now, if the call goes on without it."""
        call = ended[0].call
        if call is None:
            self._tell(*ended)
            return
        if call.unsent is not None:
            self._tell(*call.unsent)
        call.unsent = ended

    def _tell(
        self,
        request: InferRequest,
        version: str,
        outcome: Outcome,
        reason: str,
        metrics: ModelMetrics | None,
    ) -> None:
        if request.call is not None:
            request.stamps.sent = request.call.sent
        if metrics is not None and outcome is Outcome.ANSWERED:
            trace = request.trace
            trace_id = f"{trace.trace_id:032x}" if trace is not None else ""
            metrics.sent(request.stamps, request.front, trace_id)
        if self._spans is not None:
            self._spans.record(request, version, outcome, reason)
        elif metrics is not None:
            self.tracer.record(request, version)
        log_request(request, version, outcome)

    def _reason(self, error: BaseException) -> str:
        """Why a request is refused; empty if it is not."""
        if isinstance(error, Unavailable) and self.draining:
            return "draining"
        return _REASONS.get(error.code, "") if isinstance(error, SlipwayError) else ""


class _Accepted:
    """Holds a model for one request, and counts the one outcome that the request has."""

    __slots__ = ("_loaded", "_request", "_server")

    def __init__(self, server: Server, request: InferRequest):
        self._server = server
        self._request = request

    def __enter__(self) -> Loaded:
        server, request = self._server, self._request
        stamps = request.stamps
        stamps.received = stamps.received or monotonic()
        if server._spans is not None:
            server._spans.begin(request)
        try:
            loaded = server._catalog.find_for(
                request.model_name, request.model_version, request.sequence
            )
        except NotFound:
            server._not_found(request)
            raise
        self._loaded = loaded
        loaded.hold()
        server._in_flight.add(self)
        server.metrics.in_flight += 1
        return loaded

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """The request has its outcome."""
        server, request, loaded = self._server, self._request, self._loaded
        outcome, reason = Outcome.ANSWERED, ""
        if error is not None:
            outcome, reason = _outcome(error, request), server._reason(error)
            if outcome is Outcome.FAILED and isinstance(error, SlipwayError):
                log.error("inference failed", model=request.model_name, exc_info=error)
        try:
            server._leave(self)
            loaded.metrics.ended(outcome, request.stamps, request.front, reason)
            server._ended((request, loaded.model.version, outcome, reason, loaded.metrics))
        finally:
            loaded.let_go()


class Asked(_Accepted):
    """A request that is in a model's queue, or runs; what the queue tells is passed on."""

    __slots__ = ("_asker", "_entry", "_is_over", "_queue")

    def __init__(self, server: Server, request: InferRequest, asker: Asker):
        self._server = server
        self._request = request
        self._asker = asker
        self._entry: Any = None
        """In the queue; None once it is over, for it holds this."""
        self._is_over = False

    def begin(self) -> None:
        """Raises what keeps the request from being queued."""
        model = self.__enter__().model
        try:
            assert model.queue is not None
            self._queue = model.queue
            self._entry = self._queue.submit(self._request, model.rows(self._request), self)
        except Exception as error:
            self.end(error)
            raise

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if self._is_over:
            return
        entry = self._entry
        self._close()
        self._queue.withdraw(entry)
        self.end(asyncio.CancelledError())

    def done(self) -> bool:
        return self._is_over

    def set_result(self, outputs: Tensors) -> None:
        try:
            response = self._loaded.model.response(self._request, outputs)
        except Exception as error:
            self.set_exception(error)
            return
        self._close()
        self.end(None)
        self._asker.answered(response)

    def set_exception(self, error: Exception) -> None:
        self._close()
        self.end(error)
        self._asker.failed(error)

    def _close(self) -> None:
        self._is_over = True
        self._entry = None


def _outcome(error: BaseException, request: InferRequest) -> Outcome:
    if isinstance(error, asyncio.CancelledError) and monotonic() >= request.deadline:
        return Outcome.EXPIRED
    return next((kind for cause, kind in _OUTCOMES if isinstance(error, cause)), Outcome.FAILED)
