"""The set of loaded models, and everything that a front may ask of it."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic

import structlog

from serving.errors import (
    Cancelled,
    Expired,
    ModelLoadError,
    NotFound,
    OperatorError,
    Overloaded,
    RequestError,
    SlipwayError,
    Unavailable,
)
from serving.model import Model
from serving.observability.metrics import Metrics, ModelMetrics, Outcome
from serving.repository import BrokenModel, ModelVersion, scan
from serving.types import InferRequest, InferResponse

NAME = "slipway"
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "schedule_policy",
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
)


class Server:
    """Serves the models of a repository to every front alike.

    With `strict_readiness` one model that could not be loaded makes the whole server not ready.
    """

    def __init__(self, metrics: Metrics, *, strict_readiness: bool = True):
        self.metrics = metrics
        self.draining = False
        self._strict_readiness = strict_readiness
        self._repository = Path()
        # name -> version -> model; the highest version answers when a caller names none.
        self._models: dict[str, dict[str, tuple[Model, ModelMetrics]]] = {}
        self._failed: dict[str, OperatorError] = {}
        self._in_flight: set[asyncio.Future[None]] = set()

    async def load(self, repository: Path) -> list[OperatorError]:
        """Load what a repository holds; returns why the others could not be loaded."""
        for found in scan(repository):
            if isinstance(found, BrokenModel):
                self._note_failure(found.name, found.error)
            else:
                try:
                    await self._load_version(found)
                except OperatorError as error:
                    self._note_failure(found.config.name, error)
                except Exception as error:  # what users put into a repository has no bounds
                    log.error("unexpected error", model=found.config.name, exc_info=error)
                    failure = ModelLoadError(f"{found.directory}: cannot be loaded: {error!r}")
                    self._note_failure(found.config.name, failure)
        self._repository = repository
        return list(self._failed.values())

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return not self.draining and not (self._strict_readiness and self._failed)

    def model_ready(self, name: str, version: str = "") -> bool:
        try:
            self.model(name, version)
        except NotFound:
            return False
        return not self.draining

    def models(self) -> Iterator[Model]:
        """Every loaded version, ordered by name and version."""
        for name in sorted(self._models):
            for model, _ in self._models[name].values():
                yield model

    def versions(self, name: str) -> list[str]:
        return list(self._models.get(name, ()))

    def index(self) -> list[dict[str, str]]:
        """Every model of the repository with its state, and the reason if it is not served."""
        ready = [
            {"name": model.config.name, "version": model.version, "state": "READY"}
            for model in self.models()
        ]
        # Where the repository lies is nobody's business but the operator's.
        prefix = f"{self._repository}{os.sep}"
        failed = [
            {"name": name, "state": "UNAVAILABLE", "reason": str(error).replace(prefix, "")}
            for name, error in sorted(self._failed.items())
        ]
        return ready + failed

    def model(self, name: str, version: str = "") -> Model:
        """One loaded version; no version means the highest. Raises `NotFound`."""
        return self._find(name, version)[0]

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request, and count its outcome whatever that is.

        Raises any of `serving.errors` but `OperatorError`; cancelling the call is safe at any time.
        """
        model, metrics = self._find(request.model_name, request.model_version)
        stamps = request.stamps
        stamps.received = stamps.received or monotonic()
        in_flight = asyncio.get_running_loop().create_future()
        self._in_flight.add(in_flight)
        outcome = Outcome.FAILED
        try:
            response = await model.infer(request, model.rows(request))
            outcome = Outcome.ANSWERED
            return response
        except (SlipwayError, asyncio.CancelledError) as error:
            outcome = _outcome(error)
            if outcome is Outcome.FAILED:
                log.error("inference failed", model=request.model_name, exc_info=error)
            raise
        finally:
            metrics.ended(outcome, stamps)
            self._in_flight.discard(in_flight)
            in_flight.set_result(None)

    async def drain(self, grace_s: float = math.inf) -> None:
        """Turn not ready, and wait until what is in flight now has its outcome."""
        self.draining = True
        if self._in_flight:
            await asyncio.wait(
                set(self._in_flight), timeout=None if grace_s == math.inf else grace_s
            )

    def give_up(self) -> None:
        """Fail what still waits, so that its callers hear of it before the fronts close."""
        for model in self.models():
            model.give_up()

    async def close(self) -> None:
        """Unload every model, when what runs has ended."""
        self.draining = True
        await asyncio.gather(*(model.close() for model in self.models()))
        self._models.clear()

    def _find(self, name: str, version: str) -> tuple[Model, ModelMetrics]:
        versions = self._models.get(name)
        if versions is None:
            problem = "has no available versions" if name in self._failed else "is not found"
            raise NotFound(f"Request for unknown model: {name!r} {problem}")
        if not version:
            return next(reversed(versions.values()))
        if version not in versions:
            raise NotFound(f"Request for unknown model: {name!r} version {version} is not found")
        return versions[version]

    async def _load_version(self, found: ModelVersion) -> None:
        name, version = found.config.name, str(found.version)
        started = monotonic()
        metrics = self.metrics.model(name, version)
        model = await Model.load(found, metrics.ran)
        metrics.waiting = lambda: model.waiting
        self._models.setdefault(name, {})[version] = (model, metrics)
        log.info("model loaded", model=name, version=version, seconds=_rounded(started))

    def _note_failure(self, name: str, error: OperatorError) -> None:
        self._failed[name] = error
        log.error("model not loaded", model=name, reason=str(error))


def _outcome(error: BaseException) -> Outcome:
    kinds: Iterable[Outcome] = (kind for cause, kind in _OUTCOMES if isinstance(error, cause))
    return next(iter(kinds), Outcome.FAILED)


def _rounded(started: float) -> float:
    return round(monotonic() - started, 3)
