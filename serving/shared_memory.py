"""System (POSIX) shared memory that clients registered, to pass tensors by without sending them.

Read and written through the file, never mapped: a client that cuts its file short under us must be
an error of one request, where a mapping would be the end of the process (SIGBUS).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from serving.errors import AlreadyExists, InvalidRequest, NotFound, TooLarge, Unsupported, shown

Buffer = bytes | bytearray | memoryview

DIRECTORY = "/dev/shm"  # noqa: S108  where POSIX shared memory objects are files, on Linux
MAX_REGIONS = 512
"""Each holds a file open, and of those a process may have 1,024 by default."""
MAX_NAME_BYTES = 255
"""Of a region's name and of its key; NAME_MAX of Linux."""
READ_LIMIT_BYTES = 64 << 20
"""Of what a request reads, by default, which is what it may bring along in its body by default."""
RESERVED_PREFIXES = ("sem.", "slipway-", "triton_python_backend_shm_region_")
"""Of keys that no client may name: semaphores, and what servers share with their own processes."""


@dataclass(frozen=True, slots=True)
class Region:
    """`byte_size` bytes from `offset` on of the object `key`, under the name `name`."""

    name: str
    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class _Open:
    region: Region
    file: int


class SharedMemory:
    """The regions that clients registered. Belongs to one thread, the event loop's.

    `limit_bytes` bounds what one request may read: a sparse file of any size costs its owner
    nothing, and us what we read of it.

    Every call is done when it returns, so a region can be unregistered at any time: a request that
    has read its inputs no longer needs it, and one that comes to write finds it gone.
    """

    def __init__(self, *, enabled: bool, limit_bytes: int = READ_LIMIT_BYTES):
        self.enabled = enabled
        self.limit_bytes = limit_bytes
        self._open: dict[str, _Open] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Make a part of an existing POSIX shared memory object known as `name`.

        Raises `Unsupported` if disabled; `AlreadyExists` for a name that is taken; `InvalidRequest`
        for a bad name or key, an object that cannot be opened, a part that is not within it, or one
        region too many.
        """
        self._check_enabled()
        _check_name(name)
        if name in self._open:
            raise AlreadyExists(f"shared memory region {name!r} already in manager")
        if len(self._open) >= MAX_REGIONS:
            raise InvalidRequest(
                f"cannot register shared memory region {name!r}: there are {MAX_REGIONS} already,"
                " the most that this server keeps"
            )
        if offset < 0 or byte_size < 1:
            raise InvalidRequest(
                f"offset and byte_size of shared memory region {name!r} must be 0 or more"
                f" and 1 or more, got {shown(offset)} and {shown(byte_size)}"
            )
        file = _open_object(name, key)
        try:
            size = _file_size(name, key, file)
            if offset + byte_size > size:
                raise InvalidRequest(
                    f"failed to register shared memory region {name!r}: invalid args: offset"
                    f" {offset} and byte_size {byte_size} go beyond its object of {size} bytes"
                )
        except BaseException:
            os.close(file)
            raise
        self._open[name] = _Open(Region(name, key, offset, byte_size), file)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all of them. An unknown name is no error.

        Raises `Unsupported` if disabled.
        """
        self._check_enabled()
        for gone in [name] if name else list(self._open):
            if (entry := self._open.pop(gone, None)) is not None:
                os.close(entry.file)

    def status(self, name: str = "") -> list[Region]:
        """One region, or all of them by name; none if disabled. Raises `NotFound`."""
        if name:
            return [self._find(name).region]
        return [self._open[known].region for known in sorted(self._open)]

    def for_request(self) -> RequestMemory:
        """The regions as one request may read them. Each request needs its own."""
        return RequestMemory(self)

    def check(self, name: str, offset: int, byte_size: int) -> None:
        """Whether such a part can be read or written, as things are.

        Raises `NotFound` for an unknown region; `InvalidRequest` for a part that is not within it.
        """
        self._part(name, offset, byte_size)

    def read(
        self, name: str, offset: int, byte_size: int, at_most: int | None = None
    ) -> memoryview:
        """Bytes of a region, `offset` counted from the region's start.

        Raises `NotFound` for an unknown region; `InvalidRequest` for a part that is not within it,
        or no longer within its object; `TooLarge` above `at_most`, by default the limit.
        """
        entry = self._part(name, offset, byte_size)
        if byte_size > (self.limit_bytes if at_most is None else at_most):
            raise TooLarge(
                f"{byte_size} bytes of shared memory region {name!r} are over the limit of"
                f" {self.limit_bytes} bytes for all inputs of a request"
            )
        # A cut file is found out before memory is set aside for what it no longer holds.
        _check_uncut(entry, offset + byte_size)
        # numpy's memory is neither zeroed first nor copied once more at the end.
        data = np.empty(byte_size, np.uint8).data
        at = entry.region.offset + offset
        rest = data
        try:
            while rest:
                count = os.preadv(entry.file, [rest], at)
                if not count:
                    _refuse_cut(entry.region)
                at += count
                rest = rest[count:]
        except OSError as error:
            raise InvalidRequest(
                f"cannot read shared memory region {name!r}: {error.strerror}"
            ) from None
        return data.toreadonly()

    def write(self, name: str, offset: int, byte_size: int, data: Buffer) -> None:
        """Put `data` into the `byte_size` bytes that the caller set aside at `offset`.

        Raises `NotFound` for an unknown region; `InvalidRequest` for a part that is not within it,
        or no longer within its object, or too small for the data.
        """
        entry = self._part(name, offset, byte_size)
        rest = memoryview(data)
        if rest:  # numpy's empty views are the only ones that cannot be cast
            rest = rest.cast("B")
        if len(rest) > byte_size:
            raise InvalidRequest(
                f"shared memory region {name!r}: the {byte_size} bytes set aside for the output"
                f" should be at least {len(rest)} bytes to hold the results"
            )
        # Writing beyond its end would make the caller's object grow.
        _check_uncut(entry, offset + len(rest))
        at = entry.region.offset + offset
        try:
            while rest:
                written = os.pwrite(entry.file, rest, at)
                at += written
                rest = rest[written:]
        except OSError as error:
            raise InvalidRequest(
                f"cannot write shared memory region {name!r}: {error.strerror}"
            ) from None

    def close(self) -> None:
        """Forget all regions."""
        for entry in self._open.values():
            os.close(entry.file)
        self._open.clear()

    def _check_enabled(self) -> None:
        if not self.enabled:
            raise Unsupported("Client shared memory is disabled on this server")

    def _find(self, name: str) -> _Open:
        try:
            return self._open[name]
        except KeyError:
            why = "" if self.enabled else "; client shared memory is disabled on this server"
            raise NotFound(f"Unable to find shared memory region: {name!r}{why}") from None

    def _part(self, name: str, offset: int, byte_size: int) -> _Open:
        entry = self._find(name)
        if offset < 0 or byte_size < 0 or offset + byte_size > entry.region.byte_size:
            raise InvalidRequest(
                f"Invalid offset + byte size for shared memory region: {name!r}: expected at most"
                f" {entry.region.byte_size}, got {shown(offset)} + {shown(byte_size)}"
            )
        return entry


