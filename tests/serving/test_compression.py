from __future__ import annotations

import gzip
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest, SlipwayError, TooLarge, Unsupported
from serving.fronts.compression import ENCODINGS, choose, compress, decompress

codings = st.sampled_from(ENCODINGS)


@given(codings, st.lists(st.binary(max_size=300), max_size=4))
def test_round_trip(encoding: str, parts: list[bytes]) -> None:
    plain = b"".join(parts)
    packed = compress(encoding, parts)
    assert decompress(encoding, packed, len(plain)) == plain
    if plain:
        with pytest.raises(TooLarge, match=f"over the limit of {len(plain) - 1} bytes"):
            decompress(encoding, packed, len(plain) - 1)


def test_the_formats_are_those_of_everybody_else() -> None:
    assert gzip.decompress(compress("gzip", [b"a", memoryview(b"b")])) == b"ab"
    assert zlib.decompress(compress("deflate", [bytearray(b"ab")])) == b"ab"
    assert decompress("gzip", gzip.compress(b"ab"), 9) == b"ab"
    assert decompress("deflate", zlib.compress(b"ab"), 9) == b"ab"


@pytest.mark.parametrize("encoding", ["GZIP", "gZip", "x-gzip", " gzip "])
def test_names_are_case_insensitive(encoding: str) -> None:
    assert decompress(encoding, gzip.compress(b"ab"), 9) == b"ab"


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_identity_is_the_body_itself_within_the_limit(encoding: str) -> None:
    assert decompress(encoding, b"ab", 2) == b"ab"
    with pytest.raises(TooLarge):
        decompress(encoding, b"abc", 2)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip;q=1", "x" * 10_000])
def test_other_encodings_are_unsupported(encoding: str) -> None:
    with pytest.raises(Unsupported, match="expected one of gzip, deflate") as refusal:
        decompress(encoding, b"", 9)
    assert len(str(refusal.value)) < 200


@given(codings, st.binary(max_size=100), st.binary(min_size=1, max_size=9), st.data())
def test_cut_short_or_followed_by_more(
    encoding: str, plain: bytes, more: bytes, data: st.DataObject
) -> None:
    packed = compress(encoding, [plain])
    with pytest.raises(InvalidRequest, match=f"{len(more)} bytes follow the end"):
        decompress(encoding, packed + more, 1000)
    with pytest.raises(InvalidRequest, match="is cut short"):
        decompress(encoding, packed[: data.draw(st.integers(0, len(packed) - 1))], 1000)


def test_one_member_only() -> None:
    # Millions of empty members would be millions of copies of what follows them.
    with pytest.raises(InvalidRequest, match="bytes follow the end"):
        decompress("gzip", gzip.compress(b"") * 2, 1000)


@given(codings, st.binary(max_size=100))
def test_hostile_bytes_are_refused(encoding: str, body: bytes) -> None:
    with suppress(SlipwayError):
        decompress(encoding, body, 1000)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_bomb_is_not_inflated(encoding: str) -> None:
    bomb = compress(encoding, [bytes(2**28)])
    assert len(bomb) < 2**21
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="over the limit of 1048576 bytes"):
            decompress(encoding, bomb, 2**20)
        # The output so far and the rest of the input; nothing near what the bomb holds.
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZip", "gzip"),
        ("x-gzip", "gzip"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0.5,deflate ; q=0.8", "deflate"),
        ("gzip;Q=0.500, deflate", "deflate"),
        ("br, zstd", None),
        ("br, gzip;q=0.001", "gzip"),
        ("*", "gzip"),
        ("gzip;q=0, *", "deflate"),
        ("gzip;q=0", None),
        ("*;q=0", None),
        ("deflate, *;q=0", "deflate"),
        ("identity", None),
        ("identity, gzip", "gzip"),
        ("identity;q=1, gzip;q=0.5", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("gzip;q=nan, deflate;q=0.1", "deflate"),
        ("gzip;q=2", None),
        ("gzip;q=-1", None),
        ("gzip;level=9", None),
        (",,;q=1,", None),
    ],
)
def test_the_best_liked_coding_is_chosen(header: str, coding: str | None) -> None:
    assert choose(header) == coding


@given(st.text(alphabet="gzip*defat;,=q.01 ") | st.text())
def test_any_header_is_read(header: str) -> None:
    assert choose(header) in (None, *ENCODINGS)
