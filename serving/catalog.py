"""Which models are loaded, and how that changes while requests keep coming.

A model that is loaded anew serves from its old version until the new one is ready; then the new
one takes over in one step, and the old one finishes what it has accepted before it is released.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import structlog

from serving.errors import (
    InvalidRequest,
    LoadFailed,
    ModelLoadError,
    NotFound,
    NotInRepository,
    OperatorError,
    Unavailable,
    shown,
)
from serving.model import Model
from serving.observability.metrics import ModelMetrics
from serving.pbtxt import read_config, read_override
from serving.repository import Fingerprint, ModelVersion, Repositories, versions

log = structlog.get_logger(__name__)

T = TypeVar("T")


class ControlMode(Enum):
    """Who decides which models are loaded."""

    NONE = "none"
    """All, once, at the start."""
    POLL = "poll"
    """All, and the repositories are watched for changes."""
    EXPLICIT = "explicit"
    """Those named at the start, and what callers load and unload."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """One line of the repository index. A model that was never loaded has a name only."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a load call puts in the place of the repository's files.

    `files` maps "<version>/<file name>" to contents; with any, no file of the repository is used.
    """

    config: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class Loaded:
    """A version that serves, and how many requests hold it."""

    found: ModelVersion
    model: Model
    metrics: ModelMetrics
    _users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def lease(self) -> Iterator[Loaded]:
        self._users += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def close(self) -> None:
        """Release the version when nobody holds it any more."""
        if self._users:
            await self._unused.wait()
        await self.model.close()


@dataclass(eq=False)
class _Entry:
    """All that is known of one model name."""

    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    # version -> what serves it, lowest first; replaced as a whole, never changed.
    serving: Mapping[str, Loaded] = field(default_factory=dict)
    # version ("" if it is not even known which) -> why it is not served.
    failures: dict[str, OperatorError] = field(default_factory=dict)
    never_served: bool = False
    """Nothing was served when the failures came, so nothing stands in for what failed."""
    loading: set[str] = field(default_factory=set)
    unloading: dict[str, Loaded] = field(default_factory=dict)
    unloaded: set[str] = field(default_factory=set)


Build = Callable[[ModelVersion], Awaitable[tuple[Model, ModelMetrics]]]


class Catalog:
    """The models of some repositories.

    `build` makes a model ready to serve from a version directory; it raises `OperatorError`.
    """

    def __init__(self, repositories: Repositories, mode: ControlMode, build: Build):
        self._repositories = repositories
        self._mode = mode
        self._build = build
        self._entries: dict[str, _Entry] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._seen: Mapping[str, Fingerprint] = {}

    # What serves now.

    def find(self, name: str = "", version: str = "") -> list[Loaded]:
        """One version, all of a model (the last one answers for it), or all there are.

        Raises `NotFound`.
        """
        if not name:
            names = sorted(self._entries)
            return [loaded for name in names for loaded in self._entries[name].serving.values()]
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(f"Request for unknown model: {name!r} is not found")
        if not entry.serving:
            raise NotFound(f"Request for unknown model: {name!r} has no available versions")
        if not version:
            return list(entry.serving.values())
        if version not in entry.serving:
            raise NotFound(f"Request for unknown model: {name!r} version {version} is not found")
        return [entry.serving[version]]

    def models(self) -> Iterator[Model]:
        """Every version that serves, ordered by name and version."""
        for loaded in self.find():
            yield loaded.model

    @property
    def has_failures(self) -> bool:
        """Whether a model that should be served is not, nor an earlier version of it."""
        return any(entry.failures and entry.never_served for entry in self._entries.values())

    def index(self) -> list[ModelState]:
        """The state of every version, and of every model that has none."""
        known = {*self._entries, *self._repositories.names()}
        return [state for name in sorted(known) for state in self._states(name)]

    def _states(self, name: str) -> Iterator[ModelState]:
        entry = self._entries.get(name, _Entry())
        states = dict.fromkeys(entry.unloaded, ("UNAVAILABLE", "unloaded"))
        states |= dict.fromkeys(entry.unloading, ("UNLOADING", ""))
        states |= dict.fromkeys(entry.serving, ("READY", ""))
        states |= {
            version: ("UNAVAILABLE", self._without_paths(error))
            for version, error in entry.failures.items()
            if version not in entry.serving
        }
        states |= dict.fromkeys(entry.loading - entry.serving.keys(), ("LOADING", ""))
        for version in sorted(states, key=lambda version: int(version or 0)):
            yield ModelState(name, version, *states[version])
        if not states:
            yield ModelState(name)

    # How that changes.

    async def start(self, names: list[str] | None = None) -> list[OperatorError]:
        """Load some models, by default all; returns why those that failed did."""
        self._repositories.check()
        self._seen = await asyncio.to_thread(self._repositories.fingerprints)
        absent: list[OperatorError] = []
        for name in self._repositories.names() if names is None else names:
            if name not in self._entries:
                errors = await self.load(name)
                absent += errors.values() if name not in self._entries else ()
        entries = [self._entries[name] for name in sorted(self._entries)]
        return absent + [error for entry in entries for error in entry.failures.values()]

    def watch(self, every_s: float) -> None:
        """Load what changes in the repositories after `start`, and unload what disappears."""
        self._watcher = asyncio.create_task(self._watch(every_s))

    async def load_on_request(self, name: str, overrides: Overrides | None) -> None:
        """A caller's wish. Raises `Unavailable`, `InvalidRequest` or `LoadFailed`."""
        self._require_explicit()
        if not name.strip() or name in (".", "..") or "/" in name or "\0" in name:
            raise InvalidRequest(f"failed to load {shown(name)}, it is not a model's name")
        # A caller who leaves must not leave half a model behind.
        errors = await asyncio.shield(self._background(self.load(name, overrides)))
        if "" in errors:
            raise NotInRepository(
                f"failed to load {name!r}, failed to poll from model repository:"
                f" {self._without_paths(errors[''])}"
            )
        for version, error in errors.items():
            raise LoadFailed(
                f"load failed for model {name!r}: version {version} is at UNAVAILABLE state:"
                f" {self._without_paths(error)}"
            )

    async def unload_on_request(self, name: str, *, dependents: bool) -> None:
        """A caller's wish; a name that is not loaded is no error. Raises `Unavailable`."""
        self._require_explicit()
        members = self._members(name) if dependents else set()
        await self.unload(name)
        for member in members - {m for other in self._entries for m in self._members(other)}:
            await self.unload(member)

    async def load(
        self, name: str, overrides: Overrides | None = None
    ) -> Mapping[str, OperatorError]:
        """Bring what is served of a model in line with its repository.

        Returns why that failed, by version; "" is the model as a whole.
        """
        is_new = name not in self._entries and not (overrides and overrides.files)
        if is_new and not await asyncio.to_thread(self._repositories.contains, name):
            # Whatever names callers try, they leave no trace.
            return {"": ModelLoadError(f"model {name!r} is in no model repository")}
        entry = self._entries.setdefault(name, _Entry())
        async with entry.changing:
            scratch = Path(tempfile.mkdtemp(prefix="slipway-")) if overrides else None
            serving, failures = entry.serving, dict[str, OperatorError]()
            try:
                found = await asyncio.to_thread(self._look_up, name, overrides, scratch)
                await self._load_members(found)
                serving, failures = await self._bring_up(entry, found)
            except OperatorError as error:
                failures = {"": error}
            except OSError as error:
                failures = {"": ModelLoadError(f"model {name!r} cannot be read: {error.strerror}")}
            finally:
                if scratch is not None:
                    await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
            entry.never_served = bool(failures) and not entry.serving
            for reason in failures.values():
                log.error("model not loaded", model=name, reason=str(reason))
            self._take_over(name, entry, serving, failures)
            return failures

    async def unload(self, name: str) -> None:
        """Stop serving a model; what it has accepted is finished in the background."""
        entry = self._entries.get(name)
        if entry is not None:
            async with entry.changing:
                self._take_over(name, entry, {}, {})

    async def close(self) -> None:
        """Unload everything, when what runs has ended."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        for name in list(self._entries):
            await self.unload(name)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _require_explicit(self) -> None:
        if self._mode is not ControlMode.EXPLICIT:
            raise Unavailable(
                "explicit model load / unload is not allowed if polling is enabled, or without"
                " --model-control-mode explicit"
            )

    def _look_up(
        self, name: str, overrides: Overrides | None, scratch: Path | None
    ) -> list[ModelVersion]:
        if overrides is None or scratch is None:
            directory = self._repositories.find(name)
            return versions(directory, read_config(directory))
        if overrides.files and overrides.config is None:
            raise ModelLoadError("files can be given only together with a config")
        if overrides.files:
            directory = scratch / name
            _write_files(directory, overrides.files)
        else:
            directory = self._repositories.find(name)
        if overrides.config is None:
            return versions(directory, read_config(directory))
        return versions(directory, read_override(overrides.config, directory))

    async def _load_members(self, found: list[ModelVersion]) -> None:
        """An ensemble brings its members along."""
        for name in {step.model_name for version in found for step in version.config.steps}:
            entry = self._entries.get(name)
            if entry is None or not (entry.serving or entry.failures or entry.changing.locked()):
                await self.load(name)

    async def _bring_up(
        self, entry: _Entry, found: list[ModelVersion]
    ) -> tuple[Mapping[str, Loaded], dict[str, OperatorError]]:
        """What shall serve from now on, and why not all of what was found can."""
        serving: dict[str, Loaded] = {}
        failures: dict[str, OperatorError] = {}
        for wanted in found:
            version = str(wanted.version)
            present = entry.serving.get(version)
            if present is not None and present.found == wanted:
                serving[version] = present
                continue
            entry.loading.add(version)
            try:
                serving[version] = await self._load_version(wanted)
            except OperatorError as error:
                failures[version] = error
            finally:
                entry.loading.discard(version)
        # What was served stands in for what could not be loaded.
        return ({**entry.serving, **serving} if failures else serving), failures

    async def _load_version(self, wanted: ModelVersion) -> Loaded:
        name, started = wanted.config.name, monotonic()
        try:
            model, metrics = await self._build(wanted)
        except OperatorError:
            raise
        except Exception as error:  # what users put into a repository has no bounds
            log.error("unexpected error", model=name, exc_info=error)
            raise ModelLoadError(f"{wanted.directory}: cannot be loaded: {error!r}") from error
        metrics.load_s = monotonic() - started
        log.info(
            "model loaded", model=name, version=model.version, seconds=round(metrics.load_s, 3)
        )
        return Loaded(wanted, model, metrics)

    def _take_over(
        self,
        name: str,
        entry: _Entry,
        serving: Mapping[str, Loaded],
        failures: Mapping[str, OperatorError],
    ) -> None:
        before = entry.serving
        entry.serving = dict(sorted(serving.items(), key=lambda item: int(item[0])))
        entry.failures = dict(failures)
        entry.unloaded = (entry.unloaded | before.keys()) - serving.keys()
        for version, loaded in before.items():
            if serving.get(version) is not loaded:
                entry.unloading[version] = loaded
                self._background(self._retire(name, entry, version, loaded))

    async def _retire(self, name: str, entry: _Entry, version: str, loaded: Loaded) -> None:
        await loaded.close()
        if entry.unloading.get(version) is loaded:
            del entry.unloading[version]
        log.info("model unloaded", model=name, version=version)

    def _members(self, name: str) -> set[str]:
        return {
            step.model_name
            for loaded in self._entries.get(name, _Entry()).serving.values()
            for step in loaded.model.config.steps
        }

    async def _watch(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                present = await asyncio.to_thread(self._repositories.fingerprints)
            except OSError as error:
                log.error("model repository cannot be read", reason=str(error))
                continue
            for name in changed(self._seen, present):
                await self.load(name)
            for name in self._seen.keys() - present.keys():
                await self.unload(name)
            self._seen = present

    def _without_paths(self, error: OperatorError) -> str:
        """Where a repository lies is nobody's business but the operator's."""
        text = str(error)
        for root in (*self._repositories.roots, Path(tempfile.gettempdir())):
            text = text.replace(f"{root}{os.sep}", "")
        return text


def changed(seen: Mapping[str, Fingerprint], present: Mapping[str, Fingerprint]) -> list[str]:
    """The models that are new or differ, in order."""
    return [name for name in sorted(present) if present[name] != seen.get(name)]


def _write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Raises `ModelLoadError` for a name that is not "<version>/<path>" inside `directory`."""
    for name, content in files.items():
        parts = name.split("/")
        plain = all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
        if len(parts) < 2 or not plain or "\0" in name:
            raise ModelLoadError(
                f"file {shown(name)} must be named <version>/<file name>, inside the model"
            )
        path = directory.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
