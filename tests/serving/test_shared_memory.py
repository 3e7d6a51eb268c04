from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import shared_memory
from serving.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    SlipwayError,
    TooLarge,
    Unsupported,
)
from serving.shared_memory import Region, SharedMemory

DIRECTORY = Path(shared_memory.DIRECTORY)

pytestmark = pytest.mark.skipif(not DIRECTORY.is_dir(), reason="this machine has no /dev/shm")


@pytest.fixture
def key() -> Iterator[str]:
    """An object of 100 bytes, 0 to 99."""
    name = f"test-{uuid4()}"
    path = DIRECTORY / name
    path.write_bytes(bytes(range(100)))
    yield f"/{name}"
    path.unlink(missing_ok=True)


@pytest.fixture
def regions() -> Iterator[SharedMemory]:
    regions = SharedMemory(enabled=True)
    yield regions
    regions.close()


def content(key: str) -> bytes:
    return Path(f"{DIRECTORY}{key}").read_bytes()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_registered_is_read_and_written(regions: SharedMemory, key: str) -> None:
    regions.register("a", key, 10, 20)
    assert regions.status("a") == [Region("a", key, 10, 20)]
    assert regions.read("a", 0, 20) == bytes(range(10, 30))
    assert regions.read("a", 5, 3) == bytes([15, 16, 17])
    assert bytes(regions.read("a", 20, 0)) == b""
    regions.write("a", 2, 8, b"abc")
    regions.write("a", 6, 2, memoryview(b"\1\2").cast("H"))
    regions.write("a", 20, 0, b"")
    expected = bytearray(range(100))
    expected[12:15] = b"abc"
    expected[16:18] = b"\1\2"
    assert content(key) == expected


def test_python_s_own_shared_memory_is_the_same_kind(regions: SharedMemory) -> None:
    from multiprocessing.shared_memory import SharedMemory as Theirs

    theirs = Theirs(create=True, size=8)
    try:
        view = theirs.buf
        assert view is not None
        view[:4] = b"abcd"
        regions.register("a", theirs.name, 0, 8)
        assert bytes(regions.read("a", 0, 4)) == b"abcd"
        regions.write("a", 4, 4, b"efgh")
        assert bytes(view[:8]) == b"abcdefgh"
        view.release()
    finally:
        theirs.close()
        theirs.unlink()


def test_the_status_of_all_is_ordered_by_name(regions: SharedMemory, key: str) -> None:
    for name in ("b", "a"):
        regions.register(name, key.removeprefix("/"), 0, 1)
    assert [region.name for region in regions.status()] == ["a", "b"]
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'c'"):
        regions.status("c")


def test_unregistering_closes_the_file_and_never_fails(regions: SharedMemory, key: str) -> None:
    before = open_files()
    for name in ("a", "b", "c"):
        regions.register(name, key, 0, 1)
    assert open_files() == before + 3
    regions.unregister("a")
    regions.unregister("a")
    assert [region.name for region in regions.status()] == ["b", "c"]
    regions.unregister()
    regions.unregister()
    assert regions.status() == []
    assert open_files() == before
    with pytest.raises(NotFound, match="'b'"):
        regions.read("b", 0, 1)
    regions.register("b", key, 0, 1)
    regions.close()
    assert open_files() == before


def test_disabled(key: str) -> None:
    regions = SharedMemory(enabled=False)
    with pytest.raises(Unsupported, match="Client shared memory is disabled"):
        regions.register("a", key, 0, 1)
    for name in ("", "a"):
        with pytest.raises(Unsupported, match="Client shared memory is disabled"):
            regions.unregister(name)
    assert regions.status() == []
    with pytest.raises(NotFound, match="'a'; client shared memory is disabled"):
        regions.read("a", 0, 1)


def test_a_name_is_taken_once(regions: SharedMemory, key: str) -> None:
    regions.register("a", key, 0, 1)
    before = open_files()
    with pytest.raises(AlreadyExists, match=r"^shared memory region 'a' already in manager$"):
        regions.register("a", key, 0, 2)
    assert regions.status() == [Region("a", key, 0, 1)]
    assert open_files() == before


@pytest.mark.parametrize(
    ("offset", "size", "problem"),
    [
        (0, 101, "beyond its object of 100 bytes"),
        (100, 1, "beyond its object of 100 bytes"),
        (2**64, 2**64, "beyond its object of 100 bytes"),
        (0, 0, "must be 0 or more and 1 or more, got 0 and 0"),
        (-1, 1, "must be 0 or more and 1 or more, got -1 and 1"),
        (1, -1, "must be 0 or more and 1 or more, got 1 and -1"),
    ],
)
def test_a_region_lies_within_its_object(
    regions: SharedMemory, key: str, offset: int, size: int, problem: str
) -> None:
    before = open_files()
    with pytest.raises(InvalidRequest, match=problem):
        regions.register("a", key, offset, size)
    assert open_files() == before
    assert regions.status() == []


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "/",
        ".",
        "..",
        "/..",
        "//a",
        "../etc/passwd",
        "/etc/passwd",
        "a/b",
        "a\0b",
        "a\nb",
        "a" * 256,
        "é" * 128,
        "\ud800",
    ],
)
def test_hostile_keys_are_refused(regions: SharedMemory, hostile: str) -> None:
    with pytest.raises(InvalidRequest, match="must be a POSIX name") as refusal:
        regions.register("a", hostile, 0, 1)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("reserved", ["/sem.x", "slipway-x"])
def test_reserved_keys_are_refused(regions: SharedMemory, reserved: str) -> None:
    with pytest.raises(InvalidRequest, match="is reserved"):
        regions.register("a", reserved, 0, 1)


