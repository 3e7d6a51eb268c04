"""What becomes of every request: a model is held for it, its one outcome is counted and told."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from serving.calls import Call, Front
from serving.catalog import Loaded
from serving.errors import (
    Cancelled,
    Expired,
    NotFound,
    Overloaded,
    RequestError,
    SlipwayError,
    Unavailable,
)
from serving.observability.metrics import Metrics
from serving.observability.request_log import log_request
from serving.observability.totals import ModelMetrics, Outcome
from serving.observability.tracing import Tracer
from serving.types import InferRequest, InferResponse, Tensors

if TYPE_CHECKING:
    # Needs an extra.
    from serving.observability.spans import SpanTracer

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


_Told = tuple[InferRequest, str, Outcome, str, ModelMetrics | None]
"""A request that has its outcome: the version that it was for, why it was refused, and, if a model
had it, that one's totals."""


class Ledger:
    """Of one server: what is in flight, and who hears of how it ends."""

    def __init__(self, metrics: Metrics, tracer: Tracer, spans: SpanTracer | None):
        self.draining = False
        self.in_flight: set[Held] = set()
        metrics.in_flight = self.in_flight.__len__
        self._metrics = metrics
        self._tracer = tracer
        self._spans = spans
        self._last_ones: set[Held] = set()
        """Of those in flight, those for whose outcome a drained server waits."""
        self._are_done = asyncio.Event()

    def came(self, request: InferRequest) -> None:
        """A request is there, and from now on owed an outcome."""
        stamps = request.stamps
        stamps.received = stamps.received or monotonic()
        if self._spans is not None:
            self._spans.begin(request)

    def not_found(self, request: InferRequest) -> None:
        """There is no model for a request that came."""
        self._metrics.unresolved += 1
        self._tell_later((request, "", Outcome.INVALID, _REASONS[NotFound.code], None))

    def invalid(self, request: InferRequest, loaded: Loaded, error: RequestError) -> None:
        """A request that came has no form that a model could infer."""
        reason = self._reason(error)
        loaded.metrics.ended(Outcome.INVALID, request.stamps, request.front, reason)
        self._tell_later((request, loaded.model.version, Outcome.INVALID, reason, None))

    def ended(self, held: Held, error: BaseException | None) -> None:
        """A request has its outcome, for which a model was held."""
        request, loaded = held.request, held.loaded
        outcome, reason = Outcome.ANSWERED, ""
        if error is not None:
            outcome, reason = outcome_of(error, request), self._reason(error)
            if outcome is Outcome.FAILED and isinstance(error, SlipwayError):
                log.error("inference failed", model=request.model_name, exc_info=error)
        self.in_flight.discard(held)
        if self._last_ones:
            self._last_ones.discard(held)
            if not self._last_ones:
                self._are_done.set()
        metrics = loaded.metrics
        metrics.ended(outcome, request.stamps, request.front, reason)
        self._tell_later((request, loaded.model.version, outcome, reason, metrics))

    def sent(self, call: Call) -> None:
        """A front is done with a call: its answer is sent, or nobody is there to take it."""
        if call.unsent is not None:
            self._tell(call.unsent)
            call.unsent = None
        if self._spans is not None:
            self._spans.ended(call)

    async def drain(self, grace_s: float) -> None:
        """Wait until what is in flight now has its outcome."""
        self.draining = True
        self._last_ones = set(self.in_flight)
        if self._last_ones:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._are_done.wait(), grace_s)

    def _tell_later(self, told: _Told) -> None:
        """When the answer is sent; now, if the call goes on without it."""
        call = told[0].call
        if call is None:
            self._tell(told)
            return
        if call.unsent is not None:
            self._tell(call.unsent)
        call.unsent = told

    def _tell(self, told: _Told) -> None:
        request, version, outcome, reason, metrics = told
        call, stamps, trace = request.call, request.stamps, request.trace
        if call is not None:
            stamps.sent = call.sent
        if metrics is not None and outcome is Outcome.ANSWERED:
            front = Front.INTERNAL if call is None else call.front
            metrics.sent(stamps, front, "" if trace is None else f"{trace.trace_id:032x}")
        if self._spans is not None:
            self._spans.record(request, version, outcome, reason)
        elif metrics is not None:
            self._tracer.record(request, version)
        log_request(request, version, outcome)

    def _reason(self, error: BaseException) -> str:
        """Why a request is refused; empty if it is not."""
        if isinstance(error, Unavailable) and self.draining:
            return "draining"
        return _REASONS.get(error.code, "") if isinstance(error, SlipwayError) else ""


class Held:
    """A version of a model that is held for one request, until that has its one outcome."""

    __slots__ = ("_ledger", "loaded", "request")

    def __init__(self, ledger: Ledger, request: InferRequest, loaded: Loaded):
        self.request = request
        self.hold(ledger, loaded)

    def hold(self, ledger: Ledger, loaded: Loaded) -> None:
        self._ledger = ledger
        self.loaded = loaded
        loaded.hold()
        ledger.in_flight.add(self)

    def __enter__(self) -> Loaded:
        return self.loaded

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """The request has its outcome."""
        try:
            self._ledger.ended(self, error)
        finally:
            self.loaded.let_go()


class Cancellable(Protocol):
    """What an answer comes from: who is asked, or a task."""

    def cancel(self) -> object:
        """Nobody waits for it any more."""
        ...


class Asked(Held, ABC):
    """A request that its model's queue is asked for, and what whoever asked does with what the
    queue tells. Neither `answered` nor `failed` may raise."""

    __slots__ = ("_entry", "_is_over", "_queue")

    def __init__(self, request: InferRequest):
        self.request = request
        self._entry: Any = None
        """In the queue; None once it is over, for it holds this."""
        self._is_over = False

    @abstractmethod
    def answered(self, response: InferResponse) -> None: ...

    @abstractmethod
    def failed(self, error: Exception) -> None: ...

    def submit(self) -> None:
        """To the queue of the model that is held. Raises what keeps the request from it."""
        model = self.loaded.model
        try:
            assert model.queue is not None
            self._queue = model.queue
            self._entry = self._queue.submit(self.request, model.rows(self.request), self)
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
            response = self.loaded.model.response(self.request, outputs)
        except Exception as error:
            self.set_exception(error)
            return
        self._close()
        self.end(None)
        self.answered(response)

    def set_exception(self, error: Exception) -> None:
        self._close()
        self.end(error)
        self.failed(error)

    def _close(self) -> None:
        self._is_over = True
        self._entry = None


def outcome_of(error: BaseException, request: InferRequest) -> Outcome:
    """How a request ended for which this was raised."""
    if isinstance(error, asyncio.CancelledError) and monotonic() >= request.deadline:
        return Outcome.EXPIRED
    return next((kind for cause, kind in _OUTCOMES if isinstance(error, cause)), Outcome.FAILED)