class RequestMemory:
    """What one request may read of shared memory: all its parts together are bounded.

    The same bytes count again each time that they are read, since each reading copies them.
    """

    def __init__(self, memory: SharedMemory):
        self._memory = memory
        self._left = memory.limit_bytes

    def read(self, name: str, offset: int, byte_size: int) -> memoryview:
        """As `SharedMemory.read`. Raises `TooLarge` for the part that goes over the limit."""
        data = self._memory.read(name, offset, byte_size, self._left)
        self._left -= byte_size
        return data


def _check_name(name: str) -> None:
    if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise InvalidRequest(
            f"the name of a shared memory region must have 1 to {MAX_NAME_BYTES} bytes,"
            f" got {shown(name)}"
        )


def _open_object(name: str, key: str) -> int:
    component = key.removeprefix("/")
    if (
        component in ("", ".", "..")
        or "/" in component
        or not component.isprintable()
        or len(component.encode()) > MAX_NAME_BYTES
    ):
        raise InvalidRequest(
            f"key of shared memory region {name!r} must be a POSIX name such as '/name', of at most"
            f" {MAX_NAME_BYTES} printable bytes and without a further '/', got {shown(key)}"
        )
    if component.startswith(RESERVED_PREFIXES):
        raise InvalidRequest(f"key {shown(key)} of shared memory region {name!r} is reserved")
    # Not blocking: what lies there under that name need not be shared memory.
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        return os.open(f"{DIRECTORY}/{component}", flags)
    except OSError as error:
        raise InvalidRequest(
            f"Unable to open shared memory region: {name!r}: key {shown(key)}: {error.strerror}"
        ) from None


def _file_size(name: str, key: str, file: int) -> int:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequest(
            f"key {shown(key)} of shared memory region {name!r} is no shared memory object"
        )
    return status.st_size


def _check_uncut(entry: _Open, end: int) -> None:
    if os.fstat(entry.file).st_size < entry.region.offset + end:
        _refuse_cut(entry.region)


def _refuse_cut(region: Region) -> NoReturn:
    raise InvalidRequest(
        f"the object of shared memory region {region.name!r} has become smaller since it was"
        " registered"
    )
