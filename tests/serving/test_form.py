from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest, TooLarge
from serving.fronts.form import parse_form

TYPE = 'multipart/form-data; boundary="here"'


def form(*parts: tuple[str, bytes]) -> bytes:
    """A body; each part is what its content-disposition says, and its data."""
    pieces = [
        b"--here\r\nContent-Disposition: form-data; " + told.encode() + b"\r\n\r\n" + data + b"\r\n"
        for told, data in parts
    ]
    return b"".join(pieces) + b"--here--\r\n"


def test_fields_and_files() -> None:
    parsed = parse_form(
        TYPE,
        form(
            ('name="model"', "größe".encode()),
            ('name="words[]"', b"one"),
            ('name="words[]"', b""),
            ('name="file"; filename="a.wav"', b"\r\n--her\xff\r\n"),
        ),
    )
    assert parsed.fields == {"model": ["größe"], "words": ["one", ""]}
    assert parsed.files == {"file": b"\r\n--her\xff\r\n"}


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("", form(), "expected a body of multipart/form-data, got ''"),
        ("application/json", b"{}", "got 'application/json'"),
        ("multipart/form-data", form(), "expected a body of multipart/form-data"),
        ("multipart/form-data; boundary=" + "a" * 999, form(), "Boundary length"),
        (TYPE, b"", "the form is cut short"),
        (TYPE, form(('name="a"', b"b"))[:-9], "the form is cut short"),
        (TYPE, b"no form", "the form cannot be read"),
        (TYPE, form(('filename="a"', b"b")), "a part of the form has no name"),
        (TYPE, form(('name="a"', b"\xff")), "a: expected text in UTF-8, or a file with a filename"),
    ],
)
def test_what_is_no_form_is_refused(content_type: str, body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_form(content_type, body)


def test_a_form_is_bounded() -> None:
    with pytest.raises(TooLarge, match="too many parts; the limit is 100"):
        parse_form(TYPE, form(*[('name="a"', b"")] * 101))
    large = b"a" * 70_000
    with pytest.raises(TooLarge, match="a: the limit is 65536 bytes"):
        parse_form(TYPE, form(('name="a"', large)))
    assert parse_form(TYPE, form(('name="a"; filename=""', large))).files == {"a": large}


@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255))))
def test_any_bytes_are_a_form_or_a_clear_refusal(
    noise: bytes, changes: list[tuple[int, int]]
) -> None:
    whole = bytearray(form(('name="a"', noise), ('name="b"; filename="c"', noise)))
    for at, byte in changes:
        whole[at % len(whole)] = byte
    for body in (noise, bytes(whole)):
        with contextlib.suppress(InvalidRequest, TooLarge):
            parse_form(TYPE, body)
