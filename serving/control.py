"""Who decides which models are loaded: the start, the repositories as they change, or callers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum

import structlog

from serving.catalog import Catalog, ModelState
from serving.errors import (
    InvalidRequest,
    LoadFailed,
    NotInRepository,
    OperatorError,
    Unavailable,
    shown,
)
from serving.overrides import Overrides
from serving.repository import Fingerprint

log = structlog.get_logger(__name__)


class ControlMode(Enum):
    """Who decides."""

    NONE = "none"
    """All are loaded, once, at the start."""
    POLL = "poll"
    """All, and the repositories are watched for changes."""
    EXPLICIT = "explicit"
    """Those named at the start, and what callers load and unload."""


class ModelControl:
    """Decides what a catalog loads."""

    def __init__(self, catalog: Catalog, mode: ControlMode, *, poll_s: float):
        self._catalog = catalog
        self._mode = mode
        self._poll_s = poll_s
        self._watcher: asyncio.Task[None] | None = None

    async def start(self, names: Sequence[str] = ()) -> list[OperatorError]:
        """Load what is to be loaded at the start; returns why those that failed did.

        `names` counts with explicit control only, where "*" means all. Raises `OperatorError` for
        a repository that is not there.
        """
        repositories = self._catalog.repositories
        repositories.check()
        seen = await asyncio.to_thread(repositories.fingerprints)
        is_chosen = self._mode is ControlMode.EXPLICIT and "*" not in names
        failures = await self._catalog.load_all(list(names) if is_chosen else sorted(seen))
        if self._mode is ControlMode.POLL:
            self._watcher = asyncio.create_task(self._watch(seen))
        return failures

    async def stop(self) -> None:
        """Look for changes no more."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher

    async def index(self) -> list[ModelState]:
        """Every model of the repositories with its state, and the reason if it is not served."""
        try:
            names = await asyncio.to_thread(self._catalog.repositories.names)
        except OSError as error:
            log.error("model repository cannot be read", reason=str(error))
            names = []
        return self._catalog.index(names)

    async def load(self, name: str, overrides: Overrides | None) -> None:
        """A caller's wish. Raises `Unavailable`, `InvalidRequest` or `LoadFailed`."""
        self._require_explicit()
        if not name.strip() or name in (".", "..") or "/" in name or "\0" in name:
            raise InvalidRequest(f"failed to load {shown(name)}, it is not a model's name")
        catalog = self._catalog
        # A caller who leaves must not leave half a model behind.
        errors = await asyncio.shield(catalog.background(catalog.load(name, overrides)))
        if "" in errors:
            raise NotInRepository(
                f"failed to load {shown(name)}, failed to poll from model repository:"
                f" {catalog.without_paths(errors[''])}"
            )
        for version, error in errors.items():
            raise LoadFailed(
                f"load failed for model {name!r}: version {version} is at UNAVAILABLE state:"
                f" {catalog.without_paths(error)}"
            )

    async def unload(self, name: str, *, dependents: bool) -> None:
        """A caller's wish; a name that is not loaded is no error. Raises `Unavailable`.

        Like Triton it does not wait for a load that is under way, which is undone when it ends.
        """
        self._require_explicit()
        catalog = self._catalog
        unloading = catalog.background(self._unload(name, dependents=dependents))
        if not catalog.is_changing(name):
            await asyncio.shield(unloading)

    async def _unload(self, name: str, *, dependents: bool) -> None:
        members = self._catalog.members(name) if dependents else frozenset[str]()
        await self._catalog.unload(name)
        for member in members:
            if not self._catalog.users(member):
                await self._catalog.unload(member)

    def _require_explicit(self) -> None:
        if self._mode is not ControlMode.EXPLICIT:
            raise Unavailable(
                "explicit model load / unload is not allowed if polling is enabled, or without"
                " --model-control-mode explicit"
            )

    async def _watch(self, seen: Mapping[str, Fingerprint]) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                seen = await self._follow(seen)
            except Exception as error:  # nothing that is found on a disk may end the watch
                log.error("model repository cannot be read", exc_info=error)

    async def _follow(self, seen: Mapping[str, Fingerprint]) -> Mapping[str, Fingerprint]:
        present = await asyncio.to_thread(self._catalog.repositories.fingerprints)
        for name in sorted(present):
            if present[name] != seen.get(name):
                await self._catalog.load(name)
        for name in seen.keys() - present.keys():
            await self._catalog.unload(name)
        return present
