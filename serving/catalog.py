"""Which models are loaded, and how that changes while requests keep coming.

A model that is loaded anew serves from its old version until the new one is ready; then the new
one takes over in one step, and the old one finishes what it has accepted before it is released.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

import structlog

from serving.errors import ModelLoadError, NotFound, OperatorError
from serving.model import Model
from serving.observability.totals import ModelMetrics
from serving.overrides import Overrides, Source
from serving.repository import ModelVersion, NotThere, Repositories
from serving.types import SequenceStep

log = structlog.get_logger(__name__)

T = TypeVar("T")
_LOOK_EVERY_S = 0.05
"""How often a version that has been replaced looks whether its sequences have ended."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """One line of the repository index. A model that was never loaded has a name only."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


@dataclass(eq=False)
class Loaded:
    """A version that serves, and how many requests hold it."""

    found: ModelVersion
    model: Model
    metrics: ModelMetrics
    _users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    def hold(self) -> None:
        """Keep the version loaded, until it is let go."""
        self._users += 1

    def let_go(self) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def close(self) -> None:
        """Release the version when nobody holds it any more."""
        while self._users:
            self._unused.clear()
            await self._unused.wait()
        await self.model.close()


@dataclass(eq=False)
class _Entry:
    """All that is known of one model name."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    changes: int = 0
    """Under way, or waiting for the lock."""
    serving: dict[str, Loaded] = field(default_factory=dict)
    """By version, lowest first. Replaced as a whole, never changed."""
    found: dict[str, Loaded] = field(default_factory=dict)
    """The same by what callers ask for, who mean the highest where they name none."""
    failures: Mapping[str, OperatorError] = field(default_factory=dict)
    """Why a version is not served, or is not what its directory holds now; "" is the model."""
    was_down: bool = False
    """Nothing was served when the failures came, so nothing stands in for what failed."""
    uses: frozenset[str] = frozenset()
    """The members of an ensemble."""
    is_overridden: bool = False
    loading: set[str] = field(default_factory=set)
    unloading: dict[str, list[Loaded]] = field(default_factory=dict)
    unloaded: set[str] = field(default_factory=set)


class Catalog:
    """The models of some repositories.

    `build` makes a model ready to serve from a version directory, and `check` says whether one
    that is ready still fits the others; both raise `OperatorError`. `loaded` is told of every
    attempt to load a model that is there, and `forget` of one that is gone for good, with the
    versions that were served.
    """

    def __init__(
        self,
        repositories: Repositories,
        *,
        build: Callable[[ModelVersion], Awaitable[tuple[Model, ModelMetrics]]],
        check: Callable[[ModelVersion], None],
        loaded: Callable[[str, bool], None],
        forget: Callable[[str, Iterable[str]], None],
    ):
        self.repositories = repositories
        self._build = build
        self._check = check
        self._loaded = loaded
        self._forget = forget
        self._entries: dict[str, _Entry] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    # What serves now.

    def find(self, name: str, version: str = "") -> Loaded:
        """The version that answers a caller, the highest if none is named. Raises `NotFound`."""
        entry = self._entries.get(name)
        found = entry and entry.found.get(version)
        if not found:
            self.versions(name)
            raise NotFound(f"Request for unknown model: {name!r} version {version} is not found")
        return found

    def find_for(self, name: str, version: str, step: SequenceStep | None) -> Loaded:
        """As `find`; but a sequence goes on where it began, though it has been replaced."""
        if step is not None and not step.start and (entry := self._entries.get(name)) is not None:
            for number, replaced in entry.unloading.items():
                for loaded in replaced:
                    if version in ("", number) and loaded.model.continues(step.id):
                        return loaded
        return self.find(name, version)

    def versions(self, name: str) -> dict[str, Loaded]:
        """All that serves of a model, lowest version first. Raises `NotFound`."""
        entry = self._entries.get(name)
        if entry is None or not (entry.serving or entry.failures or entry.unloaded):
            raise NotFound(f"Request for unknown model: {name!r} is not found")
        if not entry.serving:
            raise NotFound(f"Request for unknown model: {name!r} has no available versions")
        return entry.serving

    def serving(self) -> Iterator[Loaded]:
        """All that serves, ordered by name and version."""
        for name in sorted(self._entries):
            yield from self._entries[name].serving.values()

    def retiring(self) -> Iterator[Loaded]:
        """What has been replaced or unloaded, and still finishes what it has accepted."""
        for entry in self._entries.values():
            for replaced in entry.unloading.values():
                yield from replaced

    @property
    def has_failures(self) -> bool:
        """Whether a model that should be served is not, nor an earlier version of it."""
        return any(entry.failures and entry.was_down for entry in self._entries.values())

    def index(self, names: list[str]) -> list[ModelState]:
        """The state of every version, and of each of `names` that has none."""
        return [state for name in sorted({*self._entries, *names}) for state in self._states(name)]

    def without_paths(self, error: OperatorError) -> str:
        """A reason for callers: where a repository lies is nobody's business but the operator's."""
        text = str(error)
        for root in (*sorted(map(str, self.repositories.roots), reverse=True), _SCRATCH):
            text = text.replace(f"{root}{os.sep}", "")
        return re.sub(r"(?<![\w./])/(?:[^\s'\"/]+/)+", "", text)

    def _states(self, name: str) -> Iterator[ModelState]:
        entry = self._entries.get(name, _Entry())
        reasons = {version: self.without_paths(e) for version, e in entry.failures.items()}
        states = dict.fromkeys(entry.unloaded, ("UNAVAILABLE", "unloaded"))
        states |= dict.fromkeys(entry.unloading, ("UNLOADING", ""))
        states |= {version: ("UNAVAILABLE", reason) for version, reason in reasons.items()}
        states |= dict.fromkeys(entry.loading, ("LOADING", ""))
        states |= {version: ("READY", reasons.get(version, "")) for version in entry.serving}
        for version in sorted(states, key=lambda version: int(version or 0)):
            yield ModelState(name, version, *states[version])
        if not states:
            yield ModelState(name)

    # How that changes.

    async def load_all(self, names: list[str]) -> list[OperatorError]:
        """Load some models; returns why those that failed did."""
        failures: dict[str, Mapping[str, OperatorError]] = {}
        for name in names:
            if name not in self._entries:
                failures[name] = await self.load(name)
        # An ensemble has loaded members that nobody named, and that may have failed.
        failures |= {name: entry.failures for name, entry in self._entries.items()}
        return [error for name in sorted(failures) for error in failures[name].values()]

    async def load(
        self, name: str, overrides: Overrides | None = None, *, above: frozenset[str] = frozenset()
    ) -> Mapping[str, OperatorError]:
        """Bring what is served of a model in line with its source.

        An ensemble brings its members along; `above` are the ensembles that this one is loaded
        for. Returns why it failed, by version; "" is the model as a whole.
        """
        source = Source(self.repositories, name, overrides)
        try:
            # Before the lock is taken: two ensembles may wait for each other's members.
            await self._load_members(source, above | {name})
            async with self._changing(name) as entry:
                return await self._load(name, entry, source, is_overridden=overrides is not None)
        finally:
            await asyncio.to_thread(source.close)

    async def unload(self, name: str) -> None:
        """Stop serving a model; what it has accepted is finished in the background."""
        if name in self._entries:
            async with self._changing(name) as entry:
                self._take_over(name, entry, {}, {})

    def background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Work that goes on though whoever asked for it leaves."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def is_changing(self, name: str) -> bool:
        return name in self._entries and self._entries[name].changes > 0

    def members(self, name: str) -> frozenset[str]:
        """The models that an ensemble uses; none, if it is none."""
        entry = self._entries.get(name)
        return entry.uses if entry is not None and entry.serving else frozenset()

    def users(self, name: str) -> list[str]:
        """The ensembles that serve by means of a model."""
        return [other for other in self._entries if name in self.members(other)]

    async def close(self) -> None:
        """Unload everything, when what runs has ended, and load nothing more."""
        self._is_closed = True
        for name in list(self._entries):
            await self.unload(name)
        while self._tasks:
            await asyncio.wait(self._tasks)

    @asynccontextmanager
    async def _changing(self, name: str) -> AsyncIterator[_Entry]:
        """One change of a model at a time. Of names that are nowhere, no trace is kept."""
        entry = self._entries.setdefault(name, _Entry())
        entry.changes += 1
        try:
            async with entry.lock:
                yield entry
        finally:
            entry.changes -= 1
            self._drop_if_gone(name, entry)

    def _drop_if_gone(self, name: str, entry: _Entry) -> None:
        alive = entry.changes or entry.serving or entry.failures or entry.unloading
        if alive or self.repositories.contains(name):
            return
        if self._entries.get(name) is entry:
            del self._entries[name]
            self._forget(name, entry.unloaded)

    async def _load_members(self, source: Source, above: frozenset[str]) -> None:
        try:
            found = await asyncio.to_thread(source.read)
        except (OperatorError, OSError):
            return  # which the loading proper will meet as well
        for member in {step.model_name for version in found for step in version.config.steps}:
            entry = self._entries.get(member)
            if member not in above and (entry is None or not entry.serving):
                await self.load(member, above=above)

    async def _load(
        self, name: str, entry: _Entry, source: Source, *, is_overridden: bool
    ) -> Mapping[str, OperatorError]:
        serving: Mapping[str, Loaded] = entry.serving
        failures: Mapping[str, OperatorError]
        if self._is_closed:
            return {"": ModelLoadError(f"model {name!r}: the server is shutting down")}
        try:
            found = await asyncio.to_thread(source.read)
            entry.uses = frozenset(s.model_name for version in found for s in version.config.steps)
            entry.is_overridden = is_overridden
            serving, failures = self._still_fitting(*await self._bring_up(entry, found))
        except NotThere as error:
            return {"": error}
        except OperatorError as error:
            failures = {"": error}
        except OSError as error:
            failures = {"": ModelLoadError(f"model {name!r} cannot be read: {error.strerror}")}
        for reason in failures.values():
            log.error("model not loaded", model=name, reason=str(reason))
            self._loaded(name, False)
        entry.was_down = not entry.serving
        self._take_over(name, entry, serving, failures)
        return failures

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
                self._loaded(wanted.config.name, True)
            except OperatorError as error:
                failures[version] = error
            finally:
                entry.loading.discard(version)
        # What was served stands in for what could not be loaded.
        return ({**entry.serving, **serving} if failures else serving), failures

    def _still_fitting(
        self, serving: Mapping[str, Loaded], failures: dict[str, OperatorError]
    ) -> tuple[Mapping[str, Loaded], dict[str, OperatorError]]:
        """Without the ensembles whose members have changed while they were loaded."""
        fitting: dict[str, Loaded] = {}
        for version, loaded in serving.items():
            try:
                self._check(loaded.found)
                fitting[version] = loaded
            except OperatorError as error:
                failures = {**failures, version: error}
        return fitting, failures

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
        entry.found = dict(entry.serving)
        if entry.serving:
            entry.found[""] = next(reversed(entry.serving.values()))
        entry.failures = failures
        entry.unloaded = (entry.unloaded | before.keys()) - serving.keys()
        for version, loaded in before.items():
            if serving.get(version) is not loaded:
                entry.unloading.setdefault(version, []).append(loaded)
                self.background(self._retire(name, entry, version, loaded))
        if entry.serving != before and not self._is_closed:
            self._tell_users(name)

    def _tell_users(self, name: str) -> None:
        """Ensembles stand and fall with their members."""
        for user, entry in list(self._entries.items()):
            if name not in entry.uses:
                continue
            if entry.failures and self._entries[name].serving and not entry.is_overridden:
                self.background(self.load(user))
            for version, loaded in entry.serving.items():
                loaded.model.renew()
                try:
                    self._check(loaded.found)
                except OperatorError as error:
                    log.error("model no longer served", model=user, reason=str(error))
                    rest = {v: other for v, other in entry.serving.items() if v != version}
                    entry.was_down = False
                    self._take_over(user, entry, rest, {**entry.failures, version: error})

    async def _retire(self, name: str, entry: _Entry, version: str, loaded: Loaded) -> None:
        try:
            while loaded.model.live_sequences and not self._is_closed:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_EVERY_S)
            await loaded.close()
        except Exception as error:
            log.error("model not unloaded cleanly", model=name, version=version, exc_info=error)
        entry.unloading[version].remove(loaded)
        if not entry.unloading[version]:
            del entry.unloading[version]
        self._drop_if_gone(name, entry)
        log.info("model unloaded", model=name, version=version)


_SCRATCH = tempfile.gettempdir()