@pytest.mark.parametrize("name", ["", "n" * 256])
def test_hostile_names_are_refused(regions: SharedMemory, key: str, name: str) -> None:
    with pytest.raises(InvalidRequest, match="must have 1 to 255 bytes"):
        regions.register(name, key, 0, 1)


def test_what_is_no_shared_memory_object(regions: SharedMemory, key: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = Path(f"{DIRECTORY}{key}")
    before = open_files()

    path.unlink()
    with pytest.raises(InvalidRequest, match=r"Unable to open .* 'a': .* No such file"):
        regions.register("a", key, 0, 1)

    path.symlink_to(secret)
    with pytest.raises(InvalidRequest, match="Unable to open"):
        regions.register("a", key, 0, 1)

    path.unlink()
    path.mkdir()
    with pytest.raises(InvalidRequest, match="Unable to open"):
        regions.register("a", key, 0, 1)

    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(InvalidRequest, match="is no shared memory object"):
        regions.register("a", key, 0, 1)
    assert open_files() == before


def test_the_number_of_regions_is_bounded(
    regions: SharedMemory, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 2)
    regions.register("a", key, 0, 1)
    regions.register("b", key, 0, 1)
    with pytest.raises(InvalidRequest, match="there are 2 already"):
        regions.register("c", key, 0, 1)
    regions.unregister("a")
    regions.register("c", key, 0, 1)


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 11), (10, 1), (-1, 1), (0, -1), (11, 0), (2**64, 2**64)]
)
def test_a_request_stays_within_its_region(
    regions: SharedMemory, key: str, offset: int, size: int
) -> None:
    regions.register("a", key, 5, 10)
    expected = "Invalid offset \\+ byte size for shared memory region: 'a'"
    with pytest.raises(InvalidRequest, match=expected):
        regions.read("a", offset, size)
    with pytest.raises(InvalidRequest, match=expected):
        regions.write("a", offset, size, b"")
    with pytest.raises(InvalidRequest, match=expected):
        regions.check("a", offset, size)
    assert content(key) == bytes(range(100))


def test_a_part_can_be_checked_before_it_is_needed(regions: SharedMemory, key: str) -> None:
    regions.register("a", key, 5, 10)
    regions.check("a", 0, 10)
    regions.check("a", 10, 0)
    with pytest.raises(NotFound, match="'b'"):
        regions.check("b", 0, 1)


def test_an_output_must_fit_its_place(regions: SharedMemory, key: str) -> None:
    regions.register("a", key, 0, 10)
    with pytest.raises(InvalidRequest, match=r"2 bytes set aside .* at least 3 bytes"):
        regions.write("a", 0, 2, b"abc")
    with pytest.raises(NotFound, match="'b'"):
        regions.write("b", 0, 2, b"a")
    assert content(key) == bytes(range(100))


def test_an_object_that_was_cut_short_is_a_clear_error(regions: SharedMemory, key: str) -> None:
    regions.register("a", key, 0, 100)
    os.truncate(f"{DIRECTORY}{key}", 50)
    assert len(regions.read("a", 0, 50)) == 50
    with pytest.raises(InvalidRequest, match="'a' has become smaller"):
        regions.read("a", 0, 51)
    with pytest.raises(InvalidRequest, match="'a' has become smaller"):
        regions.write("a", 49, 51, b"ab")
    assert content(key) == bytes(range(50))


def test_a_huge_sparse_object_is_not_read(regions: SharedMemory, key: str) -> None:
    os.truncate(f"{DIRECTORY}{key}", 2**40)
    regions.register("a", key, 0, 2**40)
    with pytest.raises(TooLarge, match="over the limit of"):
        regions.read("a", 0, 2**40)
    assert bytes(regions.read("a", 2**40 - 1, 1)) == b"\0"


def test_a_request_reads_no_more_than_it_may_bring_along(key: str) -> None:
    regions = SharedMemory(enabled=True, limit_bytes=50)
    regions.register("a", key, 0, 100)
    assert len(regions.read("a", 0, 50)) == 50
    with pytest.raises(TooLarge, match=r"51 bytes .* 'a' are over the limit of 50 bytes"):
        regions.read("a", 0, 51)

    memory = regions.for_request()
    assert memory.read("a", 0, 30) == bytes(range(30))
    with pytest.raises(InvalidRequest, match="Invalid offset"):
        memory.read("a", 90, 11)
    with pytest.raises(TooLarge, match="21 bytes"):
        memory.read("a", 0, 21)
    assert len(memory.read("a", 30, 20)) == 20
    with pytest.raises(TooLarge, match="1 bytes"):
        memory.read("a", 0, 1)
    assert len(regions.for_request().read("a", 0, 50)) == 50
    regions.close()


def test_an_unlinked_object_lives_until_it_is_unregistered(regions: SharedMemory, key: str) -> None:
    regions.register("a", key, 0, 100)
    os.unlink(f"{DIRECTORY}{key}")
    assert bytes(regions.read("a", 7, 1)) == b"\7"


@given(st.text(max_size=5), st.text(max_size=6), st.integers(), st.integers(), st.binary())
def test_hostile_calls_are_refused(
    name: str, key: str, offset: int, size: int, data: bytes
) -> None:
    regions = SharedMemory(enabled=True)
    with suppress(SlipwayError):
        regions.register(name, key, offset, size)
    with suppress(SlipwayError):
        regions.read(name, offset, size)
    with suppress(SlipwayError):
        # Only what does not exist: a hostile key may name a real object.
        SharedMemory(enabled=True).write(name, offset, size, data)
    regions.close()
